"""
The HTTP side of an API: problems, bodies, query parameters and idempotency keys.

Nothing in this module depends on payments.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, JsonResponse
from django.utils.dateparse import parse_datetime

Reader = Callable[[Any], Any]
"""Return the value of a field (None if it is missing), or raise ValueError with its limit."""

Fields = Mapping[str, Reader]

MAX_KEY_LENGTH = 255  # characters, the limit of eventlogs

# The draft asks for a string of RFC 8941 (Structured Fields, section 3.3.3). Many clients send the
# key without quotes.
QUOTED_KEY = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"\Z')
BARE_KEY = re.compile(r"[!#-+\--~]+\Z")


class Problem(Exception):
    """
    An error response: ``application/problem+json`` (RFC 9457).

    ``detail`` says what to do next. It never quotes the request, because problems are written to
    log files. ``kind`` tells problems with the same status apart.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        kind: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind
        self.headers = headers or {}

    def response(self) -> JsonResponse:
        """Return the response."""
        return JsonResponse(
            {
                "type": f"urn:example:payments:{self.kind}" if self.kind else "about:blank",
                "title": self.status.phrase,
                "status": self.status,
                "detail": self.detail,
            },
            status=self.status,
            headers=dict(self.headers),
            content_type="application/problem+json",
        )


def read_fields(request: HttpRequest, fields: Fields) -> dict[str, Any]:
    """
    Return the values in a JSON body, each read by its reader.

    Raise a Problem for another media type (415), for a body that is too large (413), and for JSON
    that is malformed, ambiguous, of another shape, or refused by a reader (400).
    """
    if request.content_type != "application/json":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "Send the body as application/json.",
            headers={"Accept": "application/json"},
        )
    try:
        # RFC 8259, section 8.1: JSON is encoded in UTF-8.
        body = json.loads(
            request.body.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_no_constant,
        )
    except RequestDataTooBig:
        raise Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "The body is too large for this API.",
        ) from None
    except (ValueError, RecursionError):
        raise Problem(HTTPStatus.BAD_REQUEST, "The body is not valid JSON.") from None
    if not isinstance(body, dict) or body.keys() - fields.keys():
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            f"The body must be an object with these fields and no others: {', '.join(fields)}.",
        )
    values = {}
    for name, read in fields.items():
        try:
            values[name] = read(body.get(name))
        except ValueError as limit:
            raise Problem(HTTPStatus.BAD_REQUEST, f"{name} {limit}.") from None
    return values


def idempotency_key(request: HttpRequest) -> str | None:
    """
    Return the key in the Idempotency-Key header, or None without the header.

    The header is defined by draft-ietf-httpapi-idempotency-key-header. All callers of this example
    share their keys. If your callers have accounts, prefix the key with the id of the account.
    """
    header = request.headers.get("Idempotency-Key")
    if header is None:
        return None
    if quoted := QUOTED_KEY.match(header):
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    else:
        key = header if BARE_KEY.match(header) else ""
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            f"Idempotency-Key must be one string of 1 to {MAX_KEY_LENGTH} ASCII characters, in "
            f'double quotes: "8e03978e-40d5-43dd-bc93-6894a57f9324".',
        )
    return key


def fingerprint(request: HttpRequest, values: Mapping[str, Any]) -> str:
    """
    Return a digest that is equal for two requests exactly if they ask for the same change.

    Preconditions are left out: a retry may come with another If-Match, or without one. The digest
    is stored beside the event's own data, so it reveals nothing new and needs no secret key. (After
    a rotation of a key, retries would no longer be recognised.)
    """
    canonical = json.dumps(
        [request.method, request.path_info, values], sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def whole_number(
    request: HttpRequest, name: str, *, least: int, most: int = 2**31 - 1
) -> int | None:
    """Read a query parameter, None if it is missing."""
    text = request.GET.get(name)
    if text is None:
        return None
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(most))
    if not digits or not least <= int(text) <= most:
        raise Problem(
            HTTPStatus.BAD_REQUEST, f"{name} must be a whole number from {least} to {most}."
        )
    return int(text)


def moment(request: HttpRequest, name: str) -> datetime | None:
    """Read a query parameter that is a time, None if it is missing."""
    text = request.GET.get(name)
    if text is None:
        return None
    try:
        at = parse_datetime(text)
    except ValueError:  # the right form, but a day that does not exist
        at = None
    if at is None or at.utcoffset() is None:
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            f"{name} must be a time with its zone, such as 2026-01-31T12:00:00Z (in an "
            f"address, the + of an offset is written %2B).",
        )
    return at


def choice(request: HttpRequest, name: str, values: Sequence[str]) -> str | None:
    """Read a query parameter that is one of some words, None if it is missing."""
    text = request.GET.get(name)
    if text is not None and text not in values:
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name} must be one of: {', '.join(values)}.")
    return text


def flag(request: HttpRequest, name: str) -> bool:
    """Read a query parameter that is true or false, false if it is missing."""
    text = request.GET.get(name, "false")
    if text not in ("true", "false"):
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name} must be true or false.")
    return text == "true"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name is repeated")  # it is unclear which value is meant
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError("NaN and the infinities are not JSON")
