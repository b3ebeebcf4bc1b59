"""Requests that change a log: keys, preconditions, and the answers to retries."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotencyKeyReused,
    LogManager,
    LogNotFound,
    LogState,
    event_context,
)
from eventlogs.contrib.http import ChangeRequest, Problem, Problems
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.testing import MemoryStore
from tests.accounts import Account, Deposited, Noted, Opened, Overdrawn, Withdrawn, withdraw

pytestmark = pytest.mark.django_db
accounts = Account.logs


def request_of(
    body: Any = None, *, key: str | None = None, if_match: str | None = None, path: str = "/x/"
) -> HttpRequest:
    headers = {"Idempotency-Key": key, "If-Match": if_match}
    return RequestFactory().post(
        path,
        json.dumps(body),
        content_type="application/json",
        headers={name: value for name, value in headers.items() if value is not None},
    )


def change(*arguments: Any, caller: object = None, **options: Any) -> ChangeRequest:
    return ChangeRequest(request_of(*arguments, **options), caller=caller)


@pytest.fixture
def account() -> LogState:
    """An account with 100."""
    return accounts.create(Opened("ada"), Deposited(100))


def status_of(error: BaseException) -> int:
    assert isinstance(error, Exception)
    problem = Problems().problem_of(error)
    assert problem is not None
    return problem.status


# Keys


def test_a_retry_of_a_create_gets_the_first_answer(account):
    first = change({"a": 1}, key="k").create(accounts, Opened("ada"))
    accounts.append(first, Deposited(1))
    again = change({"a": 1}, key="k").create(accounts, Opened("ada"))

    assert (again.log_id, again.version, again.etag) == (first.log_id, 1, first.etag)
    assert again.aggregate == first.aggregate
    assert EventLog.objects.count() == 2


@pytest.mark.parametrize("method", ["create", "append", "execute"])
def test_a_key_with_another_body_is_422_and_stores_nothing(account, method):
    def called(body: Any):
        each = change(body, key="k")
        if method == "create":
            return each.create(accounts, Opened("ada"))
        if method == "append":
            return each.append(accounts, account.log_id, Deposited(1))
        return each.execute(accounts, account.log_id, withdraw, 1)

    called({"a": 1})
    before = Event.objects.count()

    with pytest.raises(IdempotencyKeyReused) as caught:
        called({"a": 2})

    assert status_of(caught.value) == 422
    assert Event.objects.count() == before


def test_a_retry_of_an_append_gets_the_first_answer(account):
    first = change(1, key="k").append(accounts, account.log_id, Deposited(5))
    accounts.append(first, Withdrawn(105))
    again = change(1, key="k").append(accounts, account.log_id, Deposited(5))

    assert (first.version, first.aggregate.balance) == (3, 105)
    assert (again.etag, again.aggregate) == (first.etag, first.aggregate)


def test_a_retry_of_a_decision_gets_the_first_answer_although_it_would_be_refused_now(account):
    first = change(1, key="k").execute(accounts, account.log_id, withdraw, 100)
    again = change(1, key="k").execute(accounts, account.log_id, withdraw, amount=100)

    assert (again.etag, again.aggregate.balance) == (first.etag, 0)


@pytest.mark.parametrize("method", ["create", "append"])
def test_a_retry_may_come_with_other_events_if_its_body_is_the_same(account, method):
    """Such as the time of the call."""
    times = itertools.count()

    def called():
        each = change(1, key="k")
        if method == "create":
            return each.create(accounts, Noted(next(times)))
        return each.append(accounts, account.log_id, Noted(next(times)), Noted("b"))

    first, again = called(), called()

    assert (again.log_id, again.etag) == (first.log_id, first.etag)


def test_a_key_of_another_log_is_422_also_with_the_same_body(account):
    other = accounts.create(Opened("eve"))
    change(1, key="k").append(accounts, account.log_id, Deposited(5))

    for method in ("append", "execute"):
        with pytest.raises(IdempotencyKeyReused):
            if method == "append":
                change(1, key="k").append(accounts, other.log_id, Deposited(6))
            else:
                change(1, key="k").execute(accounts, other.log_id, withdraw, 0)
    assert accounts.version(other.log_id) == 1


def test_a_key_of_an_append_without_a_request_is_422(account):
    accounts.append(account, Withdrawn(1), idempotency_key="k")

    with pytest.raises(IdempotencyKeyReused):
        change(1, key="k").execute(accounts, account.log_id, withdraw, 1)


def test_a_refused_request_stores_nothing_and_may_be_tried_again(account):
    with pytest.raises(Overdrawn):
        change(1, key="k").execute(accounts, account.log_id, withdraw, 101)
    assert not IdempotencyKey.objects.exists()
    accounts.append(account, Deposited(1))

    assert change(1, key="k").execute(accounts, account.log_id, withdraw, 101).version == 4


def test_a_decision_without_events_answers_the_current_state(account):
    accounts.append(account, Deposited(1), idempotency_key="other")

    assert change(1, key="k").execute(accounts, account.log_id, withdraw, 0).version == 3
    assert not IdempotencyKey.objects.filter(key="k").exists()


def test_without_a_key_every_request_is_new(account):
    versions = [change(1).execute(accounts, account.log_id, withdraw, 1).version for _ in range(3)]

    assert versions == [3, 4, 5]
    assert change(1).create(accounts, Opened("ada")).log_id != account.log_id
    assert all(each.metadata == {} for each in accounts.load(account.log_id))


def test_other_callers_have_other_keys():
    ids = {
        change(1, key="k", caller=caller).create(accounts, Opened("ada")).log_id
        for caller in (None, "", 7, "8", "7:k")
    }

    assert len(ids) == 5
    stored = set(IdempotencyKey.objects.values_list("key", flat=True))
    assert stored == {"k", ":k", "7:k", "8:k", "7%3Ak:k"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a:b", "c"), ("a", "b:c")),
        (("a%3Ab", "c"), ("a:b", "c")),
        ((None, "7:k"), (7, "k")),
        ((None, "%:7:k"), (None, "7:k")),
        ((None, ":k"), ("", "k")),
        ((None, "%:k"), ("%", "k")),
    ],
)
def test_no_two_pairs_of_caller_and_key_are_one(one, other):
    found = {
        ChangeRequest(request_of(key=key), caller=caller).idempotency_key
        for caller, key in (one, other)
    }

    assert len(found) == 2


@pytest.mark.parametrize(
    "key",
    [
        "",
        '""',
        '"a',
        '"a"b',
        '"a", "b"',
        "a, b",
        "a b",
        '"é"',
        '"a";x=1',
        "x" * 256,
        "a\nb",
        "\x00",
    ],
)
def test_a_malformed_key_is_400(key):
    request = request_of()
    request.META["HTTP_IDEMPOTENCY_KEY"] = key

    with pytest.raises(Problem) as caught:
        ChangeRequest(request)

    assert caught.value.status == 400
    assert not key.strip('" ') or key not in caught.value.detail


def test_a_key_and_its_caller_have_255_characters_together():
    assert change(key="x" * 250, caller="acme").idempotency_key == f"acme:{'x' * 250}"

    with pytest.raises(Problem, match="250"):
        change(key="x" * 251, caller="acme")
    with pytest.raises(ValueError, match="shorter"):
        change(key="x", caller="a" * 255)


def test_a_key_may_be_required():
    with pytest.raises(Problem) as caught:
        ChangeRequest(request_of(), key_required=True)

    assert caught.value.status == 400
    assert ChangeRequest(request_of(key="k"), key_required=True).idempotency_key == "k"


def test_the_view_may_say_what_the_body_is(account):
    """With its defaults, for example."""
    for amount in (5, 5.0):
        request = request_of({"amount": amount}, key="k")
        found = ChangeRequest(request, body={"amount": 5, "note": None})
        assert found.append(accounts, account.log_id, Deposited(5)).version == 3


def test_the_digest_is_beside_the_context_of_the_request(account):
    with event_context(user="7", request="theirs"):
        found = change(1, key="k").append(
            accounts, account.log_id, Deposited(1), metadata={"till": 3}
        )

    metadata = accounts.load(found.log_id, start=2)[0].metadata
    assert metadata == {
        "user": "7",
        "request": "theirs",
        "till": 3,
        "request_digest": metadata["request_digest"],
    }
    assert len(metadata["request_digest"]) == 64


def test_the_digest_of_the_request_wins_over_given_metadata(account):
    first = change(1, key="k").append(
        accounts, account.log_id, Deposited(1), metadata={"request_digest": "theirs"}
    )

    assert change(1, key="k").append(accounts, account.log_id, Deposited(1)).etag == first.etag


@pytest.mark.parametrize("depth", [300, 900, 5_000, 100_000])
def test_a_body_that_is_nested_deeply_is_digested_or_400(depth):
    request = RequestFactory().post(
        "/", "[" * depth + "]" * depth, "application/json", headers={"Idempotency-Key": "k"}
    )

    @Problems()
    def view(request: HttpRequest) -> HttpResponse:
        ChangeRequest(request).create(accounts, Opened("ada"))
        return HttpResponse(status=201)

    status = view(request).status_code

    assert status in (201, 400)
    assert EventLog.objects.count() == (status == 201)


# If-Match


def tag(state: LogState, *, version: int | None = None) -> str:
    if version is None:
        return state.etag
    [last] = accounts.load(state.log_id, start=version - 1, limit=1)
    return LogState(state.log_id, version, last.position).etag


@pytest.mark.parametrize("method", ["append", "execute"])
@pytest.mark.parametrize("if_match", ["{etag}", "*", " * ", '"x", {etag}', '"x",{etag},W/"y"'])
def test_if_match_allows_the_state_that_the_caller_saw(account, method, if_match):
    each = change(if_match=if_match.format(etag=account.etag))

    found = (
        each.append(accounts, account.log_id, Withdrawn(1))
        if method == "append"
        else each.execute(accounts, account.log_id, withdraw, 1)
    )

    assert found.version == 3


@pytest.mark.parametrize("method", ["append", "execute"])
@pytest.mark.parametrize(
    "if_match",
    [
        "",
        '"2"',
        "W/{etag}",
        "{id}-2",
        '"{id}-2-0"',
        '"{id}-1-0"',
        '"{id}-3-0"',
        "x" * 8_000,
        '"é"',
    ],
)
def test_another_if_match_is_412_and_nothing_is_decided(account, method, if_match):
    each = change(key="k", if_match=if_match.format(id=account.log_id, etag=account.etag))
    calls = []

    def decide(account: Account) -> Iterator[Withdrawn]:
        calls.append(account)
        yield Withdrawn(1)

    with pytest.raises(Problem) as caught:
        if method == "append":
            each.append(accounts, account.log_id, Withdrawn(1))
        else:
            each.execute(accounts, account.log_id, decide)

    assert (caught.value.status, calls) == (412, [])
    assert accounts.version(account.log_id) == 2
    assert not IdempotencyKey.objects.exists()


@pytest.mark.parametrize("method", ["append", "execute"])
def test_a_retry_with_the_old_if_match_is_a_replay(account, method):
    def called():
        each = change(1, key="k", if_match=account.etag)
        if method == "append":
            return each.append(accounts, account.log_id, Withdrawn(100))
        return each.execute(accounts, account.log_id, withdraw, 100)

    first, again = called(), called()

    assert (again.etag, again.version) == (first.etag, 3)


@pytest.mark.parametrize("method", ["append", "execute"])
@pytest.mark.parametrize("if_match", [None, "*", '"x"'])
def test_a_log_that_does_not_exist_is_404(method, if_match):
    each = change(key="k", if_match=if_match)

    with pytest.raises(LogNotFound):
        if method == "append":
            each.append(accounts, accounts.new_id(), Withdrawn(1))
        else:
            each.execute(accounts, accounts.new_id(), withdraw, 1)


def test_a_race_that_is_lost_with_an_if_match_is_412(account):
    def decide(_: Account) -> Iterator[Withdrawn]:
        accounts.append(account.log_id, Deposited(1), expected_version=ANY)
        yield Withdrawn(1)

    with pytest.raises(Problem) as caught:
        change(if_match=account.etag).execute(accounts, account.log_id, decide)

    assert caught.value.status == 412
    assert accounts.version(account.log_id) == 3


def test_a_race_that_is_lost_without_an_if_match_is_409(account):
    def decide(_: Account) -> Iterator[Withdrawn]:
        accounts.append(account.log_id, Deposited(1), expected_version=ANY)
        yield Withdrawn(1)

    with pytest.raises(ConcurrentAppend) as caught:
        change(if_match="*").execute(accounts, account.log_id, decide, retries=1)

    assert status_of(caught.value) == 409


@pytest.mark.fence
def test_a_list_may_name_the_version_to_which_the_log_moves_meanwhile(account):
    position = Event.objects.for_log(account.log_id).get(index=1).position
    following = LogState(account.log_id, 3, position + 1)
    calls = []

    def decide(found: Account) -> Iterator[Withdrawn]:
        calls.append(found.balance)
        if len(calls) == 1:
            accounts.append(account.log_id, Deposited(1), expected_version=ANY)
        yield Withdrawn(1)

    tags = f"{account.etag}, {following.etag}"
    if connection.vendor == "mysql":
        pytest.skip("positions are not consecutive")
    found = change(if_match=tags).execute(accounts, account.log_id, decide)

    assert (found.version, calls) == (4, [100, 101])


def test_a_conflict_with_another_log_is_409(account):
    other = accounts.create(Opened("eve"))
    accounts.append(other, Deposited(1))

    for method in ("append", "execute"):
        each = change(if_match=account.etag)
        with pytest.raises(ConcurrentAppend) as caught:
            if method == "append":
                each.append(accounts, account.log_id, Withdrawn(1), also_expect=[other])
            else:
                each.execute(accounts, account.log_id, withdraw, 1, also_expect=[other])
        assert caught.value.log_id == other.log_id


def test_a_create_with_an_etag_is_412():
    with pytest.raises(Problem) as caught:
        change(if_match='"x"').create(accounts, Opened("ada"))

    assert caught.value.status == 412
    assert change(if_match="*").create(accounts, Opened("ada")).version == 1


def test_a_precondition_may_be_required(account):
    with pytest.raises(Problem) as caught:
        ChangeRequest(request_of(), match_required=True)

    assert caught.value.status == 428
    found = ChangeRequest(request_of(if_match=account.etag), match_required=True)
    assert found.execute(accounts, account.log_id, withdraw, 1).version == 3


# Elsewhere


def test_a_decider_may_have_arguments_of_these_names(account):
    def decide(account: Account, *, logs: int, self: str) -> Iterator[Noted]:
        yield Noted([logs, self])

    found = change().execute(accounts, account.log_id, decide, logs=1, self="y")

    assert accounts.load(found.log_id, start=2)[0].event == Noted([1, "y"])


def test_a_store_of_ones_own_is_used():
    logs = LogManager(Account, store=MemoryStore())
    first = change(1, key="k").create(logs, Opened("ada"))

    assert change(1, key="k").create(logs, Opened("ada")).etag == first.etag
    with pytest.raises(IdempotencyKeyReused):
        change(2, key="k").create(logs, Opened("ada"))
    assert not EventLog.objects.exists()


def test_everything_works_in_a_transaction(account):
    with transaction.atomic():
        change(1, key="k", if_match=account.etag).execute(accounts, account.log_id, withdraw, 1)
        with pytest.raises(Problem):
            change(if_match=account.etag).execute(accounts, account.log_id, withdraw, 1)
        with pytest.raises(IdempotencyKeyReused):
            change(2, key="k").execute(accounts, account.log_id, withdraw, 1)

    assert accounts.version(account.log_id) == 3


@pytest.mark.django_db(transaction=True)
def test_the_same_in_async_code():
    async def requests() -> list[Any]:
        first = await change(1, key="c").acreate(accounts, Opened("ada"))
        each = change(1, key="a", if_match=first.etag)
        second = await each.aappend(accounts, first.log_id, Deposited(5))
        third = await change(1, key="e").aexecute(accounts, first.log_id, withdraw, 5)
        again = await change(1, key="e").aexecute(accounts, first.log_id, withdraw, 5)
        with pytest.raises(IdempotencyKeyReused):
            await change(2, key="e").aexecute(accounts, first.log_id, withdraw, 5)
        return [first.version, second.version, third.version, again.version]

    assert async_to_sync(requests)() == [1, 2, 3, 3]


class ReadsElsewhere:
    """A router that sends reads to a replica, which has nothing yet."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@pytest.mark.django_db(transaction=True)
def test_nothing_is_read_from_a_replica(settings):
    settings.DATABASE_ROUTERS = [ReadsElsewhere()]
    first = change(1, key="c").create(accounts, Opened("ada"))
    each = change(2, key="k", if_match=first.etag)

    assert each.append(accounts, first.log_id, Deposited(5)).version == 2
    assert change(2, key="k").append(accounts, first.log_id, Deposited(5)).version == 2
