"""Query parameters, each read by its limits. A mistake is a Problem (400), without the value."""

from __future__ import annotations

from datetime import datetime

from django.http import HttpRequest
from django.utils.dateparse import parse_datetime

from eventlogs.conf import MAX_VERSION
from eventlogs.contrib.http.problems import Problem


def whole_number(
    request: HttpRequest, name: str, *, lowest: int = 0, highest: int = MAX_VERSION
) -> int | None:
    """Return a whole number of ASCII digits, or None if the parameter is missing."""
    text = request.GET.get(name)
    if text is None:
        return None
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(highest))
    if not is_number or not lowest <= int(text) <= highest:
        raise Problem(400, f"{name} must be a whole number from {lowest} to {highest}.")
    return int(text)


def moment(request: HttpRequest, name: str) -> datetime | None:
    """Return a time with a time zone, or None if the parameter is missing."""
    text = request.GET.get(name)
    if text is None:
        return None
    try:
        at = parse_datetime(text)
    except ValueError:  # the right form, but a day that does not exist
        at = None
    if at is None or at.utcoffset() is None:
        raise Problem(
            400,
            f"{name} must be a time with its zone, such as 2026-01-31T12:00:00Z (in an address, "
            f"the + of an offset is written %2B).",
        )
    return at


def flag(request: HttpRequest, name: str) -> bool:
    """Return whether the parameter is true; it is false if it is missing."""
    text = request.GET.get(name, "false")
    if text not in ("true", "false"):
        raise Problem(400, f"{name} must be true or false.")
    return text == "true"
