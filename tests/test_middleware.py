"""The event context of a request: user, ids and trace."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth import alogin, login, logout
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import path

from eventlogs import event_context
from eventlogs.context import carried, current
from eventlogs.middleware import EventContextMiddleware, id_from_header
from eventlogs.models import Event
from tests.accounts import Account, Deposited, Opened
from tests.test_context import TRACE

pytestmark = pytest.mark.django_db
ASKS_FOR_A_USER = 'FROM "auth_user"'
MIDDLEWARE = "eventlogs.middleware.EventContextMiddleware"


def answer(*states: Any) -> HttpResponse:
    """Return the metadata of the last event of each append."""
    found = [
        Event.objects.for_log(each.log_id).get(index=each.version - 1).metadata for each in states
    ]
    return JsonResponse({"metadata": found})


def append_twice(request: HttpRequest) -> HttpResponse:
    state = Account.logs.create(Opened("ada"))
    return answer(state, Account.logs.append(state, Deposited(1), metadata={"till": 1}))


def append_nothing(request: HttpRequest) -> HttpResponse:
    return HttpResponse(carried() or "")


def append_around_a_login(request: HttpRequest) -> HttpResponse:
    before = Account.logs.create(Opened("ada"))
    login(request, User.objects.get(username="eve"), "django.contrib.auth.backends.ModelBackend")
    between = Account.logs.create(Opened("ada"))
    logout(request)
    return answer(before, between, Account.logs.create(Opened("ada")))


def raise_an_error(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


async def aappend_twice(request: HttpRequest) -> HttpResponse:
    state = await Account.logs.acreate(Opened("ada"))
    other = await Account.logs.aappend(state, Deposited(1), metadata={"till": 1})
    return await sync_to_async(answer)(state, other)


async def aappend_at_once(request: HttpRequest) -> HttpResponse:
    states = await asyncio.gather(*(Account.logs.acreate(Opened(f"{n}")) for n in range(5)))
    return await sync_to_async(answer)(*states)


async def aappend_of_a_loaded_user(request: HttpRequest) -> HttpResponse:
    await request.auser()
    return await aappend_twice(request)


async def aappend_around_a_login(request: HttpRequest) -> HttpResponse:
    before = await Account.logs.acreate(Opened("ada"))
    user = await User.objects.aget(username="eve")
    await alogin(request, user, "django.contrib.auth.backends.ModelBackend")
    return await sync_to_async(answer)(before, await Account.logs.acreate(Opened("ada")))


VIEWS: list[Callable[..., Any]] = [
    *[append_twice, append_nothing, append_around_a_login, raise_an_error],
    *[aappend_twice, aappend_at_once, aappend_of_a_loaded_user, aappend_around_a_login],
]
urlpatterns = [path(f"{each.__name__}/", each) for each in VIEWS]


@pytest.fixture(autouse=True)
def site(settings):
    """A site with these views and the middleware."""
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        MIDDLEWARE,
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]


@pytest.fixture
def ada(client: Client) -> User:
    user = User.objects.create_user("ada", password="x")
    client.force_login(user)
    return user


def called(client: Client, view: Callable[..., Any], **headers: str) -> list[dict[str, Any]]:
    response = client.get(f"/{view.__name__}/", headers=headers)
    found: list[dict[str, Any]] = response.json()["metadata"]
    return found


def acalled(view: Callable[..., Any], user: User, **headers: str) -> list[dict[str, Any]]:
    """Do the same through ASGI."""

    async def call() -> list[dict[str, Any]]:
        client = AsyncClient()
        await client.aforce_login(user)
        response = await client.get(f"/{view.__name__}/", headers=headers)
        found: list[dict[str, Any]] = response.json()["metadata"]
        return found

    return async_to_sync(call)()


def test_events_have_the_user_the_request_and_its_flow(client, ada):
    headers = {"X-Request-ID": "r-1", "X-Correlation-ID": "c/2", "traceparent": TRACE}

    first, second = called(client, append_twice, **headers)

    assert first == {
        "user": str(ada.pk),
        "request_id": "r-1",
        "correlation_id": "c/2",
        "traceparent": TRACE,
    }
    assert second == {**first, "till": 1}
    assert current.get() is None


def test_without_headers_and_a_user_there_is_an_id_of_the_request(client):
    first, second = called(client, append_twice)
    [other, _] = called(client, append_twice)

    assert len(first["request_id"]) == 32
    assert first == dict.fromkeys(("request_id", "correlation_id"), first["request_id"])
    assert second == {**first, "till": 1}
    assert other["request_id"] != first["request_id"]


@pytest.mark.parametrize(
    "value",
    ["", "a b", "a,b", "x" * 129, "é", "a\0", "<script>", 'a"b', "a'b", "\udc80", "a\\", "{}"],
)
def test_invalid_headers_are_ignored(value):
    request = RequestFactory().get("/")
    for name in ("X_REQUEST_ID", "X_CORRELATION_ID", "TRACEPARENT"):
        request.META[f"HTTP_{name}"] = value

    response = EventContextMiddleware(append_twice)(request)

    assert isinstance(response, HttpResponse)
    [first] = Event.objects.filter(index=0)
    assert set(first.metadata) == {"request_id", "correlation_id"}
    assert len(first.metadata["request_id"]) == 32


def test_the_user_is_looked_up_by_the_first_append_only(client, ada):
    with CaptureQueriesContext(connection) as queries:
        client.get("/append_nothing/")
    assert len(queries) == 0

    with CaptureQueriesContext(connection) as queries:
        called(client, append_twice)
    sql = [each["sql"] for each in queries]
    assert sum(ASKS_FOR_A_USER in each for each in sql) == 1
    assert sum('FROM "django_session"' in each for each in sql) == 1


def test_a_message_has_the_user_only_if_it_is_loaded(client, ada, settings):
    assert '"user"' not in client.get("/append_nothing/").content.decode()

    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    client = Client()  # with this middleware
    client.force_login(ada)
    assert f'"user":"{ada.pk}"' in client.get("/append_nothing/").content.decode()


def test_a_login_and_a_logout_change_only_the_user(client, ada):
    eve = User.objects.create_user("eve")

    before, between, after = called(client, append_around_a_login)

    assert (before["user"], between["user"], after.get("user")) == (str(ada.pk), str(eve.pk), None)
    assert before["request_id"] == between["request_id"] == after["request_id"]


def test_a_request_has_its_own_context_to_which_blocks_add(client, settings):
    with event_context(user="test", job="x"):
        first, _ = called(client, append_twice)

    assert set(first) == {"request_id", "correlation_id"}

    request = RequestFactory().get("/")

    @event_context(user="import", correlation_id=None)
    def view(request: HttpRequest) -> HttpResponse:
        return append_twice(request)

    EventContextMiddleware(view)(request)
    event = Event.objects.order_by("position").last()
    assert event is not None
    assert set(event.metadata) == {"user", "request_id", "till"}


def test_the_context_ends_with_a_request_that_fails(client):
    with pytest.raises(ZeroDivisionError):
        client.get("/raise_an_error/")

    assert current.get() is None


def tenant(request: HttpRequest) -> str | None:
    return id_from_header(request, "X-Tenant")


def number_of_users(request: HttpRequest) -> int:
    return User.objects.count()


def fails(request: HttpRequest) -> str:
    raise RuntimeError("secret")


def is_long(request: HttpRequest) -> str:
    return "x" * 1_000


def is_no_json(request: HttpRequest) -> object:
    return object()


async def is_async(request: HttpRequest) -> str:
    return "x"


def test_the_setting_adds_replaces_and_removes_names(client, settings):
    settings.EVENTLOGS = {
        "CONTEXT": {
            "tenant": f"{__name__}.tenant",
            "users": number_of_users,
            "request_id": f"{__name__}.tenant",
            "traceparent": None,
            "user": None,
        }
    }

    first, _ = called(client, append_twice, **{"X-Tenant": "acme", "traceparent": TRACE})

    assert first == {
        "tenant": "acme",
        "users": 0,
        "request_id": "acme",
        "correlation_id": "acme",
    }


@pytest.mark.parametrize(
    "source", [fails, is_long, is_no_json, is_async, "nowhere.at_all", "nothing", 7, {}]
)
def test_a_function_that_fails_does_not_fail_the_append(client, settings, source, caplog):
    settings.EVENTLOGS = {"CONTEXT": {"wrong": source}}

    with caplog.at_level(logging.WARNING, "eventlogs.context"):
        first, _ = called(client, append_twice)

    assert set(first) == {"request_id", "correlation_id"}
    [message] = caplog.messages
    assert message.startswith("EVENTLOGS['CONTEXT']['wrong'] ")
    assert "secret" not in message


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "view", [append_twice, aappend_twice, aappend_at_once, aappend_of_a_loaded_user]
)
@pytest.mark.parametrize("group_commit", ["connection", "process"])
def test_async_views_have_the_same_context(settings, view, group_commit):
    settings.EVENTLOGS = {"GROUP_COMMIT": group_commit}
    ada = User.objects.create_user("ada")

    found = acalled(view, ada, **{"X-Request-ID": "r-1"})

    expected = {"user": str(ada.pk), "request_id": "r-1", "correlation_id": "r-1"}
    assert [{**each, "till": 1} for each in found] == [{**expected, "till": 1}] * len(found)


@pytest.mark.django_db(transaction=True)
def test_a_login_in_async_code_changes_the_user():
    ada, eve = User.objects.create_user("ada"), User.objects.create_user("eve")

    before, after = acalled(aappend_around_a_login, ada)

    assert (before["user"], after["user"]) == (str(ada.pk), str(eve.pk))


@pytest.mark.django_db(transaction=True)
def test_a_user_that_is_loaded_in_async_code_is_not_looked_up_again():
    ada = User.objects.create_user("ada")

    counts = []
    for view in (aappend_twice, aappend_of_a_loaded_user):
        with CaptureQueriesContext(connection) as queries:
            acalled(view, ada)
        counts.append(sum(ASKS_FOR_A_USER in each["sql"] for each in queries.captured_queries))

    assert counts == [1, 1]


@pytest.mark.django_db(transaction=True)
def test_concurrent_requests_have_their_own_contexts():
    async def main() -> list[list[dict[str, Any]]]:
        client = AsyncClient()
        responses = await asyncio.gather(
            *(
                client.get("/aappend_at_once/", headers={"X-Request-ID": f"r-{number}"})
                for number in range(10)
            )
        )
        return [each.json()["metadata"] for each in responses]

    found = async_to_sync(main)()

    ids = [{each["request_id"] for each in metadata} for metadata in found]
    assert ids == [{f"r-{number}"} for number in range(10)]
