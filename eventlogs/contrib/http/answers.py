"""Answers with the state of a log: entity tags, conditional requests, earlier states."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.utils.cache import get_conditional_response, patch_vary_headers
from django.utils.encoding import iri_to_uri

from eventlogs.aggregates import Aggregate
from eventlogs.contrib.http.parameters import moment, whole_number
from eventlogs.contrib.http.problems import Problem
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.values import LogState, Reduction

A = TypeVar("A", bound=Aggregate)

CACHING: Final = "private, no-cache"  # only by the caller, who has to ask whether it is current
CALLER: Final = ("Authorization", "Cookie")


def with_etag(
    request: HttpRequest,
    response: HttpResponse,
    state: LogState | Reduction[Any],
    *,
    location: str | None = None,
) -> HttpResponse:
    """
    Return ``response`` with the ETag of ``state``; or 304, if a GET has it in If-None-Match.

    ``location`` is the address of what was created, for a response 201. Unless the response says
    otherwise, no shared cache stores it, and the caller's own cache asks each time whether it is
    current (RFC 9111, sections 5.2.2.4 and 5.2.2.7). Where the response says no-store, it is never
    a 304: say so where a state has personal data, since forgetting them does not change the ETag.

    Responses of Django, of Django REST framework and of django-ninja are accepted. Raise Problem
    (412) for a GET with an If-Match that does not match.
    """
    response.headers["ETag"] = state.etag
    response.headers.setdefault("Cache-Control", CACHING)
    patch_vary_headers(response, CALLER)
    if location is not None:
        response.headers["Location"] = iri_to_uri(location)
    if request.method not in ("GET", "HEAD"):  # the precondition was about the state before it
        return response
    found = get_conditional_response(request, etag=state.etag, response=response)
    if found is not None and found.status_code == 412:
        raise Problem(412, "This has changed, or never had the ETag of your If-Match.")
    # A 304 would let the caller show on what it has kept, against what the response says.
    if found is not None and found.status_code == 304 and "no-store" in response["Cache-Control"]:
        return response
    return response if found is None else found


def reduce_for(request: HttpRequest, logs: LogManager[A], log_id: LogId | str) -> Reduction[A]:
    """
    Return the current reduction, or that as of ``?version=2`` or ``?at=2026-01-31T12:00:00Z``.

    Raise Problem (400) for a malformed parameter, or for both; and what ``LogManager.reduce``
    raises.
    """
    version = whole_number(request, "version", lowest=1)
    at = moment(request, "at")
    if version is not None and at is not None:
        raise Problem(400, "Give either version or at, not both.")
    return logs.reduce(log_id, version=version, at=at)


areduce_for = sync_to_async(reduce_for, thread_sensitive=True)
"""Do the same as ``reduce_for``, for async code."""
