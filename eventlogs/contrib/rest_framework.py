"""
Django REST framework: what differs there from plain views (``eventlogs.contrib.http``).

The framework parses a body before the view runs, so ChangeRequest takes ``request.data``. Errors go
through its EXCEPTION_HANDLER, and pages of events through its pagination.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.http import HttpResponse
from rest_framework.exceptions import APIException
from rest_framework.pagination import BasePagination
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import exception_handler

from eventlogs.contrib import http
from eventlogs.contrib.http import LogEvents, Problem, Problems, event_as_json, events_page
from eventlogs.values import EventRecord

__all__ = ["ChangeRequest", "EventPagination", "EventSerializer", "handler_of"]

Handler = Callable[[Exception, Mapping[str, Any]], HttpResponse | None]


class ChangeRequest(http.ChangeRequest):
    """A request that changes a log, whose body the framework has parsed."""

    def read_body(self) -> Any:
        """Return ``request.data``."""
        data: Any = self.request.data  # type: ignore[attr-defined]
        return data


def handler_of(problems: Problems) -> Handler:
    """
    Return a function for ``REST_FRAMEWORK["EXCEPTION_HANDLER"]``.

    Errors of the framework become problems, too, with its status and headers. What is wrong with
    each field is the extension ``errors``, in the framework's words.
    """

    def handle(error: Exception, context: Mapping[str, Any]) -> HttpResponse | None:
        response = problems.response_of(error)
        if response is not None or not isinstance(error, APIException):
            return response
        answer = exception_handler(error, context)
        is_of_fields = isinstance(error.detail, list | dict)  # a field may have the name "detail"
        detail = None if is_of_fields else answer.data["detail"]
        problem = Problem(
            answer.status_code,
            str(detail) if detail else "Correct the values that are named in errors.",
            headers={
                name: value for name, value in answer.headers.items() if name != "Content-Type"
            },
            extensions={} if detail else {"errors": answer.data},
        )
        return problems.response_to(problem)

    return handle


class EventSerializer(BaseSerializer):  # type: ignore[misc]
    """Shows an EventRecord as ``eventlogs.contrib.http.event_as_json`` does."""

    def to_representation(self, instance: EventRecord) -> dict[str, Any]:
        """Return the JSON value."""
        return event_as_json(instance)


class EventPagination(BasePagination):  # type: ignore[misc]
    """
    Pages of a log's events, for a view whose ``get_queryset()`` returns LogEvents.

    The query parameters and errors are those of ``eventlogs.contrib.http.events_page``. The
    response is ``{"events", "next", "previous"}``, with the header Link. ``max_limit`` is the
    largest number of events of a page, and the default.
    """

    max_limit = 100

    def paginate_queryset(
        self, queryset: LogEvents, request: Any, view: Any = None
    ) -> list[EventRecord]:
        """Return the records of the page."""
        self.page = events_page(request, queryset.logs, queryset.log_id, max_limit=self.max_limit)
        return list(self.page.events)

    def get_paginated_response(self, data: Any) -> Any:
        """Return the response with the serialized records."""
        found = {"events": data, "next": self.page.next, "previous": self.page.previous}
        return Response(found, headers=self.page.headers)

    def get_paginated_response_schema(self, schema: Any) -> dict[str, Any]:
        """Return the OpenAPI schema of the response."""
        address = {"type": "string", "format": "uri-reference", "nullable": True}
        return {
            "type": "object",
            "required": ["events", "next", "previous"],
            "properties": {"events": schema, "next": address, "previous": address},
        }

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        """Return the OpenAPI schema of the query parameters."""
        index = {"type": "integer", "minimum": 0}
        limit = {"type": "integer", "minimum": 1, "maximum": self.max_limit}
        schemas = {"start": index, "limit": limit, "reverse": {"type": "boolean"}}
        return [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in schemas.items()
        ]
