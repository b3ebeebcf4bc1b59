"""A lost connection is not counted as an attempt of the current event."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from django.db import Error, OperationalError, connection, connections

from eventlogs.models import ParkedEvent
from eventlogs.projections import held_logs, partitions
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    InlinedBalances,
    Letters,
    balances,
    replayed,
    until,
)
from tests.sessions import end_session, own_session

pytestmark = [pytest.mark.locks, pytest.mark.feed, pytest.mark.usefixtures("tables")]

TIMES = 20


@pytest.fixture(autouse=True)
def _nothing_owed():
    held_logs._lost_attempts.clear()
    held_logs._losses.clear()
    yield
    held_logs._lost_attempts.clear()
    held_logs._losses.clear()


@pytest.fixture
def terminate(elsewhere):
    """A function that ends the backend of this thread's connection, from another one."""

    def end():
        number = own_session()
        elsewhere(lambda: end_session(number))

    return end


def go_on(projection):
    """Catch up once, in a worker that waits for the database."""
    with suppress(Error):
        projection.catch_up()
    return False


def is_done(projection, state):
    waits = ParkedEvent.objects.filter(projection=projection.name)
    return projection.wait_for(state.position, timeout=0) and not waits.exclude(retry_at=None)


def asks_the_database():
    Balance.objects.exists()


def asks_and_hides_it():
    try:
        Balance.objects.exists()
    except Error as error:
        raise ValueError("the handler's own error") from error


def asks_nothing():
    """The loss is noticed when the rows, or the checkpoint, are written."""


@pytest.mark.parametrize("then", [asks_the_database, asks_and_hides_it, asks_nothing])
@pytest.mark.parametrize("projection", [Balances, Letters])
def test_twenty_lost_connections_do_not_park_an_event(projection, then, terminate):
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(1))
    bob = Account.logs.create(Opened("bob"), Deposited(7))
    losses: list[Any] = []

    def before(record):
        if record.log_id == ada.log_id and record.index == 1 and len(losses) < TIMES:
            losses.append(record.index)
            terminate()
            then()

    readmodels.behaviour["before"] = before

    until(lambda: go_on(projection) or is_done(projection, bob), seconds=60.0)

    assert len(losses) == TIMES
    assert not ParkedEvent.objects.exists()
    if projection is Balances:
        assert balances() == replayed(ada, bob)
        assert dict(Balance.objects.values_list("log_id", "seen")) == {ada.log_id: 3, bob.log_id: 2}
    else:
        assert [position for _, position in readmodels.reactions][-1] >= ada.position - 1


def test_a_broken_version_that_counts_lost_connections_parks_the_event(terminate, monkeypatch):
    monkeypatch.setattr(partitions, "failure_of_loss", lambda using, raw, cause: None)

    with pytest.raises(AssertionError):
        test_twenty_lost_connections_do_not_park_an_event(Balances, asks_the_database, terminate)


@pytest.mark.postgresql  # a port that is wrong is no failure where there is a socket
def test_an_attempt_is_given_back_when_the_database_answers_again(terminate, monkeypatch):
    Account.logs.create(Opened("ada"), Deposited(5))
    readmodels.fail_on(Deposited)
    Balances.catch_up()  # the event is held, with one counted attempt
    port = connections["default"].settings_dict["PORT"]

    def before(record):
        if isinstance(record.event, Deposited):
            terminate()
            monkeypatch.setitem(connection.settings_dict, "PORT", "1")

    readmodels.behaviour["before"] = before
    ParkedEvent.objects.update(retry_at="2000-01-01T00:00:00Z")
    with pytest.raises(OperationalError):
        Balances.catch_up()
    monkeypatch.setitem(connection.settings_dict, "PORT", port)
    assert (ParkedEvent.objects.get().attempts, len(held_logs._lost_attempts)) == (2, 1)

    Balances.catch_up()

    waiting = ParkedEvent.objects.get()
    assert (waiting.attempts, waiting.error, held_logs._lost_attempts) == (1, "", [])


def test_an_attempt_is_given_back_to_an_event_that_another_worker_has_parked_for_it(
    terminate, monkeypatch
):
    Account.logs.create(Opened("ada"), Deposited(5))
    readmodels.fail_on(Deposited)
    Balances.catch_up()
    waiting = ParkedEvent.objects.get()
    monkeypatch.setattr(Balances, "max_attempts", 2)
    places = held_logs.HeldLogs(Balances, "default")
    assert places.begin_attempt(waiting)  # counted: this one ends with the connection
    assert not places.begin_attempt(ParkedEvent.objects.get())  # … and another worker parks it
    assert ParkedEvent.objects.get().is_parked

    places.uncount_attempt(waiting)

    assert not ParkedEvent.objects.get().is_parked
    assert ParkedEvent.objects.get().attempts == 1


def test_no_attempt_is_given_back_after_a_manual_retry():
    Account.logs.create(Opened("ada"), Deposited(5))
    readmodels.fail_on(Deposited)
    Balances.catch_up()
    waiting = ParkedEvent.objects.get()
    Balances.retry()

    held_logs.HeldLogs(Balances, "default").uncount_attempt(waiting)

    assert ParkedEvent.objects.get().attempts == 0


def test_a_strict_rebuild_is_resumed_after_any_number_of_lost_connections(terminate):
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(1))
    Balances.catch_up()
    losses: list[Any] = []

    def before(record):
        if record.index == 1 and len(losses) < TIMES:
            losses.append(record.index)
            terminate()

    readmodels.behaviour["before"] = before
    for _ in range(TIMES + 2):
        with suppress(Error):
            Balances.rebuild()

    assert len(losses) == TIMES
    assert balances() == replayed(ada)


def test_an_inline_row_is_swept_after_any_number_of_lost_connections(terminate, request):
    ada = Account.logs.create(Deposited(5), Withdrawn(1))
    request.getfixturevalue("inlined")
    losses: list[Any] = []

    def before(record):
        if len(losses) < TIMES:
            losses.append(record.index)
            terminate()

    readmodels.behaviour["before"] = before

    until(lambda: go_on(InlinedBalances) or is_done(InlinedBalances, ada), seconds=60.0)

    assert len(losses) == TIMES
    assert not ParkedEvent.objects.exists()
    assert InlinedBalances.verify(sample=None)
