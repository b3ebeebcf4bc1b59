"""Errors as problem+json, by the decorator of views and classes of views."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig
from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.urls import path
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from eventlogs import (
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
    LogId,
    LogMoved,
    LogNotFound,
    LogState,
    NameTaken,
    ProjectionFailed,
    SubjectForgotten,
    TransactionMustRetry,
    VersionNotReached,
)
from eventlogs.contrib.http import Problem, Problems
from eventlogs.models import EventLog
from tests.accounts import Account, Noted, Opened

LOG = LogId.new("account")
SECRET = "4111-1111"


class Overdrawn(Exception):
    """The project's own error."""


class Overdue(Overdrawn):
    """One of its subclasses."""


ERRORS: list[tuple[Exception, int, str]] = [
    (Problem(418, "No.", kind="teapot"), 418, "teapot"),
    (InvalidIdempotencyKey("must have 1 to 255 characters"), 400, ""),
    (InvalidEvent("it holds a NUL", event_type="a.b", path=f"$.{SECRET}"), 400, ""),
    (BadRequest(SECRET), 400, ""),
    (PermissionDenied(SECRET), 403, ""),
    (Http404(SECRET), 404, ""),
    (LogNotFound(LOG), 404, ""),
    (LogErased(LOG, erased_at=datetime.now(UTC)), 410, ""),
    (LogArchived(LOG, archived_at=datetime.now(UTC)), 409, "archived"),
    (LogMoved(LOG, using="default", to="shard_1", is_complete=False), 503, ""),
    (InvalidLogId(SECRET), 404, ""),
    (VersionNotReached(LOG, version=3, actual_version=2), 404, ""),
    (IdempotentReplay(SECRET, log_id=LOG, index=0, state=LogState(LOG, 1, 1)), 409, "done-before"),
    (LogAlreadyExists(LOG, actual_version=1), 409, "exists"),
    (ConcurrentAppend(LOG, expected_version=1, actual_version=2), 409, "lost-race"),
    (NameTaken("member.email", LOG), 409, "taken"),
    (
        ConstraintViolated("seats", log_id=LOG, position=1, constraint="one", fields=("seat",)),
        409,
        "constraint",
    ),
    (LogFull(LOG, actual_version=2**31 - 1, count=1), 409, "full"),
    (SubjectForgotten(SECRET, key_id=LOG.uuid), 410, "forgotten"),
    (
        IdempotencyKeyUndecided(SECRET, log_id=LOG, index=0, reason="forgotten"),
        410,
        "forgotten",
    ),
    (RequestDataTooBig(SECRET), 413, ""),
    (IdempotencyKeyReused(SECRET, log_id=LOG, index=0), 422, "key-reused"),
    (IdempotencyKeyUndecided(SECRET, log_id=LOG, index=0, event_type="a.b"), 503, ""),
    (TransactionMustRetry(using="default", sqlstate="40001"), 503, ""),
]
SERVERS = [
    InvalidEvent("an append takes 1 to 10,000 events, not 0"),
    ProjectionFailed("seats", log_id=LOG, position=1),
    EventLogError("unforeseen"),
    Overdrawn("unforeseen"),
    ValueError("unforeseen"),
]


def name_of(error: Exception) -> str:
    return type(error).__name__


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS, ids=lambda each: name_of(each))
def test_an_error_of_the_caller_is_a_problem_that_quotes_nothing(error, status, kind):
    response = Problems(types="https://api.example/problems/").response_of(error)

    assert response is not None
    problem = json.loads(response.content)
    assert response.status_code == problem["status"] == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert problem["title"]
    assert problem["detail"].endswith(".")
    type_ = f"https://api.example/problems/{kind}" if kind else "about:blank"
    assert problem["type"] == type_
    assert SECRET not in response.content.decode()
    assert LOG not in response.content.decode()


@pytest.mark.parametrize("error", SERVERS, ids=name_of)
def test_an_error_of_the_server_is_left_to_django(error):
    assert Problems().response_of(error) is None

    @Problems()
    def view(request: HttpRequest) -> HttpResponse:
        raise error

    with pytest.raises(type(error)):
        view(RequestFactory().get("/"))


@pytest.mark.parametrize(
    ("error", "seconds"), [(each, 1) for each, status, _ in ERRORS if status == 503]
)
def test_a_retry_that_helps_has_a_time(error, seconds):
    response = Problems().response_of(error)

    assert response is not None
    assert int(response.headers["Retry-After"]) >= seconds
    assert "Send the request again" in json.loads(response.content)["detail"]


def test_without_types_a_problem_is_blank():
    response = Problems().response_of(IdempotencyKeyReused("k", log_id=LOG, index=0))

    assert response is not None
    assert json.loads(response.content)["type"] == "about:blank"


def test_the_projects_own_errors_come_first_and_hold_for_subclasses():
    problems = Problems(
        {
            Overdrawn: 409,
            LogNotFound: lambda _: Problem(410, "It is gone."),
            Http404: None,
        }
    )

    found = [problems.problem_of(each) for each in (Overdue("Not enough."), LogNotFound(LOG))]

    assert [(each.status, each.detail) for each in found] == [
        (409, "Not enough."),
        (410, "It is gone."),
    ]
    assert problems.problem_of(Http404()) is None


def test_a_problem_is_answered_as_it_is():
    problems = Problems({EventLogError: 500, Exception: 500})

    assert problems.problem_of(Problem(412, "Changed.")).status == 412


def test_a_problem_has_headers_and_extensions():
    problem = Problem(429, "Wait.", headers={"Retry-After": "9"}, extensions={"limit": 5})

    response = problem.response()

    assert response.headers["Retry-After"] == "9"
    assert json.loads(response.content) == {
        "type": "about:blank",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "Wait.",
        "limit": 5,
    }


def test_a_problem_is_an_error_of_eventlogs_and_can_be_pickled():
    problem = Problem(429, "Wait.", kind="busy", headers={"Retry-After": "9"})

    copy = pickle.loads(pickle.dumps(problem))

    assert isinstance(copy, EventLogError)
    assert str(copy) == "Wait."
    assert vars(copy) == vars(problem)


def test_a_status_that_is_not_registered_has_a_title():
    assert Problem(420, "Wait.").as_json()["title"] == "Error"


@pytest.mark.parametrize(
    "arguments",
    [{"status": 200}, {"status": 600}, {"status": 400, "extensions": {"detail": "x"}}],
)
def test_what_is_no_problem_is_a_value_error(arguments):
    with pytest.raises(ValueError, match=r"status|member"):
        Problem(detail="x", **arguments)


# In views


problems = Problems({Overdrawn: 409})


@problems
def overdraw(request: HttpRequest) -> HttpResponse:
    raise Overdrawn("Not enough.")


@problems
async def aoverdraw(request: HttpRequest) -> HttpResponse:
    raise Overdrawn("Not enough.")


@csrf_exempt
@problems
@require_POST
def post_only(request: HttpRequest) -> HttpResponse:
    return HttpResponse("done")


@problems
class Api(View):
    pass


class Sync(Api):
    def get(self, request: HttpRequest) -> HttpResponse:
        raise Overdrawn("Not enough.")


class Async(Api):
    async def get(self, request: HttpRequest) -> HttpResponse:
        raise Overdrawn("Not enough.")


@problems
def append_and_fail(request: HttpRequest) -> HttpResponse:
    Account.logs.create(Opened("ada"))
    raise Overdrawn("Not enough.")


@problems
def store_too_much(request: HttpRequest) -> HttpResponse:
    Account.logs.create(Noted("\x00"))
    return HttpResponse()


VIEWS: dict[str, Any] = {
    "overdraw": overdraw,
    "aoverdraw": aoverdraw,
    "post": post_only,
    "sync": Sync.as_view(),
    "async": Async.as_view(),
    "append": append_and_fail,
    "much": store_too_much,
}
urlpatterns = [path(f"{name}/", view) for name, view in VIEWS.items()]


@pytest.fixture(autouse=True)
def site(settings):
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = []


@pytest.mark.parametrize("name", ["overdraw", "aoverdraw", "sync", "async"])
def test_views_and_classes_of_views_are_decorated(client, async_client, name):
    for response in (
        client.get(f"/{name}/"),
        async_to_sync(async_client.get)(f"/{name}/"),
    ):
        assert (response.status_code, response.json()["detail"]) == (409, "Not enough.")


@pytest.mark.parametrize(("name", "allow"), [("post", "POST"), ("sync", "GET, HEAD, OPTIONS")])
def test_another_method_is_a_problem(client, name, allow):
    response = client.delete(f"/{name}/")

    assert response.status_code == 405
    assert response.headers["Allow"] == allow
    assert response.json()["detail"] == f"This address accepts {allow}."


def test_a_decorated_view_keeps_its_marks(client):
    assert Client(enforce_csrf_checks=True).post("/post/").content == b"done"
    assert overdraw.__name__ == "overdraw"


@pytest.mark.django_db(transaction=True)
def test_a_problem_rolls_the_transaction_of_the_request_back(client, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    assert client.get("/append/").status_code == 409

    assert not EventLog.objects.exists()


@pytest.mark.django_db
def test_data_that_cannot_be_stored_is_400(client):
    response = client.get("/much/")

    assert response.status_code == 400
    assert "cannot be stored" in response.json()["detail"]
