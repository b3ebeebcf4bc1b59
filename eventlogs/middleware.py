"""
The event context of a request: its user, its id, the id of its flow, and its trace.

``"eventlogs.middleware.EventContextMiddleware"`` adds them to the metadata of all events that are
appended while a request is handled. ``EVENTLOGS["CONTEXT"]`` names the function for each.

Anybody can send headers, so an id of an unusual form or length is ignored. Ids of headers help to
find events; they prove nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from secrets import token_hex
from typing import Any, Final, NamedTuple, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import SynchronousOnlyOperation
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.functional import LazyObject, empty
from django.utils.module_loading import import_string

from eventlogs import conf
from eventlogs.context import NOTHING, Layer, Members, entered, member, valid_traceparent
from eventlogs.events.metadata import REQUEST, USER

__all__ = [
    "EventContextMiddleware",
    "correlation_id",
    "id_from_header",
    "request_id",
    "traceparent",
    "user",
]

logger = logging.getLogger("eventlogs.context")

MAX_VALUE_BYTES: Final = 1_000  # of the JSON of one name and its value
# No comma: servers join several headers of one name with commas.
ID: Final = re.compile(r"[A-Za-z0-9._~:;/+=@-]{1,128}")
MADE: Final = "_eventlogs_request_id"  # the attribute of a request with the id made for it

Source = Callable[[HttpRequest], Any]


class EventContextMiddleware:
    """
    Add the context of a request to the metadata of the events that are appended in it.

    The first append of a request looks up ``request.user``, unless the view has loaded it. That
    takes Django's queries for the session and the user, once in a request. The context ends when
    the view returns, so it does not include appends of a streaming response.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]
    ) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Handle a request in its context."""
        if self.is_async:
            return self._handle(request)
        with entered(RequestLayer(request)):
            return self.get_response(request)

    async def _handle(self, request: HttpRequest) -> HttpResponseBase:
        with entered(RequestLayer(request)):
            return await cast("Awaitable[HttpResponseBase]", self.get_response(request))


# The functions of EVENTLOGS["CONTEXT"]


def user(request: HttpRequest) -> str | None:
    """Return the primary key of the user as text, or None for an anonymous one."""
    found: Any = getattr(request, "user", None)
    if is_unloaded(found):
        # Set by `await request.auser()`, which does not load request.user.
        found = getattr(request, "_acached_user", found)
    if not getattr(found, "is_authenticated", False):
        return None
    key = getattr(found, "pk", None)
    return None if key is None else str(key)


def request_id(request: HttpRequest) -> str:
    """Return the id in the header X-Request-ID, or one made for the request."""
    found = _id_in(request, "HTTP_X_REQUEST_ID") or vars(request).get(MADE)
    # setdefault() is atomic: threads of one request agree.
    return found or str(vars(request).setdefault(MADE, token_hex(16)))


def correlation_id(request: HttpRequest) -> Any:
    """Return the id in the header X-Correlation-ID, or else the id of the request."""
    found: Any = _id_in(request, "HTTP_X_CORRELATION_ID")
    if found is None and (source := conf.context().get(REQUEST)) is not None:
        found = function_of(source)(request)
    return request_id(request) if found is None else found


def traceparent(request: HttpRequest) -> str | None:
    """Return the header traceparent (W3C Trace Context), or None if it is missing or invalid."""
    return valid_traceparent(request.META.get("HTTP_TRACEPARENT"))


def id_from_header(request: HttpRequest, name: str) -> str | None:
    """
    Return the id in a header, or None if the header is missing or has another form.

    An id has 1 to 128 ASCII letters, digits and characters of ``._~:;/+=@-``.
    """
    return _id_in(request, f"HTTP_{name.upper().replace('-', '_')}")


def _id_in(request: HttpRequest, key: str) -> str | None:
    value = request.META.get(key)
    return value if isinstance(value, str) and ID.fullmatch(value) else None


class Known(NamedTuple):
    """The members of a request's layer, and the object that was its user then."""

    user: Any
    members: Members


class RequestLayer(Layer):
    """The layer of a request. It is made at the first append, and again after a login or logout."""

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(NOTHING)
        self._request = request
        self._known: Known | None = None

    def members(self, *, asks: bool = True) -> Members:
        """Return the members; with ``asks=False``, leave out a user that is not loaded."""
        known, user = self._known, getattr(self._request, "user", None)
        if known is not None and known.user is user:
            return known.members
        if not asks and is_unloaded(user):
            return dict(self._found(asks=False, names_user=False))
        found = dict(self._found(asks=asks))
        if asks:
            self._known = Known(user, found)
        return found

    @property
    def is_known(self) -> bool:
        """Whether the members are known, so that ``members()`` needs no query."""
        known = self._known
        return known is not None and known.user is getattr(self._request, "user", None)

    def _found(self, *, asks: bool, names_user: bool = True) -> Iterator[tuple[str, str]]:
        """Yield the members. A function that fails is left out and logged: no append fails."""
        for name, source in conf.context().items():
            if name == USER and not names_user:
                continue
            try:
                value = function_of(source)(self._request)
                found = None if value is None else member(name, value)
            except SynchronousOnlyOperation:  # a query in the thread of an event loop
                if asks:
                    raise
                continue
            except Exception as error:
                # Not its text, which may show data.
                logger.warning(
                    "EVENTLOGS['CONTEXT'][%r] failed with %s: the events of this request have no "
                    "%s. Correct the function.",
                    *(name, type(error).__name__, name),
                )
                continue
            if found is None:
                continue
            if len(found) <= MAX_VALUE_BYTES:
                yield name, found
            else:
                logger.warning(
                    "EVENTLOGS['CONTEXT'][%r] returned more than %s bytes of JSON: the events of "
                    "this request have no %s. Return less.",
                    *(name, f"{MAX_VALUE_BYTES:,}", name),
                )


def is_unloaded(user: Any) -> bool:
    """Return whether the user of a request is still to be looked up."""
    return isinstance(user, LazyObject) and vars(user).get("_wrapped", empty) is empty


@lru_cache(maxsize=64)
def function_of(source: str | Source) -> Source:
    """Return the function of a setting; raise ImportError or TypeError if there is none."""
    found: Any = import_string(source) if isinstance(source, str) else source
    if not callable(found) or iscoroutinefunction(found):
        raise TypeError("It must be a function, not an async one.")
    made: Source = found
    return made
