"""
Error responses: ``application/problem+json`` (RFC 9457), from one table for all frameworks.

A problem never quotes the request or an error's own message, because problems are written to log
files. The messages of the project's own exceptions are shown if its table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from inspect import iscoroutine
from typing import Any, Final, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig
from django.db import connections
from django.http import Http404, HttpResponseNotAllowed, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase

from eventlogs.exceptions import (
    ConcurrentAppend,
    ConstraintViolated,
    EventLogError,
    IdempotencyKeyReused,
    IdempotencyKeyUndecided,
    IdempotentReplay,
    InvalidEvent,
    InvalidIdempotencyKey,
    InvalidLogId,
    LogAlreadyExists,
    LogArchived,
    LogErased,
    LogFull,
    LogMoved,
    LogNotFound,
    NameTaken,
    SubjectForgotten,
    TransactionMustRetry,
    VersionNotReached,
)

F = TypeVar("F", bound=Callable[..., Any])

BLANK: Final = "about:blank"  # a problem that its status explains (RFC 9457, section 4.2.1)
CONTENT_TYPE: Final = "application/problem+json"


class Problem(EventLogError):
    """
    An error response; raise it in a view, or in a decider.

    ``status`` is 400 to 599. ``detail`` says what to do next; do not quote the request in it.
    ``kind`` tells problems with the same status apart: see ``Problems``. ``extensions`` are further
    members of the JSON object (RFC 9457, section 3.2).

    Raise ValueError for a status that is no error, or an extension with the name of a member.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str = "",
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = int(status)
        self.detail = detail
        self.kind = kind
        self.headers = dict(headers or {})
        self.extensions = dict(extensions or {})
        if not 400 <= self.status <= 599:
            raise ValueError(f"status is {self.status}. It must be from 400 to 599.")
        if taken := self.extensions.keys() & {"type", "title", "status", "detail", "instance"}:
            raise ValueError(f"{min(taken)!r} is a member of every problem. Rename the extension.")

    def as_json(self, *, types: str = "") -> dict[str, Any]:
        """Return the JSON object; ``types`` is the prefix of its ``type``: see ``Problems``."""
        return {
            "type": f"{types}{self.kind}" if types and self.kind else BLANK,
            "title": _title_of(self.status),
            "status": self.status,
            "detail": self.detail,
            **self.extensions,
        }

    def response(self, *, types: str = "") -> JsonResponse:
        """Return the response. No cache stores it: a 404 may be wrong a moment later."""
        return JsonResponse(
            self.as_json(types=types),
            status=self.status,
            headers={"Cache-Control": "no-store", **self.headers},
            content_type=CONTENT_TYPE,
        )


def _title_of(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # a status that is not registered
        return "Error"


Answer = int | Callable[[Any], Problem] | None


class Problems:
    """
    The table of errors and their responses, and a decorator of views.

    ``table`` has the project's own exceptions, or other answers for those below. A value is a
    status, for which the error's message becomes the detail; a function that returns a Problem for
    the error; or None, to leave the error to Django. An entry for a class holds for its subclasses.

    ``types`` is a prefix, best the URL of a page in the API's documentation. With it, a problem of
    the kind ``key-reused`` has the type ``<types>key-reused``; otherwise ``about:blank``.

    Errors of eventlogs and of Django on which a caller can act are in the table already; all
    others are raised, and become Django's response 500.
    """

    def __init__(
        self, table: Mapping[type[Exception], Answer] | None = None, *, types: str = ""
    ) -> None:
        self.table = dict(table or {})
        self.types = types

    def __call__(self, view: F) -> F:
        """
        Decorate a view, sync or async, or a class of views, for itself and its subclasses.

        A response 405 becomes a problem, too.
        """
        if isinstance(view, type):
            cast("Any", view).dispatch = self(cast("Any", view).dispatch)
            return cast("F", view)
        if iscoroutinefunction(view):

            @wraps(view)
            async def answer(*args: Any, **kwargs: Any) -> HttpResponseBase:
                return await self._awaited(view(*args, **kwargs))

        else:

            @wraps(view)
            def answer(*args: Any, **kwargs: Any) -> Any:
                try:
                    response = view(*args, **kwargs)
                except Exception as error:
                    return self._answer(error)
                # The dispatch() of a class with async methods returns a coroutine.
                return self._awaited(response) if iscoroutine(response) else self._clean(response)

        return cast("F", answer)

    def problem_of(self, error: Exception) -> Problem | None:
        """Return the problem for an error, or None for an error that is not the caller's."""
        if isinstance(error, Problem):
            return error
        for cls in type(error).__mro__:
            if cls in self.table:
                return _made(self.table[cls], error)
        return known_problem(error)

    def response_of(self, error: Exception) -> JsonResponse | None:
        """
        Return the response for an error, or None for an error that is not the caller's.

        With ``ATOMIC_REQUESTS``, the transaction of the request is rolled back, as it is for an
        error that leaves the view.
        """
        problem = self.problem_of(error)
        return None if problem is None else self.response_to(problem)

    def response_to(self, problem: Problem) -> JsonResponse:
        """Return the response with a problem, and roll the transaction of the request back."""
        roll_back()
        return problem.response(types=self.types)

    def _answer(self, error: Exception) -> JsonResponse:
        response = self.response_of(error)
        if response is None:
            raise error
        return response

    async def _awaited(self, response: Any) -> HttpResponseBase:
        try:
            return self._clean(await response)
        except Exception as error:
            return self._answer(error)

    def _clean(self, response: HttpResponseBase) -> HttpResponseBase:
        if not isinstance(response, HttpResponseNotAllowed):
            return response
        allowed = response.headers["Allow"]
        return Problem(
            405,
            f"This address accepts {allowed or 'no method'}.",
            headers={"Allow": allowed},
        ).response(types=self.types)


def roll_back() -> None:
    """Roll back the transactions that ``ATOMIC_REQUESTS`` has opened for this request."""
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
            connection.set_rollback(True)


def _made(answer: Answer, error: Exception) -> Problem | None:
    if answer is None:
        return None
    return answer(error) if callable(answer) else Problem(answer, str(error))


def known_problem(error: Exception) -> Problem | None:
    """Return the problem for an error of eventlogs or Django, or None for any other error."""
    match error:
        case InvalidIdempotencyKey():
            return Problem(400, f"The idempotency key {error.limit}.")
        case InvalidEvent(event_type=str()):  # without a type, the code of the server is wrong
            return Problem(400, f"A value cannot be stored: {error.limit}.")
        case BadRequest() | MultiPartParserError():
            return Problem(400, "The request cannot be read. Correct it.")
        case PermissionDenied():
            return Problem(403, "You may not do this.")
        case LogErased():
            return Problem(410, "What was at this address was erased, for good.")
        case LogArchived():
            return Problem(
                409, "This was closed and archived. It takes no more changes.", kind="archived"
            )
        case LogMoved():
            return Problem(
                503,
                "This is being moved to another database. Send the request again, with the same "
                "Idempotency-Key if it had one.",
                headers={"Retry-After": "5"},
            )
        case LogNotFound() | InvalidLogId() | Http404():
            return Problem(404, "There is, or was then, nothing at this address.")
        case VersionNotReached():
            return Problem(404, "This version has not been reached.")
        case IdempotentReplay():
            return Problem(409, "This was done before. Get the result.", kind="done-before")
        case LogAlreadyExists():
            return Problem(409, "It exists already. Get it.", kind="exists")
        case ConcurrentAppend():
            return Problem(
                409,
                "Other requests changed this first. Send the request again, with the same "
                "Idempotency-Key if it had one.",
                kind="lost-race",
                headers={"Retry-After": "1"},
            )
        case NameTaken():
            return Problem(409, f"{error.scope} is taken. Choose another value.", kind="taken")
        case ConstraintViolated():
            return Problem(409, "A rule about other data does not allow this.", kind="constraint")
        case LogFull():
            return Problem(409, "This takes no more changes.", kind="full")
        case RequestDataTooBig():
            return Problem(413, "The body is too large for this API.")
        case IdempotencyKeyReused():
            return Problem(
                422,
                "This Idempotency-Key was used for another request. Use a new key for a new "
                "request.",
                kind="key-reused",
            )
        case SubjectForgotten() | IdempotencyKeyUndecided(reason="forgotten"):
            return Problem(410, "The person that this is about was forgotten.", kind="forgotten")
        case IdempotencyKeyUndecided():
            return Problem(
                503,
                "A new version of this API is being deployed. Send the request again with the "
                "same Idempotency-Key.",
                headers={"Retry-After": "10"},
            )
        case TransactionMustRetry():
            return Problem(
                503,
                "The database is busy. Send the request again, with the same Idempotency-Key if it "
                "had one.",
                headers={"Retry-After": "1"},
            )
    return None
