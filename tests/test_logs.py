"""LogManager, on every store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest
from django.core.exceptions import ObjectDoesNotExist
from django.db import connection, connections, transaction
from django.utils.connection import ConnectionDoesNotExist

from eventlogs import (
    ANY,
    Aggregate,
    ConcurrentAppend,
    Feed,
    InvalidEvent,
    InvalidLogId,
    LogAlreadyExists,
    LogFull,
    LogId,
    LogManager,
    LogNotFound,
    LogState,
    RegistrationError,
    Unique,
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
    Parcel,
    Sent,
    Withdrawn,
    withdraw,
)
from tests.members import Greeted, Joined, Member


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


@pytest.mark.django_db
@pytest.mark.usefixtures("scratch_registry")
def test_the_class_of_an_event_may_use_the_database_while_events_are_read():
    """As long as rows are still to come, the connection cannot be used for anything else."""

    @event("tests.asking")
    @dataclass
    class Asking:
        amount: int

        def __post_init__(self) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")

    class Asked(Aggregate, log_type="asked", events=[Asking]):
        def apply(self, record: Any) -> None:
            IdempotencyKey.objects.exists()

    asked = LogManager(Asked)
    log_id = asked.create(*map(Asking, range(1_000))).log_id
    feed = Feed() if connection.vendor in ("postgresql", "sqlite") else None

    assert len(asked.load(log_id, limit=2_000)) == 1_000
    assert len(list(asked.stream(log_id))) == 1_000
    assert asked.reduce(log_id).version == 1_000
    assert asked.reduce(log_id, version=900).version == 900
    if feed is not None:
        assert len(feed.read(limit=2_000, log_types=["asked"])) == 1_000


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


# Unique values: the rest is in tests/contracts/rules.py.


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
