"""Rebuilding: the new rows equal a replay, and the old rows stay until the swap."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from django.db import connection, connections, transaction

from eventlogs import LogId, ProjectionFailed, ProjectionUnavailable
from eventlogs.feed.reader import Feed
from eventlogs.models import AppliedVersion, Checkpoint, ParkedEvent, ProjectionState
from eventlogs.projections import checkpoints, leases, shadow_tables
from eventlogs.projections import rebuild as rebuilding
from eventlogs.projections.batches import Advancer
from eventlogs.projections.shadow_tables import commits_by_itself
from tests import processes
from tests.accounts import Account, Deposited, Opened, Parcel, Sent, Withdrawn
from tests.locks import a_session_waits
from tests.overriding import override
from tests.projections import readmodels
from tests.projections.crashes import die_on, kill_this_process, killed_in
from tests.projections.readmodels import (
    Balance,
    Balances,
    Day,
    DepositsByOwner,
    Inlined,
    InlinedBalances,
    ReducedBalances,
    balances,
    fail_on,
    replayed,
    until,
)

pytestmark = pytest.mark.usefixtures("tables")


def some(count=5):
    return [Account.logs.create(Opened("ada"), Deposited(number)) for number in range(count)]


def seen():
    return set(Balance.objects.values_list("seen", flat=True))


def rebuild_checkpoints(name="balances"):
    return Checkpoint.objects.filter(projection=name, is_rebuild=True)


@pytest.mark.parametrize("each", [Balances, ReducedBalances])
def test_the_result_is_that_of_a_replay_from_zero(each):
    states = some()
    Parcel.logs.create(Sent("here"))
    each.catch_up()
    each.model.objects.update(balance=99)
    each.model.objects.create(pk=LogId.new("account"))
    Account.logs.append(states[0], Withdrawn(4))

    assert each.rebuild() == 11
    assert balances(each.model) == replayed(*states)
    assert each.catch_up() == 0
    assert not shadow_tables.exists(each.model, "default")

    states[1] = Account.logs.append(states[1], Deposited(100))
    assert each.catch_up() == 1
    assert balances(each.model) == replayed(*states)


def test_rows_that_several_logs_share_are_rebuilt_as_a_whole():
    for _ in range(3):
        Account.logs.create(Deposited(5), metadata={"owner": "ada"})
    DepositsByOwner.rebuild()
    DepositsByOwner.rebuild()

    assert list(Day.objects.values_list("owner", "deposits")) == [("ada", 15)]
    with pytest.raises(ProjectionUnavailable):
        DepositsByOwner.rebuild(Account.logs.new_id())


def test_a_projection_that_has_never_run_can_be_rebuilt():
    states = some()

    assert Balances.rebuild() == 10
    assert balances() == replayed(*states)
    assert Balances.lag().positions == 0


def test_the_old_rows_can_be_read_during_a_rebuild(elsewhere):
    states = some()
    Balances.catch_up()
    Balance.objects.update(balance=99)
    met = []

    def tell(progress):
        met.append((set(elsewhere(lambda: balances()).values()), progress))

    Balances.rebuild(tell=tell)

    assert met
    assert all(rows == {99} for rows, _ in met)
    last = met[-1][1]
    assert (last.applied, last.done, last.unit) == (10, last.total, "positions")
    assert balances() == replayed(*states)


def test_a_live_worker_continues_during_and_after_a_rebuild(elsewhere):
    states = some()
    Balances.catch_up()

    def tell(progress):
        if len(states) < 8:
            states.append(Account.logs.create(Opened("eve"), Deposited(7)))
            assert elsewhere(Balances.catch_up) == 2
            assert balances() == replayed(*states)

    Balances.rebuild(tell=tell)

    assert balances() == replayed(*states)
    assert seen() == {2}
    states.append(Account.logs.create(Opened("eve"), Deposited(7)))
    assert Balances.catch_up() == 2
    assert balances() == replayed(*states)


def test_a_worker_that_holds_a_lease_through_the_swap_changes_nothing():
    states = some()
    Balances.catch_up()
    taken = leases.acquire("balances", 0, using="default", owner=leases.new_owner(), seconds=30)
    worker = Advancer(Balances(), taken, Feed())

    Balances.rebuild()
    states.append(Account.logs.create(Opened("eve"), Deposited(7)))

    with pytest.raises(leases.LeaseLost):
        worker.settle()
    Balances.catch_up()
    assert balances() == replayed(*states)


def swap_forgets_the_checkpoints(self, live):
    Checkpoint.objects.filter(projection=self._cls.name, is_rebuild=True).delete()


def test_a_broken_version_whose_swap_forgets_the_checkpoints_counts_twice(monkeypatch):
    states = some()
    Balances.catch_up()
    Checkpoint.objects.update(position=0)  # an old worker was not that far yet
    monkeypatch.setattr(rebuilding._ShadowRebuild, "_switch", swap_forgets_the_checkpoints)

    Balances.rebuild()
    Balances.catch_up()

    assert seen() == {4}
    assert balances() != replayed(*states)


# Killed, and resumed


def killed_in_a_handler():
    readmodels.behaviour["before"] = die_on(5)
    Balances.rebuild()


def killed_between_two_batches():
    Balances.rebuild(tell=die_on(2))


def killed_before_the_swap():
    shadow_tables.swap = kill_this_process
    Balances.rebuild()


def killed_before_the_commit_of_the_swap():
    override(rebuilding._ShadowRebuild, _switch=kill_this_process)
    Balances.rebuild()


def killed_after_the_swap():
    Balances.rebuild()
    kill_this_process()


@pytest.mark.parametrize(
    "step",
    [
        killed_in_a_handler,
        killed_between_two_batches,
        killed_before_the_swap,
        killed_before_the_commit_of_the_swap,
        killed_after_the_swap,
    ],
)
def test_a_rebuild_that_is_killed_is_resumed_by_the_next_call(monkeypatch, step):
    monkeypatch.setattr(Balances, "batch_size", 2)
    states = some()
    Balances.catch_up()
    Balance.objects.update(balance=99)

    assert killed_in(step)
    expected = replayed(*states) if step is killed_after_the_swap else dict.fromkeys(balances(), 99)
    assert balances() == expected

    applied = Balances.rebuild()

    assert balances() == replayed(*states)
    assert seen() == {2}
    if step in (killed_before_the_swap, killed_before_the_commit_of_the_swap):
        assert applied == 0
    assert not rebuild_checkpoints().exists()


@pytest.mark.parametrize("change", ["restart", "version", "partitions", "table"])
def test_a_rebuild_starts_over_after_restart_or_a_change(monkeypatch, change):
    monkeypatch.setattr(Balances, "batch_size", 2)
    states = some()
    assert killed_in(killed_between_two_batches)
    assert ProjectionState.objects.get(name="balances").rebuild_version == 1

    if change == "version":
        monkeypatch.setattr(Balances, "version", 2)
        assert Balances.is_rebuild_due()
    elif change == "partitions":
        monkeypatch.setattr(Balances, "partitions", 3)
    elif change == "table":
        shadow_tables.drop(Balance, "default")

    assert Balances.rebuild(restart=change == "restart") == 10
    assert balances() == replayed(*states)
    assert not Balances.is_rebuild_due()
    state = ProjectionState.objects.get(name="balances")
    assert (state.rebuild_version, state.partitions) == (None, Balances.partitions)


@pytest.mark.parametrize("killed", [True, False])
def test_a_migration_during_a_rebuild_is_kept(monkeypatch, killed):
    monkeypatch.setattr(Balances, "batch_size", 2)
    states = some()
    Balances.catch_up()
    table = Balance._meta.db_table
    done: list[Any] = []

    def migrate(progress=None):
        if not done:
            done.append(1)
            with connection.cursor() as cursor:
                cursor.execute(f"ALTER TABLE {table} ADD COLUMN later varchar(5) DEFAULT 'x'")

    if killed:
        assert killed_in(killed_between_two_batches)
        migrate()
    Balances.rebuild(tell=migrate)

    assert balances() == replayed(*states)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT DISTINCT later FROM {table}")
        assert list(cursor.fetchall()) == [("x",)]


def test_a_version_that_is_older_than_the_rows_is_refused(monkeypatch):
    some()
    with monkeypatch.context() as patch:
        patch.setattr(Balances, "version", 2)
        Balances.rebuild()

    with pytest.raises(ProjectionUnavailable, match="newer"):
        Balances.rebuild()
    with pytest.raises(ProjectionUnavailable, match="newer"):
        Balances.catch_up()


def test_a_second_rebuild_at_the_same_time_is_refused(elsewhere):
    states = some()
    errors = []

    def tell(progress):
        with pytest.raises(ProjectionUnavailable) as caught:
            elsewhere(Balances.rebuild)
        errors.append(caught.value.reason)

    Balances.rebuild(tell=tell)

    assert set(errors) == {"busy"}
    assert balances() == replayed(*states)


@pytest.mark.mariadb
def test_a_rebuild_that_begins_while_another_process_discards_keeps_its_table(monkeypatch):
    """DROP TABLE commits first, which unlocks the state; the table is removed a moment later."""
    monkeypatch.setattr(Balances, "batch_size", 2)
    states = some()
    stop_at_once()
    began, dropped = threading.Event(), threading.Event()
    ends: list[Any] = []
    drop, discards = shadow_tables.drop, threading.current_thread()

    def drop_in_two_steps(model, using):
        if threading.current_thread() is discards:
            with connection.cursor() as cursor:
                cursor.execute("COMMIT")
            rebuilds.start()
            processes.until(lambda: began.is_set() or waits_for_a_named_lock())
        drop(model, using)
        if threading.current_thread() is discards:
            dropped.set()

    def tell(progress):
        began.set()
        assert dropped.wait(processes.PATIENCE)

    def rebuild():
        try:
            ends.append(Balances.rebuild(tell=tell))
        except Exception as error:
            ends.append(error)
        finally:
            connections.close_all()

    rebuilds = threading.Thread(target=rebuild)
    monkeypatch.setattr(shadow_tables, "drop", drop_in_two_steps)
    assert rebuilding.discard_unfinished(Balances, "default")
    rebuilds.join()

    assert ends == [10]
    assert balances() == replayed(*states)


def waits_for_a_named_lock():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT * FROM information_schema.processlist WHERE state = 'User lock')"
        )
        return bool(cursor.fetchone()[0])


def test_a_rollback_of_the_callers_transaction_undoes_a_discard():
    states = some()
    stop_at_once()

    if commits_by_itself(connection):
        with pytest.raises(RuntimeError, match="outside of a transaction"), transaction.atomic():
            rebuilding.discard_unfinished(Balances, "default")
    else:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            assert rebuilding.discard_unfinished(Balances, "default")
            raise ZeroDivisionError

    assert shadow_tables.exists(Balance, "default")
    assert Balances.rebuild() == 0  # resumed
    assert balances() == replayed(*states)


def stop_at_once():
    """Begin a rebuild, and interrupt it."""

    def tell(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Balances.rebuild(tell=tell)


def test_a_rebuild_that_raises_can_be_resumed_at_once():
    states = some()
    stop_at_once()
    assert Balances.rebuild() == 0
    assert balances() == replayed(*states)


# Events that fail


@pytest.mark.parametrize("batch_size", [1, 1_000])
def test_an_event_that_fails_stops_a_rebuild_and_no_event_is_lost_or_doubled(
    monkeypatch, batch_size
):
    monkeypatch.setattr(Balances, "batch_size", batch_size)
    states = some()
    states[2] = Account.logs.append(states[2], Withdrawn(1))
    states += some()
    Balances.catch_up()
    Balance.objects.update(balance=99)
    fail_on(Withdrawn)

    for _ in range(2):
        with pytest.raises(ProjectionFailed) as caught:
            Balances.rebuild()
        assert caught.value.position == states[2].position
    assert set(balances().values()) == {99}
    assert not ParkedEvent.objects.exists()

    readmodels.reset()
    assert Balances.rebuild() == 11
    assert balances() == replayed(*states)
    assert seen() == {2, 3}


def test_an_event_that_fails_in_the_last_moment_stops_a_rebuild_that_can_be_resumed(monkeypatch):
    states = some()
    fail_on(Withdrawn)

    def tell(progress):
        states[2] = Account.logs.append(states[2], Withdrawn(1))

    with pytest.raises(ProjectionFailed):
        Balances.rebuild(tell=tell)
    readmodels.reset()

    assert Balances.rebuild() == 1
    assert balances() == replayed(*states)


def test_a_value_that_the_column_refuses_stops_a_rebuild(monkeypatch):
    states = some()

    def opened(self, row, record):
        row.see(record)
        row.owner = None if record.log_id == states[3].log_id else "ada"

    with monkeypatch.context() as patch:
        patch.setattr(Balances, "opened", opened)
        with pytest.raises(ProjectionFailed) as caught:
            Balances.rebuild()
    assert caught.value.log_id == states[3].log_id

    assert Balances.rebuild() == 4
    assert balances() == replayed(*states)
    assert seen() == {2}


def test_events_that_fail_can_be_parked_instead():
    states = some()
    states[2] = Account.logs.append(states[2], Withdrawn(1), Deposited(3))
    fail_on(Withdrawn)

    Balances.rebuild(park=True)

    assert balances()[states[2].log_id] == 2
    waiting = ParkedEvent.objects.get()
    assert (waiting.is_rebuild, waiting.index) == (False, 2)
    readmodels.reset()
    Balances.retry()
    Balances.catch_up()
    assert balances() == replayed(*states)


def test_a_skipped_event_stays_skipped_also_behind_a_parked_one():
    ada = Account.logs.create(Opened("ada"), Withdrawn(1), Deposited(5), Withdrawn(2), Deposited(7))
    fail_on(Withdrawn)
    Balances.catch_up()
    readmodels.behaviour["before"] = lambda record: fail_at(record, 3)
    Balances.retry()
    Balances.catch_up()
    assert Balances.skip(ada.log_id)
    Balances.catch_up()
    assert balances() == {ada.log_id: 11}

    readmodels.behaviour["before"] = lambda record: fail_at(record, 1)
    Balances.rebuild(park=True)
    readmodels.reset()
    Balances.retry()
    Balances.catch_up()

    assert balances() == {ada.log_id: 11}
    assert Balances.verify(sample=None)


def fail_at(record, index):
    if record.index == index:
        raise ValueError


def test_a_rebuild_deletes_the_parked_events_of_the_old_rows():
    states = some()
    states[0] = Account.logs.append(states[0], Withdrawn(1))
    fail_on(Withdrawn)
    Balances.catch_up()
    readmodels.reset()

    Balances.rebuild()

    assert not ParkedEvent.objects.exists()
    assert balances() == replayed(*states)


# Partitions


def test_a_rebuild_may_change_the_number_of_partitions(monkeypatch):
    states = some(20)
    monkeypatch.setattr(Balances, "partitions", 2)
    Balances.catch_up()
    monkeypatch.setattr(Balances, "partitions", 4)

    assert Balances.rebuild() == 40

    assert len(checkpoints.positions("balances", "default")) == 4
    assert balances() == replayed(*states)
    states.append(Account.logs.create(Opened("eve"), Deposited(7)))
    assert Balances.catch_up() == 2
    assert seen() == {2}


def test_the_tokens_keep_rising_through_a_rebuild():
    some()
    for _ in range(3):
        Balances.catch_up()
        before = Checkpoint.objects.get(projection="balances").token
        Balances.rebuild()
        assert Checkpoint.objects.get(projection="balances").token > before


# Locks


@pytest.mark.postgresql
def test_a_slow_reader_is_waited_for(monkeypatch):
    monkeypatch.setattr(shadow_tables, "LOCK_TIMEOUT", 200)
    states = some()
    Balances.catch_up()
    Balance.objects.update(balance=99)
    reading = threading.Event()

    def read():
        with transaction.atomic():
            Balance.objects.count()
            reading.set()
            # The swap gives up its lock for others, and tries again.
            processes.until(a_session_waits)
            processes.until(lambda: not a_session_waits())
            processes.until(a_session_waits)
        connections.close_all()

    reader = threading.Thread(target=read)
    reader.start()
    assert reading.wait(5)
    Balances.rebuild()
    reader.join()

    assert balances() == replayed(*states)
    assert seen() == {2}


@pytest.mark.postgresql
def test_a_reader_that_takes_too_long_ends_a_rebuild_that_can_be_resumed_at_once(
    monkeypatch, elsewhere
):
    monkeypatch.setattr(shadow_tables, "LOCK_TIMEOUT", 50)
    monkeypatch.setattr(rebuilding, "SWAPS", 2)
    states = some()
    Balances.catch_up()
    with transaction.atomic():
        Balance.objects.count()
        with pytest.raises(ProjectionUnavailable, match="another process"):
            elsewhere(Balances.rebuild)

    assert Balances.rebuild() == 0
    assert balances() == replayed(*states)


def test_a_rollback_of_the_callers_transaction_undoes_a_rebuild():
    states = some()
    Balances.catch_up()
    Balance.objects.update(balance=99)

    if commits_by_itself(connection):
        with pytest.raises(RuntimeError, match="outside of a transaction"), transaction.atomic():
            Balances.rebuild()
        assert set(balances().values()) == {99}
        return
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Balances.rebuild()
        assert balances() == replayed(*states)
        raise ZeroDivisionError

    assert set(balances().values()) == {99}
    Balances.rebuild()
    assert balances() == replayed(*states)


def test_while_writers_append_no_event_is_lost_or_doubled(race):
    states = some()
    Balances.catch_up()
    stop = time.monotonic() + 1.5

    def write():
        state = Account.logs.create(Opened("eve"))
        while time.monotonic() < stop:
            state = Account.logs.append(state, Deposited(1))
        return state

    def work():
        while time.monotonic() < stop:
            Balances.catch_up()

    def rebuild():
        for _ in range(2):
            Balances.rebuild()

    *written, worked, done = race(write, write, work, rebuild)

    assert (worked, done) == (None, None)
    Balances.catch_up()
    assert balances() == replayed(*states, *written)
    assert dict(Balance.objects.values_list("log_id", "seen")) == {
        **{state.log_id: 2 for state in states},
        **{state.log_id: state.version for state in written},
    }


# One log, and inline


def test_the_row_of_a_held_log_is_rebuilt_up_to_the_held_event():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2), Deposited(10))
    fail_on(Withdrawn)
    Balances.catch_up()
    Balance.objects.update(balance=99)

    assert Balances.rebuild(ada.log_id) == 2
    assert balances() == {ada.log_id: 5}

    readmodels.reset()
    Balances.retry()
    Balances.catch_up()
    assert balances() == replayed(ada)


@pytest.mark.usefixtures("inlined")
def test_what_is_made_under_the_locks_of_logs_is_not_read_on_a_replica():
    [state] = some(1)

    for cls, given in ((InlinedBalances, None), (Balances, state.log_id)):
        with pytest.raises(ValueError, match="replica is for rebuilds into a second table"):
            cls.rebuild(given, replica="replica")


@pytest.mark.usefixtures("inlined")
def test_an_inline_projection_is_rebuilt_in_place():
    states = some()
    Inlined.objects.update(balance=99)
    Inlined.objects.create(pk=LogId.new("account"))
    told: list[Any] = []

    assert InlinedBalances.rebuild(tell=told.append) == 5

    assert balances(Inlined) == replayed(*states)
    assert (told[-1].done, told[-1].total, told[-1].unit) == (5, 5, "logs")
    states[0] = Account.logs.append(states[0], Deposited(1))
    assert balances(Inlined) == replayed(*states)


@pytest.mark.usefixtures("inlined")
def test_an_inline_rebuild_that_is_killed_is_resumed(monkeypatch):
    monkeypatch.setattr("eventlogs.feed.scans.PAGE", 2)
    states = some()
    Inlined.objects.update(balance=99)

    assert killed_in(lambda: InlinedBalances.rebuild(tell=die_on(2)))
    told: list[Any] = []
    assert InlinedBalances.rebuild(tell=told.append) == 1

    assert told[-1].done == 5
    assert balances(Inlined) == replayed(*states)
    assert ProjectionState.objects.get(name="inlined-balances").rebuild_reached is None


@pytest.mark.usefixtures("inlined")
def test_a_worker_does_other_work_between_the_steps_of_an_inline_rebuild(monkeypatch):
    monkeypatch.setattr(rebuilding, "LOGS_AT_ONCE", 2)
    some(5)

    assert [each.done for each in rebuilding.rebuild_steps(InlinedBalances)] == [2, 4, 5]


def test_rows_that_were_made_from_the_feed_are_rebuilt_inline(request):
    states = some()
    request.getfixturevalue("inlined")

    assert InlinedBalances.rebuild() == 5

    assert balances(Inlined) == replayed(*states)
    assert AppliedVersion.objects.count() == 5


@pytest.mark.usefixtures("inlined")
def test_older_code_rebuilds_the_row_of_newer_code_only_with_downgrade():
    ada, bob = some(2)
    AppliedVersion.objects.update(made_by=InlinedBalances.version + 1)
    with pytest.raises(ProjectionUnavailable):
        InlinedBalances.rebuild(ada.log_id)

    assert InlinedBalances.rebuild(ada.log_id, downgrade=True) == 1

    ada = Account.logs.append(ada, Deposited(1))
    assert balances(Inlined) == replayed(ada, bob)
    with pytest.raises(ProjectionUnavailable):
        Account.logs.append(bob, Deposited(1))


def test_rebuilding_the_row_of_a_parked_inline_log_releases_it(request):
    ada = Account.logs.create(Deposited(5), Withdrawn(2), Deposited(10))
    fail_on(Withdrawn)
    request.getfixturevalue("inlined")
    until(lambda: InlinedBalances.catch_up() == 0 and InlinedBalances.parked())
    assert balances(Inlined) == {ada.log_id: 5}
    with pytest.raises(ProjectionFailed):
        InlinedBalances.rebuild(ada.log_id)
    readmodels.reset()

    InlinedBalances.rebuild(ada.log_id)

    assert balances(Inlined) == replayed(ada)
    assert InlinedBalances.parked() == []
    ada = Account.logs.append(ada, Deposited(1))
    assert balances(Inlined) == replayed(ada)
