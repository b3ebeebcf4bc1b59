"""The bodies of requests: JSON values, and digests by which a repeated request is recognised."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, Final

from django.core.files.uploadedfile import UploadedFile
from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.datastructures import MultiValueDict

from eventlogs import conf
from eventlogs.contrib.http.problems import Problem

SALT: Final = "eventlogs.contrib.http.request_digest"
CHUNK: Final = 65_536  # bytes of a file that are hashed at once


def read_json(request: HttpRequest) -> Any:
    """
    Return the JSON value in the body of a request.

    Raise a Problem for another media type than ``application/json`` (415), for a body that is
    larger than ``DATA_UPLOAD_MAX_MEMORY_SIZE`` (413), and for text that is not JSON in UTF-8
    (RFC 8259), or that repeats a name or has NaN, an infinity or a float over 1.8e308 (400).
    """
    if request.content_type != "application/json":
        raise Problem(
            415, "Send the body as application/json.", headers={"Accept": "application/json"}
        )
    try:
        return strict_json(request.body)
    except (ValueError, RecursionError):
        raise Problem(400, "The body is not valid JSON.") from None


def strict_json(body: bytes) -> Any:
    """Return the value of JSON text; raise ValueError or RecursionError if it is not strict."""
    return json.loads(
        body.decode("utf-8"),
        object_pairs_hook=_without_repeats,
        parse_constant=_no_constant,
        parse_float=_finite,
    )


def digests_of(request: HttpRequest, body: Any) -> Iterator[str]:
    """
    Yield the keyed digest (HMAC-SHA-256) of a request: method, path, query string and body.

    The first is the one to store, made with SECRET_KEY; the others, made with SECRET_KEY_FALLBACKS,
    are for comparing with what was stored before a rotation. It is keyed, because a body may hold
    what is stored nowhere else, and little of it: a plain digest of a code of six digits can be
    guessed. Headers do not count: a retry may come with another If-Match.
    """
    what = [request.method, request.path_info, request.META.get("QUERY_STRING", ""), body]
    try:
        canonical = json.dumps(what, sort_keys=True, separators=(",", ":"), cls=DjangoJSONEncoder)
    except RecursionError:
        raise too_deep() from None
    for secret in conf.secret_keys():
        yield salted_hmac(SALT, canonical, secret, algorithm="sha256").hexdigest()


def is_digest_of(stored: Any, request: HttpRequest, body: Any) -> bool:
    """Return whether ``stored`` is the digest of a request."""
    return isinstance(stored, str) and any(
        constant_time_compare(stored, each) for each in digests_of(request, body)
    )


def body_of(request: HttpRequest) -> Any:
    """
    Return the body of a request as a JSON value that is equal for equal bodies.

    JSON counts as its value: spaces and the order of names do not matter. A form with files (of a
    POST) counts as its fields and the content of its files, because the boundary between them is
    another one each time. Any other body counts byte by byte.
    """
    media_type = request.content_type
    if media_type == "multipart/form-data" and request.method == "POST":
        return ["form", plain(request.POST), plain(request.FILES)]
    body = request.body
    if media_type == "application/json" or (media_type or "").endswith("+json"):
        try:
            return ["json", strict_json(body)]
        except (ValueError, RecursionError):
            pass  # the view will refuse it, or reads it in a way of its own
    return ["bytes", media_type, hashlib.sha256(body).hexdigest()]


def plain(value: Any) -> Any:
    """Return a value that was read from a body, with files and repeated fields as JSON values."""
    match value:
        case MultiValueDict():
            return {name: [plain(each) for each in values] for name, values in value.lists()}
        case dict():
            return {str(name): plain(each) for name, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case UploadedFile():
            digest = hashlib.sha256()
            for chunk in value.chunks(CHUNK):
                digest.update(chunk)
            value.seek(0)
            return [value.name, value.content_type, digest.hexdigest()]
    return value


def too_deep() -> Problem:
    """Return the problem for a body that Python's JSON can read, but not write."""
    return Problem(400, "The body is nested too deeply.")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name is repeated")  # it is unclear which value is meant
    return dict(pairs)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("the number is too large for a float")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError("NaN and the infinities are not JSON")
