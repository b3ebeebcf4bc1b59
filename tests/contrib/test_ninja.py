"""The HTTP kit with django-ninja, through real requests."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

pytest.importorskip("ninja", reason="django-ninja is not installed")

from asgiref.sync import async_to_sync
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from ninja import File, Form, NinjaAPI, Schema, UploadedFile
from ninja.errors import HttpError
from ninja.pagination import paginate

from eventlogs.contrib.http import ChangeRequest, LogEvents, Problems, reduce_for, with_etag
from eventlogs.contrib.ninja import EventOut, EventPagination, add_problem_handlers
from eventlogs.models import EventLog
from tests.accounts import Account, Deposited, Opened, Overdrawn, withdraw

pytestmark = pytest.mark.django_db
accounts = Account.logs

api = NinjaAPI(urls_namespace="eventlogs-tests")
add_problem_handlers(api, Problems({Overdrawn: 409}, types="urn:example:"))


class Amount(Schema):
    amount: int


def shown(request: HttpRequest, reduction: Any, **options: Any) -> HttpResponse:
    body = {"id": str(reduction.log_id), "balance": reduction.aggregate.balance}
    status = 201 if "location" in options else 200
    return with_etag(
        request, api.create_response(request, body, status=status), reduction, **options
    )


@api.post("/")
def create(request: HttpRequest, body: Amount):
    found = ChangeRequest(request).create(accounts, Opened("ada"), Deposited(body.amount))
    return shown(request, found, location=f"/{found.log_id}/")


@api.get("/failing/{name}/")
def fail(request: HttpRequest, name: str):
    accounts.create(Opened("eve"))
    raise {
        "http": HttpError(418, "No."),
        "overdrawn": Overdrawn("Not enough."),
        "server": ValueError("unforeseen"),
    }[name]


@api.get("/{account_id}/")
def show(request: HttpRequest, account_id: str):
    found = reduce_for(request, accounts, account_id)
    return shown(request, found)


@api.post("/{account_id}/")
def take(request: HttpRequest, account_id: str, body: Amount):
    change = ChangeRequest(request, caller=7)
    found = change.execute(accounts, account_id, withdraw, body.amount)
    return shown(request, found)


@api.post("/{account_id}/form/")
def take_form(request: HttpRequest, account_id: str, body: Form[Amount], scan: File[UploadedFile]):
    found = ChangeRequest(request).execute(accounts, account_id, withdraw, body.amount)
    return shown(request, found)


@api.post("/{account_id}/async/")
async def atake(request: HttpRequest, account_id: str, body: Amount):
    found = await ChangeRequest(request).aexecute(accounts, account_id, withdraw, body.amount)
    return shown(request, found)


@api.get("/{account_id}/events/", response=list[EventOut])
@paginate(EventPagination, max_limit=10)
def events(request: HttpRequest, account_id: str):
    return LogEvents(accounts, account_id)


@api.get("/{account_id}/aevents/", response=list[EventOut])
@paginate(EventPagination)
async def aevents(request: HttpRequest, account_id: str):
    return LogEvents(accounts, account_id)


urlpatterns = [path("", api.urls)]


@pytest.fixture(autouse=True)
def site(settings):
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = []


def post(address: str, body: Any, **headers: str):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Client().post(address, json.dumps(body), content_type="application/json", headers=names)


@pytest.fixture
def account() -> str:
    response = post("/", {"amount": 100}, idempotency_key="create")
    assert response.status_code == 201
    return response.headers["Location"]


def test_a_retry_gets_the_first_answer_and_another_body_422(account):
    first = post(account, {"amount": 40}, idempotency_key='"k"')
    post(account, {"amount": 60})
    again = post(account, {"amount": 40}, idempotency_key='"k"')
    other = post(account, {"amount": 41}, idempotency_key='"k"')

    assert (first.status_code, first.json()["balance"]) == (200, 60)
    assert (again.content, again.headers["ETag"]) == (first.content, first.headers["ETag"])
    assert (other.status_code, other.json()["type"]) == (422, "urn:example:key-reused")
    assert accounts.version(account.strip("/")) == 4


def test_a_retry_of_a_create_makes_one_account(account):
    again = post("/", {"amount": 100}, idempotency_key="create")

    assert (again.status_code, again.headers["Location"]) == (201, account)
    assert EventLog.objects.count() == 1


def test_a_form_counts_as_its_fields_and_files(account):
    def send(amount: int, content: bytes) -> int:
        form = {"amount": amount, "scan": SimpleUploadedFile("a", content)}
        response = Client().post(f"{account}form/", form, headers={"Idempotency-Key": "k"})
        return response.status_code

    assert [send(1, b"a"), send(1, b"a"), send(2, b"a"), send(1, b"b")] == [200, 200, 422, 422]


def test_an_old_if_match_is_412_and_a_retry_is_a_replay(client, account):
    etag = client.get(account).headers["ETag"]
    first = post(account, {"amount": 1}, idempotency_key="k", if_match=etag)
    again = post(account, {"amount": 1}, idempotency_key="k", if_match=etag)
    late = post(account, {"amount": 1}, if_match=etag)

    assert [each.status_code for each in (first, again, late)] == [200, 200, 412]
    assert again.content == first.content


def test_what_the_caller_has_is_304(client, account):
    etag = client.get(account).headers["ETag"]

    assert client.get(account, headers={"If-None-Match": etag}).status_code == 304


@pytest.mark.parametrize(
    ("address", "body", "status", "kind"),
    [
        ("", {"amount": 101}, 409, None),
        ("", {"amount": "secret"}, 422, "invalid"),
        ("{missing}", {"amount": 1}, 404, None),
    ],
)
def test_errors_are_problems(account, address, body, status, kind):
    response = post(address.format(missing=f"/{accounts.new_id()}/") or account, body)

    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["type"] == (f"urn:example:{kind}" if kind else "about:blank")
    assert "secret" not in response.content.decode()


def test_errors_of_django_ninja_are_problems(client, account):
    assert client.get("/failing/http/").json()["status"] == 418
    errors = post(account, {}).json()["errors"]
    assert [(each["type"], each["loc"][-1]) for each in errors] == [("missing", "amount")]
    response = client.post("/", "{", content_type="application/json")
    assert (response.status_code, response.json()["status"]) == (400, 400)


def test_an_error_of_the_server_is_left_to_django(client):
    with pytest.raises(ValueError, match="unforeseen"):
        client.get("/failing/server/")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["overdrawn", "http"])
def test_a_problem_rolls_the_transaction_of_the_request_back(client, monkeypatch, name):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    assert client.get(f"/failing/{name}/").status_code in (409, 418)

    assert not EventLog.objects.exists()


def test_events_are_paged(client, account):
    for _ in range(3):
        post(account, {"amount": 1})

    pages, address = [], f"{account}events/?limit=2"
    while address:
        found = client.get(address).json()
        pages.append([each["index"] for each in found["events"]])
        address = found["next"]

    assert pages == [[0, 1], [2, 3], [4]]
    assert found["previous"]
    assert found["events"][0].keys() == {"index", "type", "data", "recorded_at"}
    # As a time for ?at=, it includes the event.
    shown = datetime.fromisoformat(found["events"][0]["recorded_at"])
    [record] = accounts.load(account.split("/")[-2], start=4)
    assert shown == record.recorded_at


@pytest.mark.parametrize(
    ("query", "status"), [("start=x", 422), ("start=-1", 422), ("limit=11", 400), ("", 404)]
)
def test_a_page_that_is_not_there_is_a_problem(client, account, query, status):
    address = account if query else f"/{accounts.new_id()}/"

    assert client.get(f"{address}events/?{query}").json()["status"] == status


@pytest.mark.django_db(transaction=True)
def test_async_operations(account):
    async def requests() -> list[Any]:
        client = AsyncClient()
        body = {"amount": 40}
        headers = {"Idempotency-Key": "k"}
        address = f"{account}async/"
        first = await client.post(address, body, "application/json", headers=headers)
        again = await client.post(address, body, "application/json", headers=headers)
        other = await client.post(address, {"amount": 1}, "application/json", headers=headers)
        page = await client.get(f"{account}aevents/")
        return [first.json(), again.json(), other.status_code, len(page.json()["events"])]

    first, again, status, count = async_to_sync(requests)()

    assert first == again
    assert (status, count) == (422, 3)


def test_the_schema_names_the_parameters_and_the_page():
    schema = api.get_openapi_schema()

    operation = schema["paths"]["/{account_id}/events/"]["get"]
    assert [each["name"] for each in operation["parameters"]] == [
        "account_id",
        "start",
        "limit",
        "reverse",
    ]
