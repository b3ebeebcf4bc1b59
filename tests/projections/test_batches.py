"""Advancing a partition: each event is applied once after any failure in the middle."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction

from eventlogs import ANY
from eventlogs.events.codec import EncodedEvent
from eventlogs.exceptions import ProjectionFailed
from eventlogs.feed.reader import Feed
from eventlogs.models import Checkpoint, EventLog, ParkedEvent, SkippedEvent
from eventlogs.projections import batches, leases, one_by_one, partitions
from eventlogs.projections.batches import Advancer
from eventlogs.projections.failed_events import FailedEvents
from eventlogs.projections.held_logs import HeldLogs
from eventlogs.projections.leases import LeaseLost
from eventlogs.projections.starting import begin, lease_partition
from tests.accounts import Account, Deposited, Noted, Opened, Withdrawn
from tests.projections import readmodels
from tests.projections.crashes import kill_this_process, killed_in
from tests.projections.readmodels import (
    Balance,
    Balances,
    Day,
    DepositsByOwner,
    Letters,
    ReducedBalances,
    balances,
    fail_on,
    replayed,
    until,
)
from tests.sessions import end_session, own_session, sleep_in_the_database

pytestmark = pytest.mark.usefixtures("tables")


def seen():
    return dict(Balance.objects.values_list("log_id", "seen"))


def advancer(each=Balances, **options):
    begin(each, "default")
    taken = lease_partition(each, 0, using="default", owner=leases.new_owner())
    assert taken is not None
    return Advancer(each(), taken, Feed(), **options)


def waiting(each=Balances):
    rows = ParkedEvent.objects.filter(projection=each.name).order_by("position")
    return list(rows.values_list("index", "attempts", "error"))


def append_raw(state, *events):
    """Append encoded events that the current code cannot decode."""
    raw = [EncodedEvent(name, 1, data) for name, data in events]
    return EventLog.objects.append(state.log_id, raw, expected_version=ANY)


# Interrupted in the middle


def test_a_batch_that_is_interrupted_after_a_failure_is_not_applied_again():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Withdrawn(1))
    eve = Account.logs.create(Opened("eve"), Deposited(7))

    def before(record):
        if isinstance(record.event, Withdrawn):
            raise ValueError
        if record.log_id == eve.log_id:
            raise KeyboardInterrupt

    readmodels.behaviour["before"] = before
    with pytest.raises(KeyboardInterrupt):
        Balances.catch_up()
    assert balances() == {ada.log_id: 5}
    readmodels.reset()

    Balances.retry()
    Balances.catch_up()

    assert balances() == replayed(ada, bob, eve)
    assert seen() == {ada.log_id: 2, bob.log_id: 1, eve.log_id: 2}


def test_a_broken_version_that_releases_at_the_old_position_counts_twice(monkeypatch):
    def release(lease, position=None):
        rows = Checkpoint.objects.filter(pk=lease.pk, token=lease.token)
        rows.update(owner="", leased_until=None, position=0)

    monkeypatch.setattr(leases, "release", release)

    with pytest.raises(AssertionError):
        test_a_batch_that_is_interrupted_after_a_failure_is_not_applied_again()


@pytest.mark.locks
def test_a_connection_that_is_killed_in_a_batch_loses_and_doubles_no_event(elsewhere):
    states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(5)]
    number = own_session()
    kills: list[Any] = []

    def before(record):
        if record.log_id == states[2].log_id and not kills:
            kills.append(1)
            elsewhere(lambda: end_session(number))

    readmodels.behaviour["before"] = before

    Balances.catch_up()

    assert kills == [1]
    assert balances() == replayed(*states)
    assert set(seen().values()) == {2}


@pytest.mark.locks
def test_an_event_that_kills_its_connection_each_time_is_parked_in_the_end(elsewhere):
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"), Withdrawn(1))
    eve = Account.logs.create(Opened("eve"))

    def before(record):
        if isinstance(record.event, Withdrawn):
            number = own_session()
            elsewhere(lambda: end_session(number))

    readmodels.behaviour["before"] = before

    def catch_up():
        with suppress(OperationalError):
            Balances.catch_up()
        return Balances.parked()

    until(catch_up)
    Balances.catch_up()
    assert balances() == {ada.log_id: 5, bob.log_id: 0, eve.log_id: 0}
    assert waiting() == [(1, 3, "OperationalError")]


@pytest.mark.parametrize("batch_size", [1, 2, 1_000])
def test_an_event_that_kills_its_worker_is_parked(monkeypatch, batch_size):
    monkeypatch.setattr(Balances, "batch_size", batch_size)
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"), Withdrawn(1), Deposited(9))
    eve = Account.logs.create(Opened("eve"))

    def before(record):
        if isinstance(record.event, Withdrawn):
            kill_this_process()

    readmodels.behaviour["before"] = before

    until(lambda: not killed_in(Balances.catch_up) and Balances.parked())

    assert balances() == {ada.log_id: 5, bob.log_id: 0, eve.log_id: 0}
    assert waiting() == [(1, 3, "a crash")]
    assert Balances.parked()

    readmodels.reset()
    Balances.retry()
    Balances.catch_up()
    assert balances() == replayed(ada, bob, eve)


def test_after_a_crash_events_are_applied_one_by_one_and_each_once():
    states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(5)]

    def before(record):
        if record.log_id == states[3].log_id:
            kill_this_process()

    readmodels.behaviour["before"] = before
    killed_in(Balances.catch_up)
    readmodels.reset()

    assert Balances.catch_up() == 10
    assert balances() == replayed(*states)
    assert set(seen().values()) == {2}
    assert waiting() == []


# A worker that was paused


def test_a_worker_whose_lease_was_taken_over_before_its_transaction_changes_nothing():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    paused = advancer()
    Checkpoint.objects.update(leased_until=None)
    other = advancer()

    with pytest.raises(LeaseLost):
        paused.step()

    assert balances() == {}
    paused.close()  # which does not release the lease of another worker
    other.settle()
    other.close()
    assert balances() == replayed(ada)


def test_a_worker_that_read_before_another_one_applied_changes_nothing():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    paused = advancer()
    Checkpoint.objects.update(leased_until=None)
    Balances.catch_up()

    with pytest.raises(LeaseLost):
        paused.step()  # the worker reads behind the checkpoint that it knows

    assert seen() == {ada.log_id: 2}


def move_without_a_token(lease, position, **figures):
    Checkpoint.objects.filter(pk=lease.pk).update(position=position)
    return replace(lease, position=position)


def test_a_broken_version_that_ignores_the_token_counts_twice(monkeypatch):
    monkeypatch.setattr(leases, "move", move_without_a_token)

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_a_worker_that_read_before_another_one_applied_changes_nothing()

    assert set(seen().values()) == {4}


@contextmanager
def checkpoint_in_a_transaction_of_its_own(lease, position=None, **figures):
    with transaction.atomic():
        yield replace(lease, position=lease.position if position is None else position)
    kill_this_process()  # before the checkpoint is moved


def test_a_broken_version_with_the_checkpoint_in_another_transaction_counts_twice(monkeypatch):
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    with monkeypatch.context() as patch:
        patch.setattr(partitions, "fenced", checkpoint_in_a_transaction_of_its_own)
        assert killed_in(Balances.catch_up)

    Balances.catch_up()

    assert seen() == {ada.log_id: 4}


def kill_before_the_commit(call):
    def killed():
        with transaction.atomic():
            call()
            kill_this_process()

    return killed


def kill_after(call):
    def killed():
        call()
        kill_this_process()

    return killed


@pytest.mark.parametrize("kill", [kill_before_the_commit, kill_after])
def test_a_kill_around_the_commit_changes_nothing_in_the_end(kill):
    ada = Account.logs.create(Opened("ada"), Deposited(5), Deposited(7))

    assert killed_in(kill(Balances.catch_up))

    Balances.catch_up()
    assert balances() == replayed(ada)
    assert seen() == {ada.log_id: 3}


# Events that fail


@pytest.mark.parametrize(
    ("batch_size", "error"),
    [(1, ValueError), (2, SystemExit), (3, MemoryError), (1_000, RecursionError)],
)
def test_an_event_that_fails_in_the_middle_of_a_batch_holds_only_its_log(
    monkeypatch, batch_size, error
):
    monkeypatch.setattr(Balances, "batch_size", batch_size)
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"), Withdrawn(2), Deposited(1), Withdrawn(3))
    eve = Account.logs.create(Opened("eve"), Deposited(7))
    bob = Account.logs.append(bob, Deposited(100))
    ada = Account.logs.append(ada, Deposited(6))
    fail_on(Withdrawn, error=error)

    Balances.catch_up()

    assert balances() == {ada.log_id: 11, bob.log_id: 0, eve.log_id: 7}
    assert waiting() == [(1, 1, error.__name__)]

    readmodels.reset()
    Balances.retry()
    Balances.catch_up()
    assert balances() == replayed(ada, bob, eve)
    assert seen() == {ada.log_id: 3, bob.log_id: 5, eve.log_id: 2}
    assert waiting() == []


def test_a_broken_version_that_passes_over_no_held_logs_breaks_the_order(monkeypatch):
    monkeypatch.setattr(HeldLogs, "held", lambda self, among=None: set())
    bob = Account.logs.create(Opened("bob"), Withdrawn(2))
    fail_on(Withdrawn)
    Balances.catch_up()
    bob = Account.logs.append(bob, Deposited(1))
    orders = []
    readmodels.behaviour["before"] = lambda record: orders.append(record.index)

    Balances.catch_up()
    Balances.retry()
    Balances.catch_up()

    assert orders[:2] == [2, 1]
    assert seen()[bob.log_id] != bob.version


def test_the_order_within_a_log_is_kept_if_events_fail():
    order = []
    state = Account.logs.create(Opened("ada"))
    for amount in range(30):
        state = Account.logs.append(state, Deposited(amount))

    def before(record):
        if record.index % 7 == 3 and (record.index, "failed") not in order:
            order.append((record.index, "failed"))
            raise ValueError
        order.append(record.index)

    readmodels.behaviour["before"] = before
    Balances.catch_up()
    readmodels.behaviour["before"] = before
    until(lambda: Balances.catch_up() >= 0 and not waiting())

    last: list[Any] = [each for each in order if isinstance(each, int)]
    assert last[: last.index(2) + 1] == [0, 1, 2]
    assert sorted(last[-28:]) == last[-28:]
    assert balances() == replayed(state)


REFUSED = [
    pytest.param("owner", None, id="IntegrityError"),
    pytest.param("seen", -5, id="CheckConstraint"),
    pytest.param("balance", "much", id="ValueError"),
    pytest.param("balance", 2**70, id="too large"),
    pytest.param("owner", "\ud800", id="half a character"),
    pytest.param("owner", "x" * 51, id="DataError", marks=pytest.mark.postgresql),
    pytest.param("owner", "\0", id="nul", marks=pytest.mark.postgresql),
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_a_value_that_the_column_refuses_holds_only_its_log(monkeypatch, field, value):
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"), Noted("bad"), Deposited(1))
    eve = Account.logs.create(Opened("eve"), Deposited(7))

    def noted(self, row, record):
        setattr(row, field, value)

    monkeypatch.setattr(Balances, "noted", noted)
    Balances.catch_up()

    assert balances() == {ada.log_id: 5, bob.log_id: 0, eve.log_id: 7}
    assert [each[:2] for each in waiting()] == [(1, 1)]

    until(lambda: Balances.catch_up() == 0 and Balances.parked())
    assert Balances.skip(bob.log_id)
    Balances.catch_up()
    assert balances() == replayed(ada, bob, eve)


@pytest.mark.parametrize("text", ["caf\udce9.txt", "nul \0"])
def test_an_event_is_held_for_an_error_with_any_text(text):
    ada = Account.logs.create(Opened("ada"))

    def before(record):
        raise OSError(text)

    readmodels.behaviour["before"] = before
    Balances.catch_up()

    assert waiting() == [(0, 1, "OSError")]
    assert "OSError" in ParkedEvent.objects.get(log_id=ada.log_id).details


@pytest.mark.parametrize("each", [Balances, ReducedBalances])
def test_an_event_that_cannot_be_decoded_holds_only_its_log(each):
    model = each.model
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"))
    append_raw(bob, ("account.deposited", '{"amount": "secret"}'))
    eve = Account.logs.create(Opened("eve"), Deposited(7))

    each.catch_up()

    assert balances(model) == {ada.log_id: 5, bob.log_id: 0, eve.log_id: 7}
    assert waiting(each) == [(1, 1, "UndecodableEvent")]


@pytest.mark.parametrize("each", [Balances, ReducedBalances])
def test_an_event_of_an_unknown_type_holds_its_log_without_an_attempt(each):
    ada = Account.logs.create(Opened("ada"))
    bob = Account.logs.create(Opened("bob"), Deposited(2))
    append_raw(ada, ("account.teleported", "{}"), ("account.deposited", '{"amount": 3}'))

    for _ in range(each.max_attempts + 1):
        each.catch_up()

    assert balances(each.model) == {ada.log_id: 0, bob.log_id: 2}
    assert waiting(each) == [(1, 0, "UnknownEventType")]
    assert not each.parked()
    [left] = each.waiting()
    assert (left.log_id, left.type, left.is_parked) == (ada.log_id, "account.teleported", False)


def test_a_handler_that_takes_too_long_is_interrupted(monkeypatch):
    monkeypatch.setattr(Balances, "timeout", 0.3)
    monkeypatch.setattr(Balances, "max_attempts", 1)
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"), Withdrawn(1))

    def before(record):
        if isinstance(record.event, Withdrawn):
            with suppress(Exception):
                time.sleep(30)

    readmodels.behaviour["before"] = before
    begun = time.monotonic()
    Balances.catch_up()

    assert time.monotonic() - begun < 5
    assert balances() == {ada.log_id: 5, bob.log_id: 0}
    assert waiting() == [(1, 1, "ProjectionTimedOut")]


@pytest.mark.locks
@pytest.mark.parametrize("each", [Balances, Letters])
def test_a_handler_that_hangs_in_the_database_is_interrupted(monkeypatch, each):
    monkeypatch.setattr(each, "timeout", 0.3)
    monkeypatch.setattr(each, "max_attempts", 1)
    Account.logs.create(Withdrawn(1))
    Account.logs.create(Deposited(5))

    def before(record):
        if isinstance(record.event, Withdrawn):
            sleep_in_the_database(30)

    readmodels.behaviour["before"] = before
    each.catch_up()

    assert waiting(each) == [(0, 1, "ProjectionTimedOut")]
    assert each.parked()


@pytest.mark.postgresql
def test_a_worker_without_a_deadline_that_stalls_in_a_transaction_is_ended(monkeypatch, elsewhere):
    """In a thread: PostgreSQL ends the session, and the event is identified and parked."""
    monkeypatch.setattr("eventlogs.projections.starting.GRACE", 0)
    monkeypatch.setattr(Balances, "timeout", 0.2)
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"), Withdrawn(1))

    def before(record):
        if isinstance(record.event, Withdrawn):
            time.sleep(0.6)

    readmodels.behaviour["before"] = before

    def catch_up():
        with suppress(DatabaseError):
            Balances.catch_up()

    until(lambda: elsewhere(catch_up) or Balances.parked())
    assert balances() == {ada.log_id: 5, bob.log_id: 0}
    assert [each[:2] for each in waiting()] == [(1, 3)]


ABORTED = {
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{}'; END $$",
    "mysql": "SIGNAL SQLSTATE '{}' SET MYSQL_ERRNO = 1213",
}


@pytest.mark.locks
@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_a_transaction_that_the_database_aborts_is_retried(state):
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    calls = []

    def before(record):
        calls.append(record.index)
        if len(calls) == 2:
            with connection.cursor() as cursor:
                cursor.execute(ABORTED[connection.vendor].format(state))

    readmodels.behaviour["before"] = before
    Balances.catch_up()

    assert calls == [0, 1, 0, 1]
    assert balances() == replayed(ada)
    assert waiting() == []


# Retries


def test_the_delay_between_attempts_grows_up_to_five_minutes(monkeypatch):
    monkeypatch.setattr(Balances, "backoff", 1.0)
    monkeypatch.setattr(Balances, "max_attempts", 20)
    Account.logs.create(Withdrawn(1))
    fail_on(Withdrawn)
    waits = []
    Balances.catch_up()
    for _ in range(11):
        row = ParkedEvent.objects.get()
        waits.append(round((row.retry_at - row.failed_at).total_seconds()))  # two clocks
        assert Balances.catch_up() == 0  # it is not due
        assert ParkedEvent.objects.get().attempts == row.attempts
        ParkedEvent.objects.update(retry_at=row.first_failed_at)
        Balances.catch_up()

    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_one_call_retries_all_events_that_are_due(monkeypatch):
    monkeypatch.setattr(batches, "LOGS", 2)
    monkeypatch.setattr(one_by_one, "RETRIES", 2)
    states = [
        Account.logs.create(Withdrawn(1), *[Deposited(number) for number in range(5)])
        for _ in range(5)
    ]
    fail_on(Withdrawn)
    Balances.catch_up()
    assert len(waiting()) == 5
    readmodels.reset()

    Balances.retry()
    assert Balances.catch_up() == 30

    assert balances() == replayed(*states)
    assert Balances.catch_up() == 0


def skip_when_an_attempt_is_counted(monkeypatch, log_id):
    begin_attempt = FailedEvents.begin_attempt

    def begin_then_skip(self, pk):
        begun = begin_attempt(self, pk)
        if not SkippedEvent.objects.exists():
            assert Balances.skip(log_id)
        return begun

    monkeypatch.setattr(FailedEvents, "begin_attempt", begin_then_skip)


@pytest.mark.parametrize("fails_again", [False, True])
def test_an_event_that_is_skipped_while_it_is_retried_is_skipped(monkeypatch, fails_again):
    ada = Account.logs.create(Opened("ada"), Withdrawn(2), Deposited(1))
    fail_on(Withdrawn)
    Balances.catch_up()
    if not fails_again:
        readmodels.reset()
    ParkedEvent.objects.update(attempts=0, retry_at=ParkedEvent.objects.get().first_failed_at)
    skip_when_an_attempt_is_counted(monkeypatch, ada.log_id)
    Balances.catch_up()

    Balances.catch_up()

    assert SkippedEvent.objects.count() == 1
    assert balances() == {ada.log_id: 1}
    assert Balances.verify(sample=None)


def test_an_event_whose_log_is_erased_is_no_longer_held():
    ada = Account.logs.create(Opened("ada"))
    Account.logs.create(Opened("bob"))
    fail_on(Opened)
    Balances.catch_up()
    ParkedEvent.objects.filter(log_id=ada.log_id).update(log_id=Account.logs.new_id())
    readmodels.reset()

    Balances.retry()
    Balances.catch_up()

    assert waiting() == []


def test_in_strict_mode_the_first_failure_is_raised_and_earlier_events_stay_applied():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"), Withdrawn(1))
    fail_on(Withdrawn)
    worker = advancer(is_strict=True)

    with pytest.raises(ProjectionFailed) as caught:
        worker.settle()
    worker.close()

    assert (caught.value.log_id, caught.value.position) == (bob.log_id, bob.position)
    assert balances() == {ada.log_id: 5, bob.log_id: 0}
    assert waiting() == []


# Kinds of projections


@pytest.mark.parametrize("batch_size", [1, 3, 1_000])
@pytest.mark.parametrize("each", [Balances, ReducedBalances])
def test_the_result_does_not_depend_on_the_size_of_a_batch(monkeypatch, each, batch_size):
    monkeypatch.setattr(each, "batch_size", batch_size)
    states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(3)]
    states = [Account.logs.append(state, Withdrawn(1), Deposited(2)) for state in states]

    assert each.catch_up() == 12
    assert balances(each.model) == replayed(*states)


def test_partitions_apply_each_event_once_together(monkeypatch):
    monkeypatch.setattr(Balances, "partitions", 4)
    states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(20)]
    begin(Balances, "default")
    applied = 0
    for number in range(4):
        taken = lease_partition(Balances, number, using="default", owner=leases.new_owner())
        worker = Advancer(Balances(), taken, Feed())
        worker.settle()
        worker.close()
        applied += worker.applied

    assert applied == 40
    assert balances() == replayed(*states)
    assert set(seen().values()) == {2}
    assert Balances.catch_up() == 0


def test_a_reactor_is_called_again_if_its_checkpoint_was_not_moved(tmp_path):
    calls = tmp_path / "calls"
    ada = Account.logs.create(Deposited(5))

    def before(record):
        calls.touch()
        kill_this_process()

    readmodels.behaviour["before"] = before
    assert killed_in(Letters.catch_up)
    assert calls.exists()
    readmodels.reset()

    Letters.catch_up()

    assert readmodels.reactions == [("account.deposited", ada.position)]
    assert waiting(Letters) == []


def test_a_reactor_continues_with_other_logs_if_one_fails():
    Account.logs.create(Deposited(5), Withdrawn(1), Deposited(2))
    bob = Account.logs.create(Deposited(7))
    fail_on(Withdrawn)

    Letters.catch_up()

    assert len(readmodels.reactions) == 2
    assert readmodels.reactions[-1][1] == bob.position
    assert waiting(Letters) == [(1, 1, "ValueError")]


def test_a_reactor_runs_outside_of_a_transaction():
    inside = []
    Account.logs.create(Deposited(5))
    readmodels.behaviour["before"] = lambda record: inside.append(connection.in_atomic_block)

    Letters.catch_up()

    assert inside == [False]


def test_a_row_is_found_by_a_key_of_another_type(monkeypatch):
    monkeypatch.setattr(DepositsByOwner, "key", lambda self, record: record.metadata["owner"])
    Account.logs.create(Deposited(5), metadata={"owner": 7})
    DepositsByOwner.catch_up()
    Account.logs.create(Deposited(6), metadata={"owner": "7"})
    Account.logs.create(Deposited(7), metadata={"owner": 7})
    DepositsByOwner.catch_up()

    assert list(Day.objects.values_list("owner", "deposits")) == [("7", 18)]


# Transactions of the caller


def test_a_rollback_of_the_callers_transaction_undoes_a_batch():
    ada = Account.logs.create(Opened("ada"), Deposited(5))

    with suppress(ZeroDivisionError), transaction.atomic():
        assert Balances.catch_up() == 2
        assert balances() == replayed(ada)
        raise ZeroDivisionError

    assert balances() == {}
    assert Balances.catch_up() == 2


def test_inside_of_a_callers_transaction_a_failing_event_holds_only_its_log():
    with transaction.atomic():
        ada = Account.logs.create(Opened("ada"), Deposited(5))
        bob = Account.logs.create(Opened("bob"), Withdrawn(1))
        fail_on(Withdrawn)
        Balances.catch_up()

    assert balances() == {ada.log_id: 5, bob.log_id: 0}


def set_isolation_level(options, level):
    if connection.vendor == "mysql":
        options["isolation_level"] = level.lower()
    else:
        escaped = level.lower().replace(" ", "\\ ")
        options["options"] = f"-c default_transaction_isolation={escaped}"


@pytest.mark.locks
@pytest.mark.parametrize(
    "level", ["REPEATABLE READ", pytest.param("SERIALIZABLE", marks=pytest.mark.postgresql)]
)
def test_a_stricter_isolation_by_default_changes_nothing(level, race):
    connections.close_all()
    options = connection.settings_dict["OPTIONS"]
    before = dict(options)
    set_isolation_level(options, level)
    try:
        states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(10)]
        fail_on(Withdrawn)
        bob = Account.logs.create(Opened("bob"), Withdrawn(1))

        answers = race(*[Balances.catch_up] * 4)
        for each in answers:
            if not isinstance(each, int):
                raise each
        assert balances() == {**replayed(*states), bob.log_id: 0}
        assert Balances.skip(bob.log_id)
        assert Balances.verify(sample=None)
        assert Balances.rebuild() == 21
        assert balances() == {**replayed(*states), bob.log_id: 0}
    finally:
        options.clear()
        options.update(before)
        connections.close_all()
