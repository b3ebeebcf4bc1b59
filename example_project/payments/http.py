"""The fields of JSON bodies and the query parameters of this API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.http import HttpRequest

from eventlogs.contrib.http import Problem, read_json

Reader = Callable[[Any], Any]
"""Return the value of a field (None if it is missing), or raise ValueError with its limit."""

Fields = Mapping[str, Reader]


def read_fields(request: HttpRequest, fields: Fields) -> dict[str, Any]:
    """Return the values in a JSON body, each read by its reader; raise a Problem for any other."""
    body = read_json(request)
    if not isinstance(body, dict) or body.keys() - fields.keys():
        raise Problem(
            400, f"The body must be an object with these fields and no others: {', '.join(fields)}."
        )
    values = {}
    for name, read in fields.items():
        try:
            values[name] = read(body.get(name))
        except ValueError as limit:
            raise Problem(400, f"{name} {limit}.") from None
    return values


def choice(request: HttpRequest, name: str, values: Sequence[str]) -> str | None:
    """Read a query parameter that is one of some words, None if it is missing."""
    text = request.GET.get(name)
    if text is not None and text not in values:
        raise Problem(400, f"{name} must be one of: {', '.join(values)}.")
    return text


def page_size(request: HttpRequest, *, most: int) -> int:
    """Read the query parameter ``limit``, ``most`` if it is missing."""
    text = request.GET.get("limit", str(most))
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(most))
    if not digits or not 1 <= int(text) <= most:
        raise Problem(400, f"limit must be a whole number from 1 to {most}.")
    return int(text)
