"""The payments API of the example project, as its callers see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client, RequestFactory

from eventlogs import ANY, IdempotencyKeyUndecided, TransactionMustRetry
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import Event, EventLog
from example_project.payments import views
from example_project.payments.events import Captured, Payment, Requested

pytestmark = pytest.mark.django_db
payments = Payment.logs


class Api:
    """The API's caller."""

    def __init__(self) -> None:
        self.client = Client(enforce_csrf_checks=True)

    def post(self, path: str, body: Any, *, key: str | None = None, if_match: str | None = None):
        headers = {"Idempotency-Key": key, "If-Match": if_match}
        return self.client.post(
            path,
            body if isinstance(body, bytes) else json.dumps(body),
            content_type="application/json",
            headers={name: value for name, value in headers.items() if value is not None},
        )

    def get(self, path: str, **headers: str):
        return self.client.get(path, headers=headers)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def payment(api: Api) -> str:
    """The path of a payment of 100, all of which is authorized; its version is 2."""
    path: str = api.post("/payments/", {"amount": 100}).headers["Location"]
    assert api.post(f"{path}authorize/", {"amount": 100}).status_code == 200
    return path


def log_id_of(path: str) -> str:
    return path.split("/")[2]


def etag_of(path: str, version: int) -> str:
    [last] = payments.load(log_id_of(path), start=version - 1, limit=1)
    return f'"{log_id_of(path)}-{version}-{last.position}"'


def answer_of(response) -> tuple[Any, ...]:
    """Return the parts of a response that a retry must get again."""
    return (
        response.status_code,
        response.content,
        response.headers.get("ETag"),
        response.headers.get("Location"),
        response.headers["Content-Type"],
    )


def assert_problem(response, status: int, kind: str | None = None) -> None:
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["type"] == (f"urn:example:payments:{kind}" if kind else "about:blank")


# The life of a payment


def test_a_payment_is_created(api):
    response = api.post("/payments/", {"amount": 10_000})

    assert response.status_code == 201
    body = response.json()
    assert body == {
        "id": body["id"],
        "version": 1,
        "amount_requested": 10_000,
        "amount_approved": 0,
        "amount_captured": 0,
        "amount_refunded": 0,
        "amount_outstanding": 0,
    }
    assert response.headers["Location"] == f"/payments/{body['id']}/"
    assert response.headers["ETag"] == etag_of(response.headers["Location"], 1)
    assert response.headers["Content-Type"] == "application/json"
    assert api.get(response.headers["Location"]).content == response.content


def test_a_payment_is_authorized_captured_and_refunded(api, payment):
    api.post(f"{payment}capture/", {"amount": 40})
    api.post(f"{payment}capture/", {"amount": 60})
    response = api.post(f"{payment}refund/", {"amount": 100})

    assert response.status_code == 200
    assert response.headers["ETag"] == etag_of(payment, 5)
    assert response.json() == {
        "id": log_id_of(payment),
        "version": 5,
        "amount_requested": 100,
        "amount_approved": 100,
        "amount_captured": 100,
        "amount_refunded": 100,
        "amount_outstanding": 0,
    }


@pytest.mark.parametrize(("command", "amount"), [("authorize", 1), ("capture", 101), ("refund", 1)])
def test_a_command_that_the_rules_refuse_is_409_and_stores_nothing(api, payment, command, amount):
    response = api.post(f"{payment}{command}/", {"amount": amount}, key="k")

    assert_problem(response, 409, "refused")
    assert payments.version(log_id_of(payment)) == 2


def test_a_refused_request_may_be_tried_again_with_its_key(api, payment):
    assert api.post(f"{payment}refund/", {"amount": 10}, key="k").status_code == 409
    api.post(f"{payment}capture/", {"amount": 10})

    assert api.post(f"{payment}refund/", {"amount": 10}, key="k").status_code == 200


# Idempotency-Key


def test_a_retried_create_gets_the_first_answer(api):
    first = api.post("/payments/", {"amount": 100}, key='"k"')
    api.post(first.headers["Location"] + "authorize/", {"amount": 100})
    again = api.post("/payments/", b'{ "amount" : 100 }', key='"k"')

    assert answer_of(again) == answer_of(first)
    assert EventLog.objects.count() == 1
    assert Event.objects.count() == 2


def test_a_retry_gets_the_first_answer_also_when_the_payment_has_moved_on(api, payment):
    first = api.post(f"{payment}capture/", {"amount": 40}, key="k")
    api.post(f"{payment}capture/", {"amount": 60})
    api.post(f"{payment}refund/", {"amount": 100})
    again = api.post(f"{payment}capture/", {"amount": 40}, key="k")

    assert first.status_code == 200
    assert answer_of(again) == answer_of(first)
    assert payments.version(log_id_of(payment)) == 5


def test_a_retry_with_the_old_if_match_is_a_replay(api, payment):
    etag = etag_of(payment, 2)
    first = api.post(f"{payment}capture/", {"amount": 100}, key="k", if_match=etag)
    again = api.post(f"{payment}capture/", {"amount": 100}, key="k", if_match=etag)

    assert first.status_code == 200
    assert answer_of(again) == answer_of(first)


@pytest.mark.parametrize(
    ("command", "body"),
    [
        ("capture", {"amount": 41}),
        ("refund", {"amount": 40}),
        ("authorize", {"amount": 40}),
    ],
)
def test_a_key_with_another_request_is_422(api, payment, command, body):
    api.post(f"{payment}capture/", {"amount": 40}, key="k")

    assert_problem(api.post(f"{payment}{command}/", body, key="k"), 422, "key-reused")
    assert payments.version(log_id_of(payment)) == 3


def test_a_key_of_a_create_with_another_amount_is_422(api):
    api.post("/payments/", {"amount": 100}, key="k")

    assert_problem(api.post("/payments/", {"amount": 101}, key="k"), 422, "key-reused")


def test_a_key_of_one_payment_on_another_is_422(api, payment):
    other = api.post("/payments/", {"amount": 100}, key="create").headers["Location"]
    api.post(f"{other}authorize/", {"amount": 100}, key="k")

    assert_problem(api.post(f"{payment}capture/", {"amount": 40}, key="k"), 422, "key-reused")
    assert_problem(api.post(f"{payment}capture/", {"amount": 40}, key="create"), 422, "key-reused")
    assert_problem(api.post("/payments/", {"amount": 100}, key="k"), 422, "key-reused")


def test_a_key_of_an_append_that_was_no_request_is_422(api, payment):
    payments.append(log_id_of(payment), Captured(40), expected_version=ANY, idempotency_key="k")

    assert_problem(api.post(f"{payment}capture/", {"amount": 40}, key="k"), 422, "key-reused")


def test_an_approval_code_belongs_to_the_request(api):
    path = api.post("/payments/", {"amount": 100}).headers["Location"] + "authorize/"
    api.post(path, {"amount": 100, "approval_code": "xyz123"}, key="k")

    assert api.post(path, {"approval_code": "xyz123", "amount": 100}, key="k").status_code == 200
    assert api.post(path, {"amount": 100}, key="k").status_code == 422


def test_requests_without_a_key_are_all_new(api, payment):
    versions = [api.post(f"{payment}capture/", {"amount": 1}).json()["version"] for _ in range(3)]

    assert versions == [3, 4, 5]


def test_a_key_is_the_same_quoted_and_bare(api):
    first = api.post("/payments/", {"amount": 1}, key=r'"a\"b\\c"')
    bare = api.post("/payments/", {"amount": 1}, key="abc")
    quoted = api.post("/payments/", {"amount": 1}, key='"abc"')

    assert payments.load(first.json()["id"])[0].idempotency_key == r'a"b\c'
    assert answer_of(quoted) == answer_of(bare)


@pytest.mark.parametrize(
    "key",
    ["", '""', '"a', '"a"b"', '"a", "b"', "a, b", "a b", '"é"', "x" * 256, f'"{"x" * 256}"'],
)
def test_a_malformed_key_is_400(api, key):
    assert_problem(api.post("/payments/", {"amount": 1}, key=key), 400)
    assert not Event.objects.exists()


def test_a_key_may_have_255_characters(api):
    assert api.post("/payments/", {"amount": 1}, key="x" * 255).status_code == 201


# If-Match


@pytest.mark.parametrize("if_match", ["{etag}", "*", '"other", {etag}', '"other",{etag}, W/"weak"'])
def test_if_match_allows_the_version_that_the_caller_saw(api, payment, if_match):
    if_match = if_match.format(etag=etag_of(payment, 2))

    response = api.post(f"{payment}capture/", {"amount": 1}, if_match=if_match)

    assert response.status_code == 200
    assert response.headers["ETag"] == etag_of(payment, 3)


@pytest.mark.parametrize("if_match", ["{id}-2", 'W/"{id}-2"', '"{id}-1"', '"{id}-3"', '"2"', ""])
def test_another_if_match_is_412_and_stores_nothing(api, payment, if_match):
    if_match = if_match.format(id=log_id_of(payment))

    response = api.post(f"{payment}capture/", {"amount": 1}, if_match=if_match)

    assert_problem(response, 412)
    assert payments.version(log_id_of(payment)) == 2


def test_if_match_is_checked_before_the_rules(api, payment):
    response = api.post(f"{payment}capture/", {"amount": 101}, if_match=etag_of(payment, 1))

    assert_problem(response, 412)


def test_if_match_for_a_payment_that_is_not_there_is_404(api):
    path = f"/payments/{payments.new_id()}/capture/"

    assert_problem(api.post(path, {"amount": 1}, if_match="*"), 404)


# Races


class Losing(views.Command):
    """A command that another writer always overtakes."""

    fields = {"amount": views.amount}

    def decider(self, payment: Payment, amount: int) -> Iterator[Captured]:
        payments.append(self.kwargs["payment_id"], Captured(1), expected_version=ANY)
        yield Captured(amount=amount)


def lose(path: str, **headers: str):
    request = RequestFactory().post(
        f"{path}capture/", {"amount": 50}, content_type="application/json", headers=headers
    )
    return json_of(Losing.as_view()(request, payment_id=log_id_of(path)))


def json_of(response):
    response.json = lambda: json.loads(response.content)
    return response


@pytest.mark.parametrize("headers", [{}, {"If-Match": "*"}, {"Idempotency-Key": "k"}])
def test_a_race_that_is_lost_again_and_again_is_409(payment, headers):
    response = lose(payment, **headers)

    assert_problem(response, 409, "lost-race")
    assert payments.version(log_id_of(payment)) == 2 + 4  # all of them by the other writer


def test_a_race_that_is_lost_with_if_match_is_412(payment):
    response = lose(payment, **{"If-Match": etag_of(payment, 2)})

    assert_problem(response, 412)
    assert payments.version(log_id_of(payment)) == 2 + 1


def test_a_retry_that_this_release_cannot_judge_is_503_and_asks_for_the_same_key():
    error = IdempotencyKeyUndecided(
        "k", log_id=payments.new_id(), index=0, event_type="payment.later"
    )

    problem = views.problem_of(error)

    assert problem is not None
    assert (problem.status, problem.headers) == (503, {"Retry-After": "10"})
    assert "same Idempotency-Key" in problem.detail


def test_a_busy_database_is_503():
    problem = views.problem_of(TransactionMustRetry(using="default", sqlstate="40P01"))

    assert problem is not None
    response = json_of(problem.response())
    assert_problem(response, 503)
    assert response.headers["Retry-After"] == "1"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("round", range(8))
@pytest.mark.parametrize("if_match", [False, True])
def test_racing_requests_with_one_key_get_one_answer(api, payment, race, if_match, round):
    etag = etag_of(payment, 2) if if_match else None

    def capture():
        return Api().post(f"{payment}capture/", {"amount": 100}, key="k", if_match=etag)

    answers = {answer_of(response) for response in race(capture, capture, capture)}

    assert [answer[0] for answer in answers] == [200]
    assert payments.version(log_id_of(payment)) == 3


@pytest.mark.django_db(transaction=True)
def test_racing_creates_with_one_key_make_one_payment(race):
    def create():
        return Api().post("/payments/", {"amount": 100}, key="k")

    answers = {answer_of(response) for response in race(create, create, create)}

    assert [answer[0] for answer in answers] == [201]
    assert EventLog.objects.count() == Event.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_racing_requests_with_one_key_and_other_bodies_one_is_422(payment, race):
    answers = race(
        lambda: Api().post(f"{payment}capture/", {"amount": 40}, key="k"),
        lambda: Api().post(f"{payment}capture/", {"amount": 41}, key="k"),
    )

    assert sorted(answer.status_code for answer in answers) == [200, 422]
    assert payments.version(log_id_of(payment)) == 3


@pytest.mark.django_db(transaction=True)
def test_of_racing_requests_with_one_etag_one_is_412(payment, race):
    def capture():
        return Api().post(f"{payment}capture/", {"amount": 1}, if_match=etag_of(payment, 2))

    answers = race(capture, capture, capture)

    assert sorted(answer.status_code for answer in answers) == [200, 412, 412]
    assert payments.version(log_id_of(payment)) == 3


@pytest.mark.django_db(transaction=True)
def test_racing_captures_never_take_more_than_is_outstanding(payment, race):
    def capture():
        return Api().post(f"{payment}capture/", {"amount": 60})

    answers = race(capture, capture, capture)

    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    assert payments.reduce(log_id_of(payment)).aggregate.amount_captured == 60


# Reading


def test_a_payment_is_shown_as_of_a_version(api, payment):
    api.post(f"{payment}capture/", {"amount": 100})

    response = api.get(f"{payment}?version=2")

    assert response.json()["amount_captured"] == 0
    assert response.headers["ETag"] == etag_of(payment, 2)
    assert api.get(payment).json()["amount_captured"] == 100


def test_a_payment_is_shown_as_of_a_moment_that_the_history_names(api, payment):
    api.post(f"{payment}capture/", {"amount": 100})
    [requested, authorized, _] = api.get(f"{payment}events/").json()["events"]
    at = authorized["recorded_at"].replace("+", "%2B")

    assert api.get(f"{payment}?at={at}").json()["version"] >= 2
    assert_problem(api.get(f"{payment}?at=2000-01-01T00:00:00Z"), 404)
    assert_problem(api.get(f"{payment}?at=0001-01-01T00:00:00%2B14:00"), 404)
    assert api.get(f"{payment}?at=9999-12-31T23:59:59Z").json()["version"] == 3
    assert requested["index"] == 0


@pytest.mark.parametrize(
    "query",
    [
        "version=0",
        "version=-1",
        "version=x",
        "version=",
        "version=1.0",
        "version=%D9%A1",  # a digit, but not ASCII
        "version=99999999999999999999",
        "version=" + "9" * 5000,
        "at=",
        "at=yesterday",
        "at=2026-01-31T12:00:00",
        "at=2026-02-31T12:00:00Z",
        "at=2026-01-31T12:00:00+01:00",  # the + is a space here
        "version=1&at=2026-01-31T12:00:00Z",
    ],
)
def test_an_invalid_query_is_400(api, payment, query):
    assert_problem(api.get(f"{payment}?{query}"), 400)


def test_a_version_that_is_not_reached_is_404(api, payment):
    assert_problem(api.get(f"{payment}?version=3"), 404)


def test_a_payment_that_the_caller_has_is_304(api, payment):
    response = api.get(payment, **{"If-None-Match": etag_of(payment, 2)})

    assert response.status_code == 304
    assert response.headers["ETag"] == etag_of(payment, 2)
    assert api.get(payment, **{"If-None-Match": etag_of(payment, 1)}).status_code == 200


def test_events_are_listed_a_page_at_a_time(api, payment):
    for _ in range(3):
        api.post(f"{payment}capture/", {"amount": 1})

    pages, following = [], f"{payment}events/?limit=2"
    while following:
        page = api.get(following).json()
        pages.append([event["index"] for event in page["events"]])
        following = page["next"]

    assert pages == [[0, 1], [2, 3], [4]]


def test_events_are_listed_backwards(api, payment):
    first = api.get(f"{payment}events/?reverse=true&limit=1").json()
    second = api.get(first["next"]).json()

    assert [first["events"][0]["type"], second["events"][0]["type"]] == [
        "payment.authorized",
        "payment.requested",
    ]
    assert second["next"] is None


def test_an_event_is_listed_with_its_data_and_time_and_without_keys(api):
    created = api.post("/payments/", {"amount": 100}, key="k")

    page = api.get(created.headers["Location"] + "events/").json()

    [event] = page["events"]
    assert page == {"payment": created.json()["id"], "events": [event], "next": None}
    assert event == {
        "index": 0,
        "type": "payment.requested",
        "data": {"amount": 100},
        "recorded_at": event["recorded_at"],
    }


def test_an_old_event_is_listed_in_its_shape_of_today(api):
    state = payments.create(Requested(amount=100))
    old = EncodedEvent("payment.approved", 1, '{"amount":100}')
    EventLog.objects.append(state.log_id, [old], expected_version=1)

    page = api.get(f"/payments/{state.log_id}/events/?start=1").json()

    assert page["events"][0]["type"] == "payment.authorized"
    assert page["events"][0]["data"] == {"amount": 100, "approval_code": None}
    assert api.get(f"/payments/{state.log_id}/").json()["amount_approved"] == 100


def test_a_page_past_the_end_is_empty(api, payment):
    assert api.get(f"{payment}events/?start=99").json()["events"] == []


@pytest.mark.parametrize(
    "query", ["start=-1", "start=x", "limit=0", "limit=101", "limit=x", "reverse=yes"]
)
def test_an_invalid_page_is_400(api, payment, query):
    assert_problem(api.get(f"{payment}events/?{query}"), 400)


# Bad requests


PATHS = [
    ("get", ""),
    ("get", "events/"),
    ("post", "authorize/"),
    ("post", "capture/"),
    ("post", "refund/"),
]


def ask(api: Api, method: str, path: str):
    return api.get(path) if method == "get" else api.post(path, {"amount": 1})


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_an_unknown_payment_is_404(api, method, path):
    assert_problem(ask(api, method, f"/payments/{payments.new_id()}/{path}"), 404)


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "payment_id", ["x", "payment_x", "order_01h455vb4pex5vsknk084sn02q", "%00", "é", "p" * 2000]
)
def test_a_malformed_id_is_400(api, payment_id, method, path):
    assert_problem(ask(api, method, f"/payments/{payment_id}/{path}"), 400)


@pytest.mark.parametrize(
    "body",
    [
        b" ",
        b"{",
        b"[]",
        b"null",
        b"100",
        b'"amount"',
        b"{}",
        b'{"amount": null}',
        b'{"amount": 0}',
        b'{"amount": -1}',
        b'{"amount": 1.0}',
        b'{"amount": 1e2}',
        b'{"amount": "100"}',
        b'{"amount": true}',
        b'{"amount": [1]}',
        b'{"amount": NaN}',
        b'{"amount": 1000000000001}',
        b'{"amount": ' + b"9" * 5000 + b"}",
        b'{"amount": 1, "amount": 2}',
        b'{"amount": 1, "currency": "EUR"}',
        b'{"amount": 1}}',
        b'\xef\xbb\xbf{"amount": 1}',
        b'{"amount": 1, "\xff": 1}',
        '{"amount": 1}'.encode("utf-16"),
        b"[" * 100_000,
    ],
)
def test_a_malformed_body_is_400_and_stores_nothing(api, body):
    assert_problem(api.post("/payments/", body), 400)
    assert not Event.objects.exists()


@pytest.mark.parametrize(
    "code", ["", "x" * 65, 7, True, ["x"], "a\x00b", "line\nline", "\ud800", "é"]
)
def test_a_malformed_approval_code_is_400(api, code):
    path = api.post("/payments/", {"amount": 1}).headers["Location"]

    response = api.post(f"{path}authorize/", {"amount": 1, "approval_code": code})

    assert_problem(response, 400)


def test_the_largest_amount_is_accepted(api):
    response = api.post("/payments/", {"amount": views.MAX_AMOUNT})

    assert response.json()["amount_requested"] == views.MAX_AMOUNT


def test_a_problem_does_not_quote_the_request(api, payment):
    secret = "4111111111111111"
    responses = [
        api.post("/payments/", {"amount": secret}),
        api.post("/payments/", {secret: 1}),
        api.post("/payments/", {"amount": int(secret)}),
        api.post(f"{payment}capture/", {"amount": 999_999_999}),
        api.get(f"{payment}?version={secret}"),
        api.get(f"/payments/{secret}/"),
        api.post("/payments/", {"amount": 1}, key=f'"{secret}'),
    ]

    for response in responses:
        assert response.status_code in (400, 409)
        assert secret not in response.content.decode()
        assert "999999999" not in response.content.decode()


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_another_media_type_is_415(api, content_type):
    response = api.client.post("/payments/", b'{"amount": 1}', content_type=content_type)

    assert_problem(response, 415)
    assert response.headers["Accept"] == "application/json"


def test_a_media_type_may_have_parameters(api):
    response = api.client.post(
        "/payments/", b'{"amount": 1}', content_type="Application/JSON; charset=utf-8"
    )

    assert response.status_code == 201


def test_a_body_that_is_too_large_is_413(api, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10

    assert_problem(api.post("/payments/", {"amount": 1_000_000}), 413)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("put", "", "GET, POST, HEAD, OPTIONS"),
        ("post", "one/", "GET, HEAD, OPTIONS"),
        ("delete", "one/", "GET, HEAD, OPTIONS"),
        ("put", "one/events/", "GET, HEAD, OPTIONS"),
        ("get", "one/authorize/", "POST, OPTIONS"),
        ("get", "one/capture/", "POST, OPTIONS"),
        ("patch", "one/refund/", "POST, OPTIONS"),
    ],
)
def test_another_method_is_405_and_says_which_are_taken(api, payment, method, path, allow):
    path = f"/payments/{path}".replace("/payments/one/", payment)

    response = getattr(api.client, method)(path)

    assert_problem(response, 405)
    assert response.headers["Allow"] == allow


def test_head_is_get_without_a_body(api, payment):
    response = api.client.head(payment)

    assert response.status_code == 200
    assert response.headers["ETag"] == etag_of(payment, 2)
    assert response.content == b""


def test_events_say_which_request_appended_them(api, payment):
    api.client.post(
        f"{payment}capture/",
        {"amount": 10},
        content_type="application/json",
        headers={"X-Request-ID": "r-1"},
    )

    [last] = payments.load(log_id_of(payment), limit=1, reverse=True)
    assert {"request_id": "r-1", "correlation_id": "r-1"}.items() <= last.metadata.items()
