"""LogManager, on every store."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Annotated, Any

import pytest
from django.core.exceptions import ObjectDoesNotExist
from django.db import connection, connections, transaction
from django.utils.connection import ConnectionDoesNotExist
from django.utils.safestring import mark_safe

from eventlogs import (
    ANY,
    Aggregate,
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    InvalidEvent,
    InvalidIdempotencyKey,
    InvalidLogId,
    LogAlreadyExists,
    LogFull,
    LogId,
    LogManager,
    LogNotFound,
    LogState,
    RegistrationError,
    Unique,
    VersionNotReached,
    event,
)
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import EventLog, IdempotencyKey
from eventlogs.testing import MemoryStore
from eventlogs.testing.contracts.transactions import set_version
from tests.accounts import (
    Account,
    Deposited,
    Opened,
    Overdrawn,
    Parcel,
    Sent,
    Withdrawn,
    withdraw,
)
from tests.locks import a_session_waits
from tests.members import Greeted, Joined, Member
from tests.processes import until


def history(accounts: LogManager[Any], log_id: LogId | str) -> list[Any]:
    """Return a log's events."""
    return [record.event for record in accounts.stream(log_id)]


def deposits(accounts: LogManager[Any], count: int, **options: Any) -> LogState:
    """Create a log of so many events: deposits of 0, 1, 2 …"""
    return accounts.create(*(Deposited(amount) for amount in range(count)), **options)


# Ids


def test_a_new_id_is_of_the_managers_log_type_and_asks_no_database(accounts):
    log_id = accounts.new_id()

    assert log_id.log_type == "account"
    assert log_id != accounts.new_id()
    assert not accounts.exists(log_id)


@pytest.mark.parametrize("call", ["version", "exists", "load", "stream", "reduce", "parse_id"])
def test_an_id_is_taken_as_text_and_of_no_other_type(accounts, call):
    log_id = accounts.create(Opened("ada")).log_id
    method = getattr(accounts, call)

    assert repr(method(str(log_id)))[:12] == repr(method(log_id))[:12]
    with pytest.raises(InvalidLogId) as caught:
        method(LogId("parcel", log_id.uuid))
    assert caught.value.expected_type == "account"
    with pytest.raises(InvalidLogId):
        method(f"parcel_{str(log_id)[8:]}")
    with pytest.raises(InvalidLogId):
        method("account_1")


@pytest.mark.parametrize(
    "write",
    [
        lambda logs, log_id: logs.create(Opened("ada"), log_id=log_id),
        lambda logs, log_id: logs.append(log_id, Deposited(1), expected_version=ANY),
        lambda logs, log_id: logs.append(LogState(log_id, 1, 1), Deposited(1)),
        lambda logs, log_id: logs.get_or_create(Opened("a"), log_id=log_id, idempotency_key="k"),
        lambda logs, log_id: logs.get_or_append(
            LogState(log_id, 1, 1), Deposited(1), idempotency_key="k"
        ),
        lambda logs, log_id: logs.execute(log_id, withdraw, 1),
    ],
)
def test_a_log_of_another_type_is_not_written_to(accounts, store, write):
    parcels = LogManager(Parcel, store=store)
    parcel = parcels.create(Sent("ada")).log_id

    with pytest.raises(InvalidLogId):
        write(accounts, parcel)

    assert parcels.version(parcel) == 1


def test_the_uuid_of_a_log_with_another_types_prefix_is_not_found(accounts, store):
    log_id = accounts.create(Opened("ada")).log_id
    parcels, stranger = LogManager(Parcel, store=store), LogId("parcel", log_id.uuid)

    assert not parcels.exists(stranger)
    assert len(parcels.load(stranger, decode=False)) == 0
    assert list(parcels.stream(stranger)) == []
    with pytest.raises(LogNotFound):
        parcels.reduce(stranger)
    with pytest.raises(LogNotFound):
        parcels.append(stranger, Sent("ada"), expected_version=ANY)
    with pytest.raises(LogAlreadyExists):
        parcels.create(Sent("ada"), log_id=stranger)


# Creating and appending


def test_a_created_log_has_its_first_events(accounts, log_id):
    state = accounts.create(Opened("ada"), Deposited(5), log_id=log_id, metadata={"till": 7})

    page = accounts.load(log_id)
    assert (state.log_id, state.version, state.position) == (log_id, 2, page[1].position)
    assert [record.event for record in page] == [Opened("ada"), Deposited(5)]
    assert [record.index for record in page] == [0, 1]
    assert [record.metadata for record in page] == [{"till": 7}] * 2
    assert [record.type for record in page] == ["account.opened", "account.deposited"]
    assert [record.idempotency_key for record in page] == [None, None]
    assert {record.log_id for record in page} == {log_id}
    assert all(
        abs(record.recorded_at - datetime.now(UTC)) < timedelta(minutes=1) for record in page
    )


def test_a_log_is_given_an_id_if_it_has_none(accounts):
    one, other = accounts.create(Opened("ada")), accounts.create(Opened("ada"))

    assert one.log_id != other.log_id
    assert one.log_id.log_type == "account"


def test_creating_a_log_twice_is_refused(accounts, log_id):
    accounts.create(Opened("ada"), log_id=log_id)

    with pytest.raises(LogAlreadyExists) as caught:
        accounts.create(Opened("ada"), log_id=str(log_id))

    assert isinstance(caught.value, ConcurrentAppend)
    assert (caught.value.log_id, caught.value.actual_version) == (log_id, 1)


def test_an_append_continues_from_a_state_or_a_reduction(accounts):
    state = accounts.create(Opened("ada"))
    state = accounts.append(state, Deposited(5), Withdrawn(1))
    state = accounts.append(accounts.reduce(state.log_id), Deposited(7))

    assert state.version == 4
    assert accounts.reduce(state.log_id).aggregate.balance == 11


def test_an_append_to_an_id_requires_an_expected_version(accounts):
    log_id = accounts.create(Opened("ada")).log_id

    accounts.append(log_id, Deposited(1), expected_version=1)
    accounts.append(str(log_id), Deposited(2), expected_version=2)
    state = accounts.append(log_id, Deposited(3), expected_version=ANY)

    assert state.version == 4
    for to in (log_id, str(log_id)):
        with pytest.raises(TypeError, match=r"needs expected_version.*eventlogs\.ANY"):
            accounts.append(to, Deposited(1))


@pytest.mark.parametrize("expected", [True, "1", 1.0, [1]])
def test_an_expected_version_is_an_int_or_any(accounts, log_id, expected):
    with pytest.raises(TypeError, match=r"must be an int, or eventlogs\.ANY"):
        accounts.append(log_id, Deposited(1), expected_version=expected)


@pytest.mark.parametrize("expected", [-1, 2**31, 2**70])
def test_an_expected_version_out_of_range_is_refused(accounts, log_id, expected):
    with pytest.raises(
        ValueError, match=r"expected_version is .* must be an int from 0 to 2,147,483,647"
    ):
        accounts.append(log_id, Deposited(1), expected_version=expected)


def test_a_state_takes_no_other_expected_version(accounts):
    state = accounts.create(Opened("ada"))

    with pytest.raises(TypeError, match="is its own expectation"):
        accounts.append(state, Deposited(1), expected_version=ANY)
    with pytest.raises(TypeError, match="is its own expectation"):
        accounts.append(accounts.reduce(state.log_id), Deposited(1), expected_version=2)

    assert accounts.append(state, Deposited(1), expected_version=1).version == 2


def test_appending_at_version_0_creates(accounts, log_id):
    state = accounts.append(log_id, Deposited(1), expected_version=0)

    assert state.version == 1
    with pytest.raises(LogAlreadyExists):
        accounts.append(log_id, Deposited(1), expected_version=0)


def test_a_stale_state_is_a_conflict_with_its_facts(accounts):
    stale = accounts.create(Opened("ada"))
    accounts.append(stale, Deposited(1))

    for to in (stale, accounts.reduce(stale.log_id, version=1)):
        with pytest.raises(ConcurrentAppend) as caught:
            accounts.append(to, Deposited(2), Deposited(3))
        assert caught.value.log_id == stale.log_id
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
        assert not isinstance(caught.value, LogAlreadyExists)

    assert history(accounts, stale.log_id) == [Opened("ada"), Deposited(1)]


@pytest.mark.parametrize("expected", [ANY, 1, 2**31 - 1])
def test_an_append_to_a_log_that_does_not_exist_is_refused(accounts, log_id, expected):
    with pytest.raises(LogNotFound) as caught:
        accounts.append(log_id, Deposited(1), expected_version=expected)

    assert caught.value.log_id == log_id
    assert not accounts.exists(log_id)


def test_all_events_of_an_append_are_stored_or_none(accounts):
    state = accounts.create(Opened("ada"))

    with pytest.raises(InvalidEvent):
        accounts.append(state, Deposited(1), Deposited("2"))  # type: ignore[arg-type]
    appended = accounts.append(state, Deposited(1), Deposited(2), Withdrawn(3))

    page = accounts.load(state.log_id, start=1)
    assert [record.event for record in page] == [Deposited(1), Deposited(2), Withdrawn(3)]
    assert [record.index for record in page] == [1, 2, 3]
    assert page[0].position < page[1].position < page[2].position == appended.position


def test_an_append_takes_ten_thousand_events(accounts):
    state = deposits(accounts, 10_000)

    assert state.version == 10_000
    assert accounts.load(state.log_id, reverse=True, limit=1)[0].event == Deposited(9_999)


@pytest.mark.parametrize("idempotency_key", [None, "the last one"])
def test_a_log_takes_2147483647_events(database_store, db, idempotency_key):
    accounts = LogManager(Account, store=database_store)
    log_id = accounts.create(Opened("ada")).log_id
    set_version(log_id, 2**31 - 3)

    with pytest.raises(LogFull) as too_many:
        accounts.append(log_id, *[Deposited(1)] * 3, expected_version=ANY)
    state = accounts.append(
        log_id, *[Deposited(1)] * 2, expected_version=ANY, idempotency_key=idempotency_key
    )
    with pytest.raises(LogFull) as full:
        accounts.append(state, Deposited(1))
    with pytest.raises(LogFull):
        accounts.append(state, Deposited(1), idempotency_key="one too many")

    assert state.version == 2**31 - 1
    assert (too_many.value.actual_version, too_many.value.count) == (2**31 - 3, 3)
    assert (full.value.actual_version, full.value.count) == (2**31 - 1, 1)
    assert full.value.log_id == log_id
    last = accounts.load(log_id, reverse=True, limit=2)
    assert [record.index for record in last] == [2**31 - 2, 2**31 - 3]
    assert accounts.load(log_id, start=2**31 - 3).next_start is None


# Idempotency keys


def test_the_retry_of_a_lost_acknowledgement_is_a_replay_not_a_conflict(accounts):
    state = accounts.create(Opened("ada"))
    answer = accounts.append(state, Deposited(5), idempotency_key="k")

    with pytest.raises(IdempotentReplay) as caught:
        accounts.append(state, Deposited(5), idempotency_key="k")

    assert caught.value.idempotency_key == "k"
    assert (caught.value.log_id, caught.value.index) == (state.log_id, 1)
    assert caught.value.state == answer
    assert accounts.version(state.log_id) == 2


def test_a_replay_carries_the_original_state_also_after_later_appends(accounts):
    created = accounts.create(Opened("ada"), Deposited(1), idempotency_key="created")
    appended = accounts.append(created, Deposited(5), Deposited(6), idempotency_key="appended")
    accounts.append(appended, Deposited(7))
    accounts.append(created.log_id, Deposited(8), expected_version=ANY, idempotency_key="later")

    with pytest.raises(IdempotentReplay) as created_again:
        accounts.create(Opened("ada"), Deposited(1), idempotency_key="created")
    with pytest.raises(IdempotentReplay) as appended_again:
        accounts.append(created, Deposited(5), Deposited(6), idempotency_key="appended")

    assert (created_again.value.index, created_again.value.state) == (0, created)
    assert (appended_again.value.index, appended_again.value.state) == (2, appended)


def test_a_create_that_is_retried_with_another_new_id_is_a_replay(accounts, log_id):
    created = accounts.create(Opened("ada"), idempotency_key="k")

    for again in (log_id, None, created.log_id):
        with pytest.raises(IdempotentReplay) as caught:
            accounts.create(Opened("ada"), log_id=again, idempotency_key="k")
        assert caught.value.state == created

    assert not accounts.exists(log_id)


def test_a_key_with_other_events_is_reused(accounts):
    state = accounts.create(Opened("ada"))
    accounts.append(state, Deposited(5), idempotency_key="k")

    for events in ([Deposited(6)], [Deposited(5), Deposited(5)], [Withdrawn(5)]):
        with pytest.raises(IdempotencyKeyReused) as caught:
            accounts.append(state, *events, idempotency_key="k")
        assert caught.value.idempotency_key == "k"
        assert (caught.value.log_id, caught.value.index) == (state.log_id, 1)
    with pytest.raises(IdempotencyKeyReused):
        accounts.create(Opened("ada"), idempotency_key="k")

    assert accounts.version(state.log_id) == 2


def test_the_key_of_another_log_is_reused(accounts):
    one, other = accounts.create(Opened("ada")), accounts.create(Opened("ada"))
    accounts.append(one, Deposited(5), idempotency_key="k")

    with pytest.raises(IdempotencyKeyReused) as caught:
        accounts.append(other, Deposited(5), idempotency_key="k")

    assert caught.value.log_id == one.log_id
    assert accounts.version(other.log_id) == 1


def test_an_append_that_begins_a_log_is_no_retry_of_another_logs_create(accounts):
    """The call names its log: the state of the other one as an answer would hide lost events."""
    created = accounts.create(Opened("ada"), idempotency_key="k")
    other = accounts.new_id()

    for to in (other, LogState(other, 0, 0)):
        for append in (accounts.append, accounts.get_or_append):
            expected = {} if isinstance(to, LogState) else {"expected_version": 0}
            with pytest.raises(IdempotencyKeyReused) as caught:
                append(to, Opened("ada"), idempotency_key="k", **expected)
            assert (caught.value.log_id, caught.value.reason) == (created.log_id, "log")
    assert not accounts.exists(other)

    again = accounts.get_or_append(
        created.log_id, Opened("ada"), idempotency_key="k", expected_version=0
    )
    assert again == (created, False)
    assert accounts.get_or_create(Opened("ada"), log_id=other, idempotency_key="k") == (
        created,
        False,
    )


def test_a_log_type_has_its_own_keys(accounts, store):
    accounts.create(Opened("ada"), idempotency_key="k")

    state = LogManager(Parcel, store=store).create(Sent("ada"), idempotency_key="k")

    assert state.version == 1


@pytest.mark.parametrize(
    ("key", "limit"),
    [
        ("", "must have 1 to 255 characters"),
        ("k" * 256, "must have 1 to 255 characters"),
        ("a\0b", "NUL"),
        ("a\ud800b", "lone surrogates"),
        (7, "must be a str, not int"),
        (b"k", "must be a str, not bytes"),
    ],
)
def test_an_invalid_key_is_refused(accounts, key, limit):
    state = accounts.create(Opened("ada"))

    for call in (
        lambda: accounts.create(Opened("ada"), idempotency_key=key),
        lambda: accounts.append(state, Deposited(1), idempotency_key=key),
        lambda: accounts.get_or_create(Opened("ada"), idempotency_key=key),
        lambda: accounts.get_or_append(state, Deposited(1), idempotency_key=key),
        lambda: accounts.execute(state.log_id, withdraw, 0, idempotency_key=key),
    ):
        with pytest.raises(InvalidIdempotencyKey, match=limit):
            call()

    assert accounts.version(state.log_id) == 1


@pytest.mark.parametrize("key", ["k" * 255, "é☃\U0001f600" * 85, " ", "k ", "a'b\"c\\d%s%(x)s\n"])
def test_a_key_of_any_characters_is_found_again(accounts, key):
    created = accounts.create(Opened("ada"), idempotency_key=key)

    assert accounts.get_or_create(Opened("ada"), idempotency_key=key) == (created, False)
    assert accounts.load(created.log_id)[0].idempotency_key == key


class Button(str, Enum):  # noqa: UP042 - str() of a StrEnum is its value
    """Its ``str()`` is "Button.PAY", its characters are "pay"."""

    PAY = "pay"


@pytest.mark.parametrize("kind", [LogId.parse, mark_safe, lambda _: Button.PAY])
def test_a_key_of_a_str_subclass_is_stored_as_its_characters(accounts, kind):
    """A key of another module's class with the same name would be taken for the same otherwise."""
    key = kind("account_01h455vb4pex5vsknk084sn02q")
    created = accounts.create(Opened("ada"), idempotency_key=key)

    plain = "pay" if key is Button.PAY else "account_01h455vb4pex5vsknk084sn02q"
    assert accounts.load(created.log_id)[0].idempotency_key == plain
    for again in (key, plain):
        assert accounts.get_or_create(Opened("ada"), idempotency_key=again) == (created, False)


def test_a_key_is_known_after_a_rotation_of_the_secret_key(accounts, settings):
    settings.SECRET_KEY = "old"
    state = accounts.create(Opened("ada"), idempotency_key="k")

    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", ["old"]

    with pytest.raises(IdempotentReplay) as caught:
        accounts.create(Opened("ada"), idempotency_key="k")
    assert caught.value.state == state
    with pytest.raises(IdempotencyKeyReused):
        accounts.create(Opened("bob"), idempotency_key="k")


def test_after_its_secret_key_is_gone_a_key_is_known_by_the_events_that_are_stored(
    accounts, settings
):
    settings.SECRET_KEY = "old"
    created = accounts.create(Opened("ada"), idempotency_key="k")

    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", []

    assert accounts.get_or_create(Opened("ada"), idempotency_key="k") == (created, False)
    with pytest.raises(IdempotencyKeyReused):
        accounts.create(Opened("bob"), idempotency_key="k")


def test_a_pruned_key_is_a_free_one(database_store, db):
    accounts = LogManager(Account, store=database_store)
    first = accounts.create(Opened("ada"), idempotency_key="k")

    assert IdempotencyKey.objects.prune(older_than=timedelta()) == 1
    second = accounts.create(Opened("ada"), idempotency_key="k")

    assert second.log_id != first.log_id
    assert accounts.load(first.log_id)[0].idempotency_key == "k"


def test_get_or_create_answers_the_original_state(accounts, log_id):
    created, was_created = accounts.get_or_create(
        Opened("ada"), Deposited(1), idempotency_key="k", metadata={"a": 1}
    )
    accounts.append(created, Deposited(2))

    again = accounts.get_or_create(Opened("ada"), Deposited(1), idempotency_key="k", log_id=log_id)

    assert was_created
    assert again == (created, False)
    assert accounts.load(created.log_id)[0].metadata == {"a": 1}
    with pytest.raises(IdempotencyKeyReused):
        accounts.get_or_create(Opened("bob"), idempotency_key="k")
    with pytest.raises(LogAlreadyExists):
        accounts.get_or_create(Opened("ada"), idempotency_key="l", log_id=created.log_id)


def test_get_or_append_answers_the_original_state(accounts):
    state = accounts.create(Opened("ada"))
    appended, was_appended = accounts.get_or_append(state, Deposited(2), idempotency_key="k")
    accounts.append(appended, Deposited(3))

    again = accounts.get_or_append(state, Deposited(2), idempotency_key="k")
    by_id = accounts.get_or_append(
        state.log_id, Deposited(2), idempotency_key="k", expected_version=ANY
    )

    assert was_appended
    assert again == by_id == (appended, False)
    with pytest.raises(IdempotencyKeyReused):
        accounts.get_or_append(state, Deposited(3), idempotency_key="k")
    with pytest.raises(ConcurrentAppend):
        accounts.get_or_append(state, Deposited(2), idempotency_key="l")


# Executing


def test_events_that_a_decider_yields_are_appended(accounts):
    state = accounts.create(Opened("ada"), Deposited(10))

    after = accounts.execute(state.log_id, withdraw, 4, metadata={"till": 7})
    after = accounts.execute(str(state.log_id), withdraw, amount=5)

    assert after.version == 4
    assert history(accounts, state.log_id)[2:] == [Withdrawn(4), Withdrawn(5)]
    assert accounts.load(state.log_id, start=2)[0].metadata == {"till": 7}


@pytest.mark.parametrize(
    ("decider", "decided"),
    [
        (lambda account: [Deposited(1), Deposited(2)], [Deposited(1), Deposited(2)]),
        (lambda account: (Deposited(1),), [Deposited(1)]),
        (lambda account: Deposited(1), [Deposited(1)]),
        (lambda account: (Deposited(n) for n in range(2)), [Deposited(0), Deposited(1)]),
        (lambda account: None, []),
        (lambda account: [], []),
        (lambda account: iter(()), []),
    ],
)
def test_a_decider_yields_or_returns_any_number_of_events(accounts, decider, decided):
    state = accounts.create(Opened("ada"))

    after = accounts.execute(state.log_id, decider)

    assert history(accounts, state.log_id)[1:] == decided
    assert (after.log_id, after.version) == (state.log_id, 1 + len(decided))
    assert decided or after == state


def test_an_error_of_a_decider_is_raised_and_nothing_is_stored(accounts):
    state = accounts.create(Opened("ada"), Deposited(3))

    with pytest.raises(Overdrawn):
        accounts.execute(state.log_id, withdraw, 4, idempotency_key="k")

    assert accounts.version(state.log_id) == 2
    assert accounts.execute(state.log_id, withdraw, 3, idempotency_key="k").version == 3


def test_a_decider_is_asked_again_with_the_newer_aggregate(accounts):
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    seen = []

    def decide(account: Account) -> Any:
        seen.append(account.balance)
        if len(seen) < 3:
            accounts.append(log_id, Deposited(1), expected_version=ANY)
        yield Withdrawn(account.balance)

    state = accounts.execute(log_id, decide, retries=2)

    assert seen == [10, 11, 12]
    assert state.version == 5
    assert accounts.reduce(log_id).aggregate.balance == 0


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_decider_is_asked_once_more_for_each_retry(accounts, retries):
    log_id = accounts.create(Opened("ada")).log_id
    asked = []

    def decide(account: Account) -> Any:
        asked.append(account)
        accounts.append(log_id, Deposited(1), expected_version=ANY)
        yield Withdrawn(1)

    with pytest.raises(ConcurrentAppend):
        accounts.execute(log_id, decide, retries=retries)

    assert len(asked) == retries + 1
    with pytest.raises(ValueError, match=r"retries is -1\. It must be an int of 0 or more"):
        accounts.execute(log_id, decide, retries=-1)


def test_a_key_is_looked_up_before_the_decider_is_asked(accounts):
    state = accounts.create(Opened("ada"), Deposited(10))
    first = accounts.execute(state.log_id, withdraw, 10, idempotency_key="k")
    accounts.append(first, Deposited(1))

    # Asked again, the decider would raise Overdrawn.
    again = accounts.execute(state.log_id, withdraw, 10, idempotency_key="k")

    assert again == first
    assert accounts.version(state.log_id) == 4


def test_a_key_of_another_log_is_refused_before_the_decider_is_asked(accounts):
    one, other = accounts.create(Opened("ada")), accounts.create(Opened("ada"))
    accounts.append(one, Deposited(1), idempotency_key="k")

    with pytest.raises(IdempotencyKeyReused) as caught:
        accounts.execute(other.log_id, withdraw, 1_000, idempotency_key="k")

    assert caught.value.log_id == one.log_id


def test_a_key_that_is_taken_while_the_decider_decides_answers_the_faster_call(accounts):
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    faster: list[Any] = []

    def decide(account: Account) -> Any:
        if not faster:
            faster.append(accounts.execute(log_id, withdraw, 1, idempotency_key="k"))
        yield Withdrawn(2)

    state = accounts.execute(log_id, decide, idempotency_key="k", retries=0)

    assert [state] == faster
    assert accounts.reduce(log_id).aggregate.balance == 9


def test_executing_on_a_log_that_does_not_exist_is_refused(accounts, log_id):
    with pytest.raises(LogNotFound):
        accounts.execute(log_id, withdraw, 0)


def test_a_decider_may_name_its_arguments_as_it_likes(accounts):
    log_id = accounts.create(Opened("ada")).log_id

    def decide(account: Account, first: int, *, using: str) -> Any:
        return Deposited(first + len(using))

    accounts.execute(log_id, decide, 1, using="xx")

    assert accounts.reduce(log_id).aggregate.balance == 3


def faster(accounts: LogManager[Account], log_id: LogId, elsewhere: Any, times: int = 1) -> Any:
    """Return a decider that lets another writer append while it decides, a number of times."""
    seen = []

    def decide(account: Account) -> Any:
        seen.append(account.balance)
        if len(seen) <= times:
            elsewhere(lambda: accounts.append(log_id, Deposited(1), expected_version=ANY))
        yield Withdrawn(account.balance)

    return decide


def test_without_retries_execute_does_not_wait_for_a_turn(database_accounts, elsewhere):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada")).log_id
    accounts._contended.add(log_id)

    with pytest.raises(ConcurrentAppend):
        accounts.execute(log_id, faster(accounts, log_id, elsewhere), retries=0)

    assert accounts.version(log_id) == 2


@pytest.mark.locks
@pytest.mark.parametrize("in_atomic", [False, True])
def test_a_retry_holds_the_log_until_its_decision_is_stored(
    database_accounts, elsewhere, in_atomic
):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    late: list[Any] = []

    def append_late() -> Any:
        try:
            return accounts.append(log_id, Deposited(5), expected_version=ANY)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:

        def decide(account: Account) -> Any:
            if account.balance == 10:
                elsewhere(lambda: accounts.append(log_id, Deposited(1), expected_version=ANY))
            else:
                late.append(pool.submit(append_late))
                if connection.vendor == "postgresql":
                    until(lambda: a_session_waits() or late[0].done())
                assert not late[0].done()
            yield Withdrawn(account.balance)

        with transaction.atomic() if in_atomic else nullcontext():
            state = accounts.execute(log_id, decide, retries=1)
        assert late[0].result(60).version == 5

    assert state.version == 4
    assert history(accounts, log_id)[2:] == [Deposited(1), Withdrawn(11), Deposited(5)]


def test_an_error_of_a_decider_undoes_its_appends_to_other_logs(database_accounts, elsewhere):
    accounts = database_accounts
    log_id, other = (accounts.create(Opened("ada")).log_id for _ in range(2))
    decided: list[int] = []

    def decide(account: Account) -> Any:
        decided.append(account.balance)
        accounts.append(other, Deposited(1), expected_version=ANY)
        raise Overdrawn

    accounts._contended.add(log_id)
    with pytest.raises(Overdrawn):
        accounts.execute(log_id, decide)

    assert decided == [0]
    assert accounts.version(other) == 1


def test_a_conflict_of_another_log_in_a_decider_is_the_callers(accounts):
    one, other = accounts.create(Opened("ada")), accounts.create(Opened("ada"))
    decided: list[int] = []

    def decide(account: Account) -> Any:
        decided.append(1)
        accounts.append(other.log_id, Deposited(1), expected_version=7)

    with pytest.raises(ConcurrentAppend) as caught:
        accounts.execute(one.log_id, decide)

    assert caught.value.log_id == other.log_id
    assert decided == [1]


def test_a_key_that_is_taken_before_the_turn_answers_its_call(database_accounts, elsewhere):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    faster_call: list[Any] = []

    def decide(account: Account) -> Any:
        faster_call.append(
            elsewhere(lambda: accounts.execute(log_id, withdraw, 1, idempotency_key="k"))
        )
        elsewhere(lambda: accounts.append(log_id, Deposited(1), expected_version=ANY))
        yield Withdrawn(2)

    state = accounts.execute(log_id, decide, idempotency_key="k")

    assert [state] == faster_call
    assert accounts.version(log_id) == 4


def test_a_log_that_is_contended_is_locked_at_once(database_accounts, elsewhere):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    accounts.execute(log_id, faster(accounts, log_id, elsewhere))
    inside = []

    accounts.execute(log_id, lambda account: inside.append(connection.in_atomic_block))

    assert inside == [True]


def test_racing_calls_with_one_key_decide_once(database_accounts, race):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada"), Deposited(100)).log_id

    answers = race(
        *[lambda: accounts.execute(log_id, withdraw, 7, idempotency_key="k", retries=0)] * 6
    )

    assert answers == [answers[0]] * 6
    assert answers[0].version == 3
    assert accounts.reduce(log_id).aggregate.balance == 93


def test_racing_creates_with_one_key_create_one_log(database_accounts, race):
    accounts = database_accounts

    answers = race(*[lambda: accounts.get_or_create(Opened("ada"), idempotency_key="k")] * 6)

    assert len({state for state, _ in answers}) == 1
    assert sorted(created for _, created in answers) == [False] * 5 + [True]
    assert EventLog.objects.count() == 1


def test_racing_appends_have_one_winner_and_leave_no_hole(database_accounts, race):
    accounts = database_accounts
    state = accounts.create(Opened("ada"))

    answers = race(*[lambda: accounts.append(state, Deposited(1), Deposited(2))] * 6)

    assert sum(isinstance(answer, LogState) for answer in answers) == 1
    assert sum(type(answer) is ConcurrentAppend for answer in answers) == 5
    assert [record.index for record in accounts.stream(state.log_id)] == [0, 1, 2]


# Reducing


def test_a_reduction_is_the_folded_log(accounts):
    state = accounts.create(Opened("ada"), Deposited(5), Withdrawn(2))

    reduction = accounts.reduce(state.log_id)

    assert reduction.aggregate == Account(owner="ada", balance=3)
    assert reduction.state == state
    assert reduction.etag == state.etag


def test_reducing_a_log_that_does_not_exist_is_a_does_not_exist(accounts, log_id):
    for options in ({}, {"version": 1}, {"version": 0}, {"at": datetime.now(UTC)}):
        with pytest.raises(LogNotFound) as caught:
            accounts.reduce(log_id, **options)
        assert isinstance(caught.value, ObjectDoesNotExist)
        assert caught.value.log_id == log_id


def test_reducing_a_hundred_times_changes_nothing(accounts):
    log_id = accounts.create(Opened("ada"), Deposited(5)).log_id

    reductions = [accounts.reduce(log_id) for _ in range(100)]

    assert {(each.version, each.aggregate.balance) for each in reductions} == {(2, 5)}
    assert len({id(each.aggregate) for each in reductions}) == 100


def test_a_log_is_reduced_as_of_any_version(accounts):
    log_id = deposits(accounts, 6).log_id

    for version in range(1, 7):
        reduction = accounts.reduce(log_id, version=version)
        assert reduction.version == version
        assert reduction.aggregate.balance == sum(range(version))
        assert reduction.position == accounts.load(log_id)[version - 1].position


def test_a_version_that_is_not_reached_yet_is_refused(accounts):
    log_id = deposits(accounts, 3).log_id

    with pytest.raises(VersionNotReached) as caught:
        accounts.reduce(log_id, version=4)

    assert caught.value.log_id == log_id
    assert (caught.value.version, caught.value.actual_version) == (4, 3)


@pytest.mark.parametrize("version", [-1, True, 1.0, "1"])
def test_a_version_is_a_count(accounts, version):
    log_id = deposits(accounts, 3).log_id

    with pytest.raises(ValueError, match=r"version is .* must be an int of 0 or more"):
        accounts.reduce(log_id, version=version)


def test_a_log_is_reduced_as_of_a_moment_by_when_events_were_recorded(accounts):
    log_id = accounts.create(Deposited(1)).log_id
    for amount in (2, 4):
        time.sleep(0.005)
        accounts.append(log_id, Deposited(amount), Deposited(0), expected_version=ANY)
    times = [record.recorded_at for record in accounts.stream(log_id)]

    def balance(at: datetime) -> int:
        return accounts.reduce(log_id, at=at).aggregate.balance

    assert times == sorted(times)
    assert [balance(at) for at in times] == [1, 3, 3, 7, 7]
    assert balance(times[1] - timedelta(microseconds=1)) == 1
    assert balance(times[3] - timedelta(microseconds=1)) == 3
    assert balance(datetime.now(UTC) + timedelta(days=1)) == 7
    with pytest.raises(LogNotFound, match="did not exist at"):
        accounts.reduce(log_id, at=times[0] - timedelta(microseconds=1))


def test_a_moment_has_a_time_zone(accounts):
    log_id = deposits(accounts, 1).log_id

    with pytest.raises(ValueError, match="with a time zone"):
        accounts.reduce(log_id, at=datetime(2026, 1, 1))
    with pytest.raises(TypeError, match="not both"):
        accounts.reduce(log_id, version=1, at=datetime.now(UTC))


def test_time_does_not_run_backwards_within_a_log(accounts):
    log_id = accounts.create(Deposited(1)).log_id
    for _ in range(30):
        accounts.append(log_id, Deposited(1), expected_version=ANY)

    times = [record.recorded_at for record in accounts.stream(log_id)]

    assert times == sorted(times)


# Reading


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8, 10_000])
@pytest.mark.parametrize("count", [1, 6, 7])
def test_pages_that_follow_one_another_are_the_whole_log(accounts, reverse, limit, count):
    log_id = deposits(accounts, count).log_id
    found, pages, start = [], 0, None

    while True:
        page = accounts.load(log_id, start=start, limit=limit, reverse=reverse)
        found += [record.index for record in page]
        pages += 1
        start = page.next_start
        if start is None:
            break
        assert len(page) == limit

    assert found == sorted(range(count), reverse=reverse)
    assert pages == -(-count // limit)


@pytest.mark.parametrize(
    ("options", "indexes", "next_start"),
    [
        ({"start": 0, "limit": 3}, [0, 1, 2], 3),
        ({"start": 4, "limit": 3}, [4, 5, 6], None),
        ({"start": 3, "limit": 3}, [3, 4, 5], 6),
        ({"start": 6}, [6], None),
        ({"start": 7}, [], None),
        ({"start": 2**70}, [], None),
        ({"limit": 2, "reverse": True}, [6, 5], 4),
        ({"start": 1, "limit": 2, "reverse": True}, [1, 0], None),
        ({"start": 2, "limit": 2, "reverse": True}, [2, 1], 0),
        ({"start": 0, "limit": 2, "reverse": True}, [0], None),
        ({"start": 100, "limit": 2, "reverse": True}, [6, 5], 4),
        ({"start": 2**70, "limit": 1, "reverse": True}, [6], 5),
    ],
)
def test_a_page_may_begin_at_any_index(accounts, options, indexes, next_start):
    log_id = deposits(accounts, 7).log_id

    page = accounts.load(log_id, **options)

    assert [record.index for record in page] == indexes
    assert page.next_start == next_start


def test_a_page_holds_as_many_events_as_the_setting_says(accounts, settings):
    log_id = deposits(accounts, 101).log_id
    assert len(accounts.load(log_id)) == 100

    settings.EVENTLOGS = {"PAGE_SIZE": 3}

    assert len(accounts.load(log_id)) == 3
    assert len(accounts.load(log_id, limit=4)) == 4


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -1}, {"limit": 10_001}, {"start": -1}])
def test_a_page_out_of_bounds_is_refused(accounts, log_id, options):
    with pytest.raises(ValueError, match="must"):
        accounts.load(log_id, **options)


def test_a_raw_page_has_json_values_in_the_place_of_events(accounts):
    log_id = accounts.create(Opened("ada"), Deposited(5)).log_id

    page = accounts.load(log_id, decode=False)

    assert [record.event for record in page] == [{"owner": "ada"}, {"amount": 5}]
    assert [record.type for record in page] == ["account.opened", "account.deposited"]


def test_a_stream_crosses_the_borders_of_its_pages(accounts):
    state = deposits(accounts, 4_000)
    accounts.append(state, Deposited(4_000))

    assert [record.index for record in accounts.stream(state.log_id)] == list(range(4_001))
    assert [record.index for record in accounts.stream(state.log_id, start=1_999)] == list(
        range(1_999, 4_001)
    )
    assert [
        record.event["amount"] for record in accounts.stream(state.log_id, start=2, decode=False)
    ] == list(range(2, 4_001))
    assert accounts.reduce(state.log_id).aggregate.balance == sum(range(4_001))
    assert accounts.reduce(state.log_id, version=4_000).version == 4_000
    assert accounts.reduce(state.log_id, version=2_000).version == 2_000
    assert accounts.reduce(state.log_id, version=2_001).version == 2_001


def test_a_stream_is_lazy_and_sees_what_is_appended_before_its_last_page(accounts):
    log_id = deposits(accounts, 2_000).log_id
    stream = accounts.stream(log_id)

    first = next(stream)
    accounts.append(log_id, Deposited(7), expected_version=ANY)

    assert first.index == 0
    assert [record.index for record in stream][-1] == 2_000


def test_a_stream_refuses_invalid_arguments_at_once(accounts, log_id):
    with pytest.raises(ValueError, match=r"start is -1\. It must be an int of 0 or more"):
        accounts.stream(log_id, start=-1)
    with pytest.raises(InvalidLogId):
        accounts.stream("nonsense")

    assert list(accounts.stream(log_id)) == []


def test_a_log_exists_from_its_first_event_on(accounts, log_id):
    assert (accounts.exists(log_id), accounts.version(log_id)) == (False, 0)

    accounts.create(Opened("ada"), Deposited(1), log_id=log_id)

    assert (accounts.exists(log_id), accounts.version(log_id)) == (True, 2)


# Databases and stores


def test_a_manager_uses_the_given_database(second_database):
    second = LogManager(Account, using=second_database)

    state = second.create(Opened("ada"), idempotency_key="k")
    second.execute(state.log_id, lambda account: Deposited(1), idempotency_key="l")

    assert second.reduce(state.log_id).version == 2
    assert not Account.logs.exists(state.log_id)
    assert EventLog.objects.using(second_database).count() == 1
    assert Account.logs.create(Opened("ada"), idempotency_key="k").version == 1
    with transaction.atomic(using=second_database):
        assert second.append(second.reduce(state.log_id), Deposited(1)).version == 3
        transaction.set_rollback(True, using=second_database)
    assert second.version(state.log_id) == 2


class ReplicaRouter:
    """Read from the alias ``replica``, write to the default database."""

    replica = ""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return self.replica

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


def test_routers_choose_the_databases_for_reads_and_writes(second_database, settings):
    router = ReplicaRouter()
    router.replica = second_database
    settings.DATABASE_ROUTERS = [router]
    state = Account.logs.create(Opened("ada"))

    assert not Account.logs.exists(state.log_id)
    with transaction.atomic():
        assert Account.logs.reduce(state.log_id).version == 1
    Account.logs.execute(state.log_id, lambda account: Deposited(1))
    assert LogManager(Account, using="default").version(state.log_id) == 2
    with connections[second_database].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM eventlogs_event")
        assert cursor.fetchone() == (0,)


def test_an_unknown_database_is_an_error(db):
    with pytest.raises(ConnectionDoesNotExist):
        LogManager(Account, using="nowhere").exists(Account.logs.new_id())


def test_a_custom_store_replaces_the_one_of_the_database(db):
    store = MemoryStore()

    state = LogManager(Account, store=store).create(Opened("ada"))

    assert store.version(state.log_id) == 1
    assert not Account.logs.exists(state.log_id)


def test_default_managers_write_where_the_models_are(db):
    state = Account.logs.create(Opened("ada"))

    assert EventLog.objects.get().log_id == state.log_id
    assert connection.in_atomic_block


# Rules across logs: what is wrong with a call. The rest is in tests/contracts/rules.py.


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda state: state, TypeError, r"also_expect=\[state\]"),
        (lambda state: str(state.log_id), TypeError, r"also_expect=\[state\]"),
        (lambda state: [state.log_id], TypeError, "not a LogId"),
        (lambda state: [state] * 101, ValueError, "It takes 100 at most"),
        (lambda state: [LogState(state.log_id, 0, 0)], ValueError, "version is 0"),
        (lambda state: [LogState(state.log_id, 1, -1)], ValueError, "position is -1"),
    ],
)
def test_what_cannot_be_also_expected_is_refused(accounts, log_id, wrong, error, text):
    other = accounts.create(Opened("Ann"))
    state = accounts.create(Opened("Bob"), log_id=log_id)

    for call in (
        lambda also: accounts.append(state, Deposited(1), also_expect=also),
        lambda also: accounts.execute(log_id, lambda _: Deposited(1), also_expect=also),
    ):
        with pytest.raises(error, match=text):
            call(wrong(other))
    with pytest.raises(ValueError, match="Its state is the first argument"):
        accounts.append(state, Deposited(1), also_expect=[state])
    assert accounts.version(log_id) == 1


@pytest.mark.parametrize("version", [-1, True, "3", 2**31])
def test_execute_refuses_an_expected_version_that_cannot_be(accounts, log_id, version):
    with pytest.raises(ValueError, match="expected_version is"):
        accounts.execute(log_id, lambda _: None, expected_version=version)


def test_a_scope_that_no_event_declares_cannot_be_found(db):
    with pytest.raises(ValueError, match=r"events: 'member\.email', 'member\.card'"):
        Member.logs.find("member.mail", "a")
    with pytest.raises(ValueError, match="Scopes of its events: none"):
        Account.logs.find("member.email", "a")
    with pytest.raises(TypeError, match="normalize= can make one of it"):
        Member.logs.find("member.card", 1.5)
    with pytest.raises(TypeError, match="casefold"):
        Member.logs.find("member.email", 7)


def test_a_store_that_keeps_no_rules_is_not_asked_to(db):
    class Old(MemoryStore):
        keeps_rules = False

    members, accounts = LogManager(Member, store=Old()), LogManager(Account, store=Old())
    state = accounts.create(Opened("Ann"))

    with pytest.raises(NotImplementedError, match="Old cannot keep values unique"):
        members.create(Joined("a"))
    with pytest.raises(NotImplementedError, match="Nothing was stored"):
        accounts.create(Opened("Bob"), also_expect=[state])
    assert members.create(Greeted()).version == 1


def test_encoded_events_claim_what_their_classes_declare(db):
    log_id = Member.logs.new_id()

    EventLog.objects.append(
        log_id, [EncodedEvent("member.joined", 1, '{"email":"A"}')], expected_version=0
    )

    assert Member.logs.find("member.email", "a") == log_id


@pytest.mark.usefixtures("scratch_registry")
def test_one_scope_with_two_normalize_functions_has_no_manager():
    @event("tests.lowered")
    @dataclass
    class Lowered:
        email: Annotated[str, Unique("member.email", normalize=str.lower)]

    class Mixed(Aggregate, log_type="mixed", events=[Joined, Lowered]):
        pass

    with pytest.raises(RegistrationError, match="two different normalize functions"):
        LogManager(Mixed)
