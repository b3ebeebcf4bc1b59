"""
django-ninja: what differs there from plain views (``eventlogs.contrib.http``).

An API has its own handlers of errors, and its own pagination. ``ChangeRequest``, ``with_etag`` and
``event_stream`` are used as they are.
"""

from __future__ import annotations

from typing import Any, Final

from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse
from django.http.multipartparser import MultiPartParserError
from ninja import Field, NinjaAPI, Schema
from ninja.errors import HttpError, ValidationError
from ninja.pagination import AsyncPaginationBase

from eventlogs.conf import MAX_VERSION
from eventlogs.contrib.http import (
    LogEvents,
    Problem,
    Problems,
    aevents_page,
    events_page,
)
from eventlogs.exceptions import EventLogError

__all__ = ["EventOut", "EventPagination", "add_problem_handlers"]

HANDLED: Final[tuple[type[Exception], ...]] = (
    *(EventLogError, Problem, HttpError, ValidationError),
    *(Http404, PermissionDenied, BadRequest, RequestDataTooBig, MultiPartParserError),
)


def add_problem_handlers(api: NinjaAPI, problems: Problems) -> None:
    """
    Let an API answer errors as problem+json: those of ``problems``, and django-ninja's own.

    A request that does not fit its schema is a problem with status 422. Its extension ``errors``
    has the place, the rule and the message of each error, without the value.
    """

    def handle(request: HttpRequest, error: Any) -> HttpResponse:
        response = problems.response_of(error)
        if response is not None:
            return response
        problem = _problem_of(error)
        if problem is None:
            raise error  # 500
        return problems.response_to(problem)

    for cls in {*HANDLED, *problems.table}:
        api.add_exception_handler(cls, handle)


def _problem_of(error: Exception) -> Problem | None:
    if isinstance(error, ValidationError):
        errors = [
            {name: each[name] for name in ("loc", "type", "msg") if name in each}
            for each in error.errors
        ]
        detail = "Correct the values that are named in errors."
        return Problem(422, detail, kind="invalid", extensions={"errors": errors})
    if isinstance(error, HttpError):
        wait = getattr(error, "wait", None)
        headers = {} if wait is None else {"Retry-After": str(wait)}
        return Problem(error.status_code, str(error), headers=headers)
    return None


class EventOut(Schema):
    """An event, as ``eventlogs.contrib.http.event_as_json`` shows it."""

    index: int
    type: str
    data: Any
    recorded_at: str = Field(json_schema_extra={"format": "date-time"})  # with microseconds


class EventPagination(AsyncPaginationBase):
    """
    Pages of a log's events, for an operation that returns LogEvents.

    ::

        @api.get("/payments/{payment_id}/events/", response=list[EventOut])
        @paginate(EventPagination)
        def events(request, payment_id: str):
            return LogEvents(payments, payment_id)

    The query parameters are those of ``eventlogs.contrib.http.events_page``, and the response is
    ``{"events", "next", "previous"}``. ``max_limit`` is the largest number of events of a page, and
    the default. A parameter that is out of range is an error of validation (422); a limit above
    ``max_limit`` is a Problem (400).
    """

    class Input(Schema):
        """The query parameters."""

        start: int | None = Field(None, ge=0, le=MAX_VERSION)
        limit: int | None = Field(None, ge=1)
        reverse: bool = False

    class Output(Schema):
        """The response."""

        events: list[Any]
        next: str | None
        previous: str | None

    items_attribute = "events"

    def __init__(self, *, max_limit: int = 100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_limit = max_limit

    def paginate_queryset(
        self, queryset: Any, pagination: Any, request: HttpRequest, **params: Any
    ) -> dict[str, Any]:
        """Return the page."""
        found: LogEvents = queryset
        return events_page(request, *found, max_limit=self.max_limit).as_json()

    async def apaginate_queryset(
        self, queryset: Any, pagination: Any, request: HttpRequest, **params: Any
    ) -> dict[str, Any]:
        """Return the page, for an async operation."""
        found: LogEvents = queryset
        page = await aevents_page(request, *found, max_limit=self.max_limit)
        return page.as_json()
