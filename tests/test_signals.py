"""Signals: after the commit, at most once, and never an error of the caller."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, contextmanager

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test import TestCase

from eventlogs import ConcurrentAppend, IdempotentReplay, LogManager
from eventlogs.models import Event, EventLog
from eventlogs.observers import observers
from eventlogs.refreshers import ImmediateRefresher
from eventlogs.signals import (
    SIGNALS,
    append_conflicted,
    event_appended,
    event_parked,
    log_created,
    reduction_refreshed,
)
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Deposited, Opened, Parcel, Sent, encoded, withdraw
from tests.parked import parked_payment

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def received(*signals, sender=None):
    """Collect what signals send in a block: (signal, sender, arguments)."""
    found = []
    with ExitStack() as stack:
        for signal in signals:

            def receive(sender, signal, **kwargs):
                found.append((signal, sender, kwargs))

            signal.connect(receive, sender=sender, weak=False)
            stack.callback(signal.disconnect, receive, sender=sender)
        yield found


def test_a_call_that_appends_sends_one_signal():
    with received(event_appended) as found:
        state = Account.logs.create(Opened("ada"), Deposited(1), Deposited(2))
        later = Account.logs.append(state, Deposited(3))

    assert found == [
        (
            event_appended,
            Account,
            {
                "log_type": "account",
                "log_id": state.log_id,
                "index": index,
                "events": events,
                "event_types": types,
                "state": after,
                "using": "default",
            },
        )
        for index, events, types, after in (
            (0, 3, ("account.opened", "account.deposited"), state),
            (3, 1, ("account.deposited",), later),
        )
    ]


def test_a_receiver_can_load_the_events():
    loaded = []

    def receive(sender, log_id, index, events, **kwargs):
        loaded.extend(sender.logs.load(log_id, start=index, limit=events))

    event_appended.connect(receive, sender=Account)
    try:
        Account.logs.create(Opened("ada"), Deposited(1))
        Parcel.logs.create(Sent("eve"))
    finally:
        event_appended.disconnect(receive, sender=Account)

    assert [each.event for each in loaded] == [Opened("ada"), Deposited(1)]


def test_a_created_log_has_a_signal_of_its_own():
    with received(log_created) as found:
        state = Account.logs.create(Opened("ada"))
        Account.logs.append(state, Deposited(1))

    assert [each["log_id"] for _, _, each in found] == [state.log_id]


def test_a_signal_is_sent_after_the_commit():
    with received(event_appended) as found, transaction.atomic():
        Account.logs.create(Opened("ada"))
        assert found == []

    assert len(found) == 1


@pytest.mark.locks
def test_another_connection_sees_what_is_signalled(elsewhere):
    seen = []

    def receive(sender, log_id, **kwargs):
        seen.append(elsewhere(lambda: Event.objects.for_log(log_id).count()))

    event_appended.connect(receive)
    try:
        Account.logs.create(Opened("ada"))
        with transaction.atomic():
            Account.logs.create(Opened("eve"), Deposited(1))
    finally:
        event_appended.disconnect(receive)

    assert seen == [1, 2]


def test_what_is_rolled_back_is_not_signalled():
    failing = pytest.raises(ZeroDivisionError)
    with received(event_appended, log_created) as found, failing, transaction.atomic():
        Account.logs.create(Opened("ada"))
        raise ZeroDivisionError

    assert found == []


def test_what_is_rolled_back_to_a_savepoint_is_not_signalled():
    with received(event_appended) as found, transaction.atomic():
        state = Account.logs.create(Opened("ada"))
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Account.logs.append(state, Deposited(1))
            raise ZeroDivisionError

    assert [each["index"] for _, _, each in found] == [0]


def test_a_replay_is_not_signalled_again():
    with received(event_appended) as found:
        Account.logs.create(Opened("ada"), idempotency_key="k")
        with pytest.raises(IdempotentReplay):
            Account.logs.create(Opened("ada"), idempotency_key="k")
        Account.logs.get_or_create(Opened("ada"), idempotency_key="k")

    assert len(found) == 1


def test_a_conflict_is_signalled():
    state = Account.logs.create(Opened("ada"))
    Account.logs.append(state, Deposited(1))

    with received(append_conflicted, event_appended) as found, pytest.raises(ConcurrentAppend):
        Account.logs.append(state, Deposited(1))

    [(signal, sender, kwargs)] = found
    assert (signal, sender, kwargs["log_id"]) == (append_conflicted, Account, state.log_id)
    assert (kwargs["error"].expected_version, kwargs["error"].actual_version) == (1, 2)


def test_an_execute_is_signalled_once():
    state = Account.logs.create(Opened("ada"), Deposited(5))

    with received(event_appended) as found:
        Account.logs.execute(state.log_id, withdraw, 5, idempotency_key="k")
        Account.logs.execute(state.log_id, withdraw, 5, idempotency_key="k")
        Account.logs.execute(state.log_id, withdraw, 0)

    assert [each["event_types"] for _, _, each in found] == [("account.withdrawn",)]


def test_a_receiver_that_raises_breaks_no_append(caplog):
    def receive(**kwargs):
        raise ZeroDivisionError

    event_appended.connect(receive)
    try:
        with received(event_appended) as found:
            state = Account.logs.create(Opened("ada"))
            with transaction.atomic():
                state = Account.logs.append(state, Deposited(1))
    finally:
        event_appended.disconnect(receive)

    assert Account.logs.version(state.log_id) == 2
    assert len(found) == 2
    assert "receive" in caplog.text


@pytest.mark.parametrize("calls", [1, 5])
def test_appends_of_async_code_are_signalled_once_for_each_call(run_async, calls):
    threads = set()

    async def main():
        states = await asyncio.gather(
            *(Account.logs.acreate(Opened(f"{n}"), idempotency_key=f"{n}") for n in range(calls))
        )
        await asyncio.gather(*(Account.logs.aappend(each, Deposited(1)) for each in states))
        for n in range(calls):
            await Account.logs.aget_or_create(Opened(f"{n}"), idempotency_key=f"{n}")
        return states

    def receive(log_id, **kwargs):
        threads.add(threading.current_thread())
        assert Event.objects.for_log(log_id).exists()

    event_appended.connect(receive)
    try:
        with received(event_appended) as found:
            states = run_async(main)
    finally:
        event_appended.disconnect(receive)

    ids = sorted(each["log_id"] for _, _, each in found)
    assert ids == sorted(2 * [each.log_id for each in states])


@pytest.fixture
def run_async():
    async def run(main):
        return await main()

    return async_to_sync(run)


def test_an_async_receiver_is_awaited(run_async):
    found = []

    async def receive(log_id, **kwargs):
        found.append(await Account.logs.aversion(log_id))

    event_appended.connect(receive)
    try:
        Account.logs.create(Opened("ada"))
        run_async(lambda: Account.logs.acreate(Opened("eve"), Deposited(1)))
    finally:
        event_appended.disconnect(receive)

    assert found == [1, 2]


def test_a_refresh_is_signalled():
    accounts = LogManager(Account, refresher=ImmediateRefresher(), refresh_on_append=True)

    with received(reduction_refreshed) as found:
        state = accounts.create(Opened("ada"))
        accounts.reduce(state.log_id)

    assert found == [
        (
            reduction_refreshed,
            Account,
            {"log_type": "account", "log_id": state.log_id, "using": "default"},
        )
    ]


@pytest.mark.feed
@pytest.mark.fence
def test_a_parked_event_is_signalled(monkeypatch):
    with received(event_parked) as found:
        state = parked_payment(monkeypatch, "no")

    [(_, sender, kwargs)] = found
    assert sender is PaymentSummaries
    assert kwargs == {
        "projection": "payment-summary",
        "log_type": "payment",
        "log_id": state.log_id,
        "index": 1,
        "position": state.position - 1,
        "event_type": "payment.captured",
        "error": "ValueError",
        "using": "default",
    }


def test_appends_of_rows_are_not_signalled():
    log_id = Account.logs.new_id()
    with received(event_appended) as found:
        EventLog.objects.append(log_id, encoded(1), expected_version=0)

    assert found == []
    assert Account.logs.exists(log_id)


def test_nothing_is_observed_without_receivers():
    def receive(**kwargs): ...

    assert observers == []
    for signal in SIGNALS:
        signal.connect(receive)
    assert len(observers) == 1
    for signal in SIGNALS:
        assert observers != []
        signal.disconnect(receive)

    assert observers == []


class InATestCase(TestCase):
    """As a project tests it."""

    def test_signals_of_a_test_case_need_captured_callbacks(self):
        with received(event_appended) as found:
            with self.captureOnCommitCallbacks(execute=True):
                Account.logs.create(Opened("ada"))
            assert len(found) == 1
            Account.logs.create(Opened("eve"))
        assert len(found) == 1


def test_a_test_case_is_rolled_back():
    assert not connection.in_atomic_block
