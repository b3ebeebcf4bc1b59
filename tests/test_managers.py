"""The querysets of the tables, and appending by rows."""

from __future__ import annotations

from dataclasses import make_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs import (
    ANY,
    ConcurrentAppend,
    InvalidLogId,
    LogAlreadyExists,
    LogId,
    LogManager,
    event,
)
from eventlogs import managers as managers_module
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.stores import store_for
from eventlogs.testing import MemoryStore
from tests.accounts import Account, Deposited, Opened, Parcel, Sent, Withdrawn, encoded

accounts = Account.logs


@pytest.fixture
def log_id(db):
    state = accounts.create(Opened("ada"), Deposited(5), Withdrawn(1), Deposited(2))
    accounts.create(Opened("bob"), Deposited(7))
    return state.log_id


# Reading


@pytest.mark.parametrize("form", [lambda log_id: log_id, str])
def test_the_events_of_a_log_are_in_order(log_id, form):
    events = Event.objects.for_log(form(log_id))

    assert [row.index for row in events] == [0, 1, 2, 3]
    assert [row.data for row in events][:2] == [{"owner": "ada"}, {"amount": 5}]
    assert {row.log_id for row in events} == {log_id.uuid}


def test_the_events_of_a_log_of_another_type_with_the_same_uuid_are_none(log_id):
    assert not Event.objects.for_log(LogId("parcel", log_id.uuid)).exists()
    with pytest.raises(InvalidLogId):
        Event.objects.for_log("nonsense")


def test_events_after_an_index(log_id):
    assert [row.index for row in Event.objects.for_log(log_id).after(1)] == [2, 3]
    assert not Event.objects.for_log(log_id).after(3).exists()
    assert Event.objects.after(1).count() == 2


@pytest.mark.parametrize(
    ("types", "count"),
    [
        (["account.deposited"], 3),
        ([Deposited], 3),
        ([Deposited, "account.withdrawn"], 4),
        (["account.never"], 0),
        ([], 0),
    ],
)
def test_events_of_types(log_id, types, count):
    assert Event.objects.of_type(*types).count() == count


@pytest.mark.usefixtures("scratch_registry")
def test_events_of_a_type_are_found_under_its_older_names(log_id):
    cls: Any = event("account.paid_in", aliases=["account.deposited"])(
        make_dataclass("PaidIn", [("amount", int)])
    )

    assert Event.objects.of_type("account.paid_in").count() == 3
    assert Event.objects.of_type(cls).count() == 3


def test_a_class_without_a_type_is_no_type(db):
    with pytest.raises(TypeError, match="is not an event class"):
        Event.objects.of_type(int)


def test_events_recorded_between_two_moments(log_id):
    first, *_, last = Event.objects.order_by("recorded_at").values_list("recorded_at", flat=True)
    later = last + timedelta(microseconds=1)

    assert Event.objects.recorded_between(first, later).count() == 6
    assert Event.objects.recorded_between(later, later + timedelta(days=1)).count() == 0
    assert not Event.objects.recorded_between(first - timedelta(days=1), first).exists()
    with pytest.raises(ValueError, match="time zone"):
        Event.objects.recorded_between(first, datetime(2026, 1, 1))


def test_querysets_chain(log_id):
    events = Event.objects.of_type(Deposited).for_log(log_id).after(1)

    assert [row.data["amount"] for row in events] == [2]


def test_data_is_queried_as_json(log_id):
    assert Event.objects.filter(data__amount=7).count() == 1
    assert Event.objects.filter(data__amount__gt=1).count() == 3


def test_logs_of_a_type(log_id):
    Parcel.logs.create(Sent("ada"))

    assert EventLog.objects.of_type("account").count() == 2
    assert EventLog.objects.of_type("account", "parcel").count() == 3


# Appending


def test_rows_are_appended_and_read_back(db):
    log_id = accounts.new_id()

    created = EventLog.objects.append(log_id, encoded(1, 2), expected_version=0)
    appended = EventLog.objects.append(
        log_id, iter(encoded(3)), expected_version=2, idempotency_key="k", metadata='{"till":7}'
    )
    state = EventLog.objects.append(log_id, encoded(4), expected_version=ANY)

    assert (created.version, appended.version, state.version) == (2, 3, 4)
    row = Event.objects.for_log(log_id).get(index=2)
    assert (row.data, row.metadata, row.idempotency_key) == ({"amount": 3}, {"till": 7}, "k")
    assert row.position == appended.position


def test_a_position_that_is_expected_goes_with_a_version(log_id):
    with pytest.raises(TypeError, match="goes with an expected_version"):
        EventLog.objects.append(log_id, encoded(4), expected_version=ANY, expected_position=4)

    assert accounts.version(log_id) == 4


def test_rows_are_refused_as_events_are(db):
    log_id = accounts.new_id()
    EventLog.objects.append(log_id, encoded(1), expected_version=0)

    with pytest.raises(LogAlreadyExists):
        EventLog.objects.append(log_id, encoded(1), expected_version=0)
    with pytest.raises(ConcurrentAppend):
        EventLog.objects.append(log_id, encoded(1), expected_version=7)


def test_rows_go_into_the_store_that_is_named(db):
    store, log_id = MemoryStore(), accounts.new_id()

    EventLog.objects.append(log_id, encoded(1), expected_version=0, store=store)

    assert store.version(log_id) == 1
    assert not EventLog.objects.exists()


def test_rows_go_into_the_database_that_is_named(second_database):
    log_id = accounts.new_id()

    EventLog.objects.append(log_id, encoded(1), expected_version=0, using=second_database)
    EventLog.objects.db_manager(second_database).append(log_id, encoded(2), expected_version=1)

    assert EventLog.objects.using(second_database).get().version == 2
    assert EventLog.objects.store(using=second_database) is store_for(second_database)
    assert not EventLog.objects.exists()


# Pruning


def make_keys(count: int, age: timedelta) -> None:
    """Put keys into the table as if they had been used that long ago."""
    created_at = datetime.now(UTC) - age
    rows = [
        IdempotencyKey(
            log_type="account",
            key=f"{age} {number}",
            log_id=accounts.new_id().uuid,
            first_index=0,
            count=1,
            fingerprint=b"",
            created_at=created_at,
        )
        for number in range(count)
    ]
    super(managers_module.AppendOnlyQuerySet, IdempotencyKey.objects.all()).bulk_create(rows)


@pytest.mark.parametrize("count", [0, 1, 999, 1_000, 1_001, 2_500])
def test_old_keys_are_pruned_in_batches(db, count):
    make_keys(count, timedelta(days=3))
    make_keys(2, timedelta(days=1))

    assert IdempotencyKey.objects.prune(older_than=timedelta(days=2)) == count
    assert IdempotencyKey.objects.count() == 2


def test_pruning_keeps_to_the_setting(db, settings):
    make_keys(2, timedelta(days=3))
    assert IdempotencyKey.objects.prune() == 0

    settings.EVENTLOGS = {"IDEMPOTENCY_KEY_RETENTION": timedelta(days=4)}
    assert IdempotencyKey.objects.prune() == 0

    settings.EVENTLOGS = {"IDEMPOTENCY_KEY_RETENTION": timedelta(days=2)}
    assert IdempotencyKey.objects.prune() == 2


def test_pruning_keeps_to_the_queryset_and_to_the_callers_transaction(transactional_db):
    make_keys(2, timedelta(days=3))
    make_keys(3, timedelta(days=4))

    with transaction.atomic():
        assert (
            IdempotencyKey.objects.filter(key__startswith="4").prune(older_than=timedelta(days=2))
            == 3
        )
        transaction.set_rollback(True)

    assert IdempotencyKey.objects.count() == 5


def test_pruning_in_the_database_that_is_named(second_database):
    LogManager(Account, using=second_database).create(Opened("ada"), idempotency_key="k")
    accounts.create(Opened("ada"), idempotency_key="k")

    assert IdempotencyKey.objects.using(second_database).prune(older_than=timedelta()) == 1
    assert IdempotencyKey.objects.count() == 1
    assert connections[second_database].vendor == connection.vendor


def test_reading_a_page_of_a_log_does_not_count_the_table(log_id):
    with CaptureQueriesContext(connection) as queries:
        accounts.load(log_id)
        accounts.exists(log_id)

    assert len(queries) == 2
    assert not [query for query in queries if "COUNT(" in query["sql"].upper()]
