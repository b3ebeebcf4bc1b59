"""A deadlock that a handler catches: MariaDB has rolled back the whole transaction by then."""

from __future__ import annotations

from threading import Event as Flag
from threading import Thread

import pytest
from django.db import OperationalError, connections, transaction

from eventlogs import TransactionMustRetry
from eventlogs.models import Event, ParkedEvent
from eventlogs.projections import checkpoints
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.locks import a_session_waits
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    Day,
    Inlined,
    InlinedBalances,
    balances,
    replayed,
    until,
)

# PostgreSQL refuses every further statement of such a transaction.
pytestmark = [pytest.mark.mariadb, pytest.mark.usefixtures("tables")]

DEADLOCK = 1213  # MariaDB's number


class Rival:
    """Another transaction, with more rows than this one, so that this one is given up."""

    def __init__(self) -> None:
        Day.objects.bulk_create(Day(owner=f"owner {number}") for number in range(100))
        Day.objects.bulk_create([Day(owner="ours"), Day(owner="theirs")])
        self.deadlocks = 0

    def meet(self) -> None:
        """End in a deadlock in the caller's transaction, and catch its error."""
        has_begun, may_wait = Flag(), Flag()

        def run() -> None:
            with transaction.atomic():
                Day.objects.exclude(owner="ours").update(deposits=1)
                has_begun.set()
                may_wait.wait(20)
                Day.objects.filter(owner="ours").update(deposits=1)
            connections.close_all()

        rival = Thread(target=run)
        rival.start()
        assert has_begun.wait(20)
        Day.objects.filter(owner="ours").update(deposits=2)
        may_wait.set()
        until(a_session_waits)
        try:
            # After a write that fails, Django itself refuses further statements; not after this.
            Day.objects.select_for_update().get(owner="theirs")
        except OperationalError as error:
            self.deadlocks += error.args[0] == DEADLOCK
        rival.join()


@pytest.mark.feed
def test_a_batch_whose_handler_catches_a_deadlock_is_applied_again_as_a_whole():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(1), Deposited(2))
    rival = Rival()

    def before(record):
        if isinstance(record.event, Withdrawn) and not rival.deadlocks:
            rival.meet()

    readmodels.behaviour["before"] = before

    Balances.catch_up()
    Balances.catch_up()

    assert rival.deadlocks == 1
    assert balances() == replayed(ada)
    assert Balance.objects.get().seen == 4
    assert not ParkedEvent.objects.exists()


@pytest.mark.feed
def test_a_rebuild_whose_handler_catches_a_deadlock_in_the_swap_is_right(monkeypatch, elsewhere):
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    rival = Rival()

    def before(record):
        if isinstance(record.event, Withdrawn) and not rival.deadlocks:
            rival.meet()

    lock_all = checkpoints.lock_all

    def append_and_lock(*args, **options):
        nonlocal ada
        if ada.version == 2:
            ada = elsewhere(lambda: Account.logs.append(ada, Withdrawn(1)))
        return lock_all(*args, **options)

    monkeypatch.setattr(checkpoints, "lock_all", append_and_lock)
    readmodels.behaviour["before"] = before
    Balances.rebuild()

    assert rival.deadlocks == 1
    assert balances() == replayed(ada)
    assert Balance.objects.get().seen == 3


@pytest.mark.usefixtures("inlined")
def test_an_append_whose_inline_handler_catches_a_deadlock_is_repeated_as_a_whole():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    rival = Rival()

    def before(record):
        if isinstance(record.event, Withdrawn) and not rival.deadlocks:
            rival.meet()

    readmodels.behaviour["before"] = before

    ada = Account.logs.append(ada, Withdrawn(1))

    assert rival.deadlocks == 1
    assert Event.objects.count() == ada.version == 3
    assert balances(Inlined) == replayed(ada)
    assert InlinedBalances.verify(sample=None)


@pytest.mark.usefixtures("inlined")
def test_a_callers_transaction_in_which_an_inline_handler_catches_a_deadlock_must_be_repeated():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    rival = Rival()

    def before(record):
        if isinstance(record.event, Withdrawn) and not rival.deadlocks:
            rival.meet()

    readmodels.behaviour["before"] = before

    with pytest.raises(TransactionMustRetry), transaction.atomic():
        Day.objects.create(owner="before")
        Account.logs.append(ada, Withdrawn(1))

    assert rival.deadlocks == 1
    assert not Day.objects.filter(owner="before").exists()
    assert Event.objects.count() == 2
    assert balances(Inlined) == replayed(ada)
