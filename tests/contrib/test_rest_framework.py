"""The HTTP kit with Django REST framework, through real requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("rest_framework", reason="Django REST framework is not installed")

from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.urls import path
from rest_framework import serializers
from rest_framework.exceptions import NotAuthenticated, Throttled
from rest_framework.generics import ListAPIView
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from eventlogs.contrib.http import LogEvents, Problems, reduce_for, with_etag
from eventlogs.contrib.rest_framework import (
    ChangeRequest,
    EventPagination,
    EventSerializer,
    handler_of,
)
from eventlogs.models import Event, EventLog
from tests.accounts import Account, Deposited, Opened, Overdrawn, withdraw

pytestmark = pytest.mark.django_db
accounts = Account.logs
problems = Problems({Overdrawn: 409}, types="urn:example:")


class Amount(serializers.Serializer):  # type: ignore[misc]
    amount = serializers.IntegerField(min_value=1)
    note = serializers.CharField(required=False)
    detail = serializers.CharField(required=False)
    scan = serializers.FileField(required=False)


class Api(APIView):  # type: ignore[misc]
    authentication_classes: list[Any] = []
    permission_classes: list[Any] = []
    parser_classes = [JSONParser, FormParser, MultiPartParser]

    def get_exception_handler(self):
        return handler_of(problems)

    def read(self, request: Any) -> int:
        values = Amount(data=request.data)
        values.is_valid(raise_exception=True)
        return values.validated_data["amount"]


def shown(reduction: Any) -> dict[str, Any]:
    return {"id": str(reduction.log_id), "balance": reduction.aggregate.balance}


class All(Api):
    def post(self, request: Any) -> Any:
        amount = self.read(request)
        found = ChangeRequest(request).create(accounts, Opened("ada"), Deposited(amount))
        response = Response(shown(found), status=201)
        return with_etag(request, response, found, location=f"/{found.log_id}/")


class One(Api):
    def get(self, request: Any, account_id: str) -> Any:
        found = reduce_for(request, accounts, account_id)
        return with_etag(request, Response(shown(found)), found)

    def post(self, request: Any, account_id: str) -> Any:
        amount = self.read(request)
        change = ChangeRequest(request, caller=7)
        found = change.execute(accounts, account_id, withdraw, amount)
        return with_etag(request, Response(shown(found)), found)


class Events(Api, ListAPIView):  # type: ignore[misc]
    serializer_class = EventSerializer
    pagination_class = EventPagination

    def get_queryset(self) -> Any:
        return LogEvents(accounts, self.kwargs["account_id"])


class Failing(Api):
    def get(self, request: Any, name: str) -> Any:
        accounts.create(Opened("eve"))
        raise {
            "throttled": Throttled(wait=7),
            "anonymous": NotAuthenticated(),
            "overdrawn": Overdrawn("Not enough."),
            "server": ValueError("unforeseen"),
        }[name]


urlpatterns = [
    path("", All.as_view()),
    path("failing/<str:name>/", Failing.as_view()),
    path("<str:account_id>/", One.as_view()),
    path("<str:account_id>/events/", Events.as_view()),
]


@pytest.fixture(autouse=True)
def site(settings):
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["eventlogs.middleware.EventContextMiddleware"]


@pytest.fixture
def api() -> APIClient:
    return APIClient()


def post(api: APIClient, address: str, body: Any, **headers: str):
    options = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    return api.post(address, json.dumps(body), content_type="application/json", **options)


@pytest.fixture
def account(api) -> str:
    response = post(api, "/", {"amount": 100}, idempotency_key="create")
    assert response.status_code == 201
    return response.headers["Location"]


def test_a_retry_gets_the_first_answer_and_another_body_422(api, account):
    first = post(api, account, {"amount": 40}, idempotency_key='"k"')
    post(api, account, {"amount": 60})
    again = post(api, account, {"amount": 40}, idempotency_key='"k"')
    other = post(api, account, {"amount": 41}, idempotency_key='"k"')

    assert (first.status_code, first.json()["balance"]) == (200, 60)
    assert (again.content, again.headers["ETag"]) == (first.content, first.headers["ETag"])
    assert other.status_code == 422
    assert other.json()["type"] == "urn:example:key-reused"
    assert accounts.version(account.strip("/")) == 4


def test_a_retry_of_a_create_makes_one_account(api, account):
    again = post(api, "/", {"amount": 100}, idempotency_key="create")

    assert (again.status_code, again.headers["Location"]) == (201, account)
    assert EventLog.objects.count() == 1


@pytest.mark.parametrize("format", ["multipart", None])
def test_a_form_counts_as_its_fields_and_files(api, account, format):
    def send(note: str, scan: bytes):
        body: Any = {"amount": 1, "note": note}
        options: dict[str, Any] = {"content_type": "application/x-www-form-urlencoded"}
        if format is None:
            body = f"amount=1&note={note}{scan.decode()}"
        else:
            body["scan"] = SimpleUploadedFile("a", scan)
            options = {"format": format}
        return api.post(account, body, HTTP_IDEMPOTENCY_KEY="k", **options).status_code

    assert [send("x", b"1"), send("x", b"1"), send("y", b"1"), send("x", b"2")] == [
        200,
        200,
        422,
        422,
    ]


def test_an_old_if_match_is_412_and_a_retry_is_a_replay(api, account):
    etag = api.get(account).headers["ETag"]
    first = post(api, account, {"amount": 1}, idempotency_key="k", if_match=etag)
    again = post(api, account, {"amount": 1}, idempotency_key="k", if_match=etag)
    late = post(api, account, {"amount": 1}, if_match=etag)

    assert [each.status_code for each in (first, again, late)] == [200, 200, 412]
    assert again.content == first.content


def test_what_the_caller_has_is_304(api, account):
    etag = api.get(account).headers["ETag"]

    assert api.get(account, HTTP_IF_NONE_MATCH=etag).status_code == 304
    assert api.get(account, HTTP_IF_NONE_MATCH='"x"').json()["balance"] == 100


@pytest.mark.parametrize(
    ("body", "status", "extensions"),
    [
        ({"amount": 0}, 400, {"errors"}),
        ({"amount": 101}, 409, set()),
        ([], 400, {"errors"}),
        ({"amount": 0, "detail": []}, 400, {"errors"}),
    ],
)
def test_errors_are_problems(api, account, body, status, extensions):
    response = post(api, account, body)

    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json().keys() == {"type", "title", "status", "detail", *extensions}
    assert accounts.version(account.strip("/")) == 2


def test_a_field_may_have_the_name_detail(api, account):
    answer = post(api, account, {"amount": 0, "detail": []}).json()

    assert answer["errors"].keys() == {"amount", "detail"}
    assert "errors" in answer["detail"]


def test_errors_of_the_framework_keep_their_headers(api):
    throttled, anonymous = api.get("/failing/throttled/"), api.get("/failing/anonymous/")

    assert (throttled.status_code, throttled.headers["Retry-After"]) == (429, "7")
    assert anonymous.status_code in (401, 403)
    assert anonymous.json()["detail"]
    assert api.delete("/").headers["Allow"] == "POST, OPTIONS"
    assert api.delete("/").json()["status"] == 405
    assert api.post("/", "{", content_type="application/json").json()["status"] == 400
    assert api.post("/", "x", content_type="text/plain").json()["status"] == 415


def test_an_error_of_the_server_is_left_to_django(api):
    with pytest.raises(ValueError, match="unforeseen"):
        api.get("/failing/server/")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["overdrawn", "throttled"])
def test_a_problem_rolls_the_transaction_of_the_request_back(api, monkeypatch, name):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    assert api.get(f"/failing/{name}/").status_code in (409, 429)

    assert not EventLog.objects.exists()


def test_events_are_paged(api, account):
    for _ in range(3):
        post(api, account, {"amount": 1})

    pages, address = [], f"{account}events/?limit=2"
    while address:
        response = api.get(address)
        pages.append([each["index"] for each in response.json()["events"]])
        address = response.json()["next"]

    assert pages == [[0, 1], [2, 3], [4]]
    assert 'rel="prev"' in response.headers["Link"]
    assert response.json()["events"][0].keys() == {"index", "type", "data", "recorded_at"}


@pytest.mark.parametrize(("query", "status"), [("start=x", 400), ("limit=101", 400), ("", 404)])
def test_a_page_that_is_not_there_is_a_problem(api, account, query, status):
    address = account if query else f"/{accounts.new_id()}/"

    response = api.get(f"{address}events/?{query}")

    assert response.json()["status"] == status


def test_events_have_the_context_of_the_request(api, account):
    post(api, account, {"amount": 1}, x_request_id="r-1", idempotency_key="k")

    metadata = Event.objects.for_log(account.strip("/")).get(index=2).metadata
    assert metadata.keys() == {"request_id", "correlation_id", "request_digest"}


def test_the_schema_of_a_page_names_its_parameters():
    pagination = EventPagination()

    names = [each["name"] for each in pagination.get_schema_operation_parameters(None)]
    schema = pagination.get_paginated_response_schema({"type": "array"})

    assert names == ["start", "limit", "reverse"]
    assert schema["properties"].keys() == {"events", "next", "previous"}
