"""recorded_at is the database's clock, and a test can stop it."""

from __future__ import annotations

from asyncio import gather
from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from eventlogs import ANY, LogManager, LogState
from eventlogs.models import EventLog, IdempotencyKey
from eventlogs.testing import given
from eventlogs.testing.clock import freeze_recorded_at as freeze
from tests.accounts import Account, Deposited, Opened

MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)
DAY = timedelta(days=1)


def times(accounts: LogManager[Account], log_id) -> list[datetime]:
    return [record.recorded_at for record in accounts.stream(log_id)]


def test_every_kind_of_append_has_the_time_of_the_stopped_clock(accounts):
    with freeze(MONDAY) as clock:
        state = accounts.create(Opened("ada"))
        state = accounts.append(state, Deposited(1))
        clock.forward(DAY)
        state = accounts.append(state, Deposited(1), Deposited(2), idempotency_key="many")
        clock.move_to(MONDAY + 3 * DAY)
        state = accounts.append(
            state.log_id, Deposited(1), expected_version=ANY, idempotency_key="k"
        )
        keyed = accounts.create(Opened("eve"), idempotency_key="one")
        several = accounts.create(Opened("eve"), Deposited(1), idempotency_key="two")
    before = timezone.now() - timedelta(minutes=1)
    state = accounts.append(state, Deposited(1))

    first, *middle, last = times(accounts, state.log_id)
    assert first == MONDAY
    assert middle == [MONDAY, MONDAY + DAY, MONDAY + DAY, MONDAY + 3 * DAY]
    assert last > before
    assert times(accounts, keyed.log_id) == [MONDAY + 3 * DAY]
    assert times(accounts, several.log_id) == [MONDAY + 3 * DAY] * 2


@pytest.mark.django_db
def test_times_of_logs_and_keys_are_stopped_as_well():
    with freeze(MONDAY):
        state = Account.logs.create(Opened("ada"), idempotency_key="k")

    log = EventLog.objects.get(pk=state.log_id.uuid)
    assert (log.created_at, log.updated_at) == (MONDAY, MONDAY)
    assert IdempotencyKey.objects.get(key="k").created_at == MONDAY


def test_time_does_not_run_backwards_within_a_log(accounts):
    with freeze(MONDAY) as clock:
        state = accounts.create(Opened("ada"))
        clock.forward(-DAY)
        accounts.append(state, Deposited(1))
        other = accounts.create(Opened("eve"))

    assert times(accounts, state.log_id) == [MONDAY, MONDAY]
    assert times(accounts, other.log_id) == [MONDAY - DAY]


def test_a_log_is_reduced_as_of_a_moment(accounts):
    with freeze(MONDAY) as clock:
        state = accounts.create(Opened("ada"), Deposited(1))
        clock.forward(DAY)
        accounts.append(state, Deposited(2))

    assert accounts.reduce(state.log_id, at=MONDAY).aggregate.balance == 1
    assert accounts.reduce(state.log_id, at=MONDAY + DAY).aggregate.balance == 3


@pytest.mark.django_db
def test_statements_are_the_same_but_for_the_time():
    def appended() -> list[str]:
        state = Account.logs.create(Opened("ada"))
        with CaptureQueriesContext(connection) as queries:
            Account.logs.append(state, Deposited(1))
        return [query["sql"] for query in queries]

    running = appended()
    with freeze(MONDAY):
        stopped = appended()

    assert len(stopped) == len(running)
    assert sum("2026-03-02" in sql for sql in stopped) >= 1
    assert connection.execute_wrappers == []


def test_the_innermost_clock_counts_also_for_stories():
    with freeze(MONDAY):
        with freeze(MONDAY + DAY):
            inner = given(Account, Opened("ada"))
        outer = given(Account, Opened("ada"))

    assert inner.records[0].recorded_at == MONDAY + DAY
    assert outer.records[0].recorded_at == MONDAY
    assert given(Account, Opened("ada")).records[0].recorded_at > MONDAY


@pytest.mark.django_db
def test_async_code_has_the_clock_of_its_database_thread():
    async def run() -> list[datetime]:
        async with freeze(MONDAY):
            state = await Account.logs.acreate(Opened("ada"))
        return [record.recorded_at async for record in Account.logs.astream(state.log_id)]

    assert async_to_sync(run)() == [MONDAY]


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_appends_that_are_joined_have_the_time_as_well():
    async def run() -> list[LogState]:
        async with freeze(MONDAY):
            return await gather(*(Account.logs.acreate(Opened(str(n))) for n in range(20)))

    states = async_to_sync(run)()

    assert {moment for state in states for moment in times(Account.logs, state.log_id)} == {MONDAY}


def test_a_naive_datetime_is_no_moment():
    with pytest.raises(ValueError, match="It must be a datetime with a time zone"):
        freeze(MONDAY.replace(tzinfo=None))
    with freeze(MONDAY) as clock, pytest.raises(ValueError, match="time zone"):
        clock.move_to(MONDAY.replace(tzinfo=None))
