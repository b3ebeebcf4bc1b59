"""Interleavings of two sessions that a race hits too seldom, set up one step at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, close_old_connections, connection, transaction

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotentReplay,
    LogId,
    LogState,
    TransactionMustRetry,
)
from tests.processes import until
from tests.races import COMMITS, jobs
from tests.races.events import batch
from tests.races.history import Outcome
from tests.races.stores import races
from tests.turns import take_turns_on

pytestmark = [pytest.mark.postgresql, COMMITS]

STORES = ["postgresql", "portable"]

PLANS = {
    "generic plans": "-c plan_cache_mode=force_generic_plan",
    "hash joins": "-c enable_nestloop=off -c enable_mergejoin=off",
    "merge joins": "-c enable_nestloop=off -c enable_hashjoin=off",
    "no indexes": "-c enable_indexscan=off -c enable_bitmapscan=off -c enable_indexonlyscan=off",
}


class Session:
    """Another connection to the database, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.pid: int = self.do(lambda: self.sql("SELECT pg_backend_pid()"))

    def start(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        return self._thread.submit(call, *arguments, **options)

    def do(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self.start(call, *arguments, **options).result(10)

    def close(self) -> None:
        # By force: a failed test may have left the session waiting.
        Session.sql("SELECT pg_terminate_backend(%s)", self.pid)
        self._thread.submit(lambda: connection.close())
        self._thread.shutdown()

    def begin(self) -> None:
        self.do(transaction.set_autocommit, False)

    def commit(self) -> None:
        self.do(lambda: connection.commit())

    def rollback(self) -> None:
        self.do(lambda: connection.rollback())

    @staticmethod
    def sql(statement: str, *parameters: Any) -> Any:
        """Run a statement on the thread's connection; return the first value, if there is one."""
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchone()[0] if cursor.description else None


@pytest.fixture
def other(transactional_db) -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


@pytest.fixture
def blocked(transactional_db) -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


def wait_until_blocked(session: Session) -> None:
    until(
        lambda: Session.sql("SELECT cardinality(pg_blocking_pids(%s))", session.pid),
        what="a session that is blocked",
    )


# Behind a transaction that rolls back.


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("ahead", ["append", "create"])
def test_a_caller_that_waits_for_a_key_gets_it_when_the_other_rolls_back(
    violations, new_logs, other, blocked, store, ahead
):
    manager = races(store)
    (mine,) = new_logs(1)
    (theirs,) = new_logs(1)
    other.begin()
    if ahead == "append":
        other.do(manager.append, theirs, *batch("gone"), expected_version=ANY, idempotency_key="k")
    else:
        other.do(manager.create, *batch("gone"), idempotency_key="k")
    waiting = blocked.start(
        manager.append, mine, *batch("mine"), expected_version=1, idempotency_key="k"
    )
    wait_until_blocked(blocked)

    other.rollback()

    state = waiting.result(10)
    assert (state.log_id, state.version) == (mine, 2)
    assert violations([Outcome(mine, "mine", 1, 1, state)]) == []


@pytest.mark.parametrize("store", STORES)
def test_a_caller_that_waits_to_create_a_log_does_so_when_the_other_rolls_back(
    violations, other, blocked, store
):
    manager = races(store)
    log_id = LogId.new("race")
    other.begin()
    other.do(manager.create, *batch("gone"), log_id=log_id, idempotency_key="theirs")
    waiting = blocked.start(manager.create, *batch("mine"), log_id=log_id, idempotency_key="mine")
    wait_until_blocked(blocked)

    other.rollback()

    assert violations([Outcome(log_id, "mine", 1, 0, waiting.result(10))]) == []


@pytest.mark.parametrize("store", STORES)
def test_an_append_that_waits_for_a_log_is_stored_when_the_other_rolls_back(
    violations, new_logs, other, blocked, store
):
    manager = races(store)
    (log_id,) = new_logs(1)
    other.begin()
    other.do(manager.append, log_id, *batch("gone", 3), expected_version=1)
    waiting = blocked.start(manager.append, log_id, *batch("mine", 2), expected_version=1)
    wait_until_blocked(blocked)

    other.rollback()

    assert violations([Outcome(log_id, "mine", 2, 1, waiting.result(10))]) == []


@pytest.mark.parametrize("store", STORES)
def test_rolling_back_a_savepoint_undoes_the_key_and_the_events(violations, new_logs, other, store):
    manager = races(store)
    (log_id,) = new_logs(1)

    with transaction.atomic():
        with transaction.atomic():  # a savepoint
            manager.append(log_id, *batch("gone", 2), expected_version=1, idempotency_key="k")
            transaction.set_rollback(True)
        # No session waits for rolled back rows.
        theirs = other.do(
            manager.append, log_id, *batch("theirs"), expected_version=1, idempotency_key="k"
        )
        with pytest.raises(ConcurrentAppend) as caught:
            manager.append(log_id, *batch("late"), expected_version=1)
        mine = manager.append(theirs, *batch("mine"))

    assert caught.value.actual_version == 2
    assert (
        violations([Outcome(log_id, "theirs", 1, 1, theirs), Outcome(log_id, "mine", 1, 2, mine)])
        == []
    )


# Keys that are pruned meanwhile.


@pytest.mark.parametrize("store", STORES)
def test_a_key_that_is_pruned_while_a_caller_waits_for_it_is_claimed_again(
    violations, new_logs, other, store
):
    """The key is pruned between the failed claim and the look-up of its owner."""
    manager = races(store)
    (log_id,) = new_logs(1)
    theirs: list[LogState] = []
    pruned: list[None] = []

    def meddle(execute, sql, *arguments):
        claims = "INSERT INTO" in sql and "idempotencykey" in sql
        if claims and not theirs:
            theirs.append(other.do(manager.create, *batch("theirs"), idempotency_key="k"))
        answer = execute(sql, *arguments)
        if claims and not pruned:
            pruned.append(other.do(other.sql, "DELETE FROM eventlogs_idempotencykey"))
        return answer

    with connection.execute_wrapper(meddle):
        mine = manager.append(log_id, *batch("mine"), expected_version=1, idempotency_key="k")

    with pytest.raises(IdempotentReplay) as caught:
        manager.append(log_id, *batch("mine"), expected_version=1, idempotency_key="k")
    assert caught.value.state == mine
    assert violations([Outcome(log_id, "mine", 1, 1, mine)], keys_were_pruned=True) == []


# Snapshots.


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("expected", [1, 2, ANY], ids=["as-seen", "too-high", "any"])
def test_a_transaction_with_an_old_snapshot_must_retry_and_reports_no_old_facts(
    new_logs, other, store, expected
):
    manager = races(store)
    (log_id,) = new_logs(1)

    with transaction.atomic():
        jobs.set_isolation("REPEATABLE READ")
        assert manager.version(log_id) == 1
        other.do(manager.append, log_id, *batch("theirs"), expected_version=1)
        with pytest.raises(TransactionMustRetry):
            manager.append(log_id, *batch("mine"), expected_version=expected, idempotency_key="k")

    assert manager.version(log_id) == 2


# Every plan that PostgreSQL may choose.


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        (jobs.append_with_one_key, ["any", "same"]),
        (jobs.append_anywhere, [6]),
        (jobs.append_in_transactions, [2, ""]),
    ],
    ids=["key", "batches", "transactions"],
)
def test_races_end_without_violations_under_every_query_plan(
    crew, violations, new_logs, quick_deadlocks, job, arguments, plan
):
    log_ids = new_logs(4, version=3)
    # Forbidden plans are priced so high that PostgreSQL would compile them, which takes seconds.
    options = " ".join(["-c jit=off", PLANS[plan], *quick_deadlocks.values()])

    outcomes = crew.race(8, job, "postgresql", log_ids, *arguments, options=options)

    assert violations(outcomes) == []
    expected = (LogState, IdempotentReplay, ConcurrentAppend, TransactionMustRetry)
    assert [each for each in outcomes if not isinstance(each.answer, expected)] == []


# Statements that are interrupted.


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
def test_an_append_that_runs_into_a_timeout_is_not_stored(
    violations, new_logs, other, blocked, store, setting
):
    manager = races(store)
    (log_id,) = new_logs(1)
    other.begin()
    other.do(manager.append, log_id, *batch("theirs"), expected_version=1)
    blocked.do(blocked.sql, f"SET {setting} = '100ms'")

    with pytest.raises(OperationalError):
        blocked.do(manager.append, log_id, *batch("mine"), expected_version=1)
    other.commit()

    # The connection is still usable.
    state = blocked.do(manager.append, log_id, *batch("mine"), expected_version=2)
    assert violations([Outcome(log_id, "mine", 1, 2, state)]) == []


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_an_append_whose_server_process_is_stopped_is_not_stored(
    violations, new_logs, other, blocked, store, how
):
    manager = races(store)
    (log_id,) = new_logs(1)
    other.begin()
    other.do(manager.append, log_id, *batch("theirs"), expected_version=1)
    waiting = blocked.start(
        manager.append, log_id, *batch("mine"), expected_version=1, idempotency_key="k"
    )
    wait_until_blocked(blocked)

    Session.sql(f"SELECT {how}(%s)", blocked.pid)

    with pytest.raises(OperationalError):
        waiting.result(10)
    other.rollback()
    blocked.do(close_old_connections)  # as Django does at the end of a request
    state = blocked.do(
        manager.append, log_id, *batch("mine"), expected_version=1, idempotency_key="k"
    )
    assert violations([Outcome(log_id, "mine", 1, 1, state)]) == []


# Prepared statements that were deallocated.


@pytest.mark.parametrize("reset", ["DISCARD ALL", "DEALLOCATE ALL", "rollback"])
@pytest.mark.parametrize("in_atomic", [False, True], ids=["alone", "in-atomic"])
def test_appends_continue_when_prepared_statements_are_deallocated(
    violations, new_logs, reset, in_atomic
):
    manager = races("postgresql")
    (log_id,) = new_logs(1)
    one_of_each(manager, log_id, "before")

    if reset == "rollback":
        # psycopg deallocates all statements of the connection when it rolls back.
        with suppress(jobs.ChangedMind), transaction.atomic():
            one_of_each(manager, log_id, "undone")
            raise jobs.ChangedMind
    else:
        Session.sql(reset)
    if in_atomic:
        with transaction.atomic():
            one_of_each(manager, log_id, "after")
    else:
        one_of_each(manager, log_id, "after")

    assert violations() == []
    assert manager.version(log_id) == 9


def test_appends_continue_in_a_transaction_that_rolled_back_to_a_savepoint(violations, new_logs):
    manager = races("postgresql")
    (log_id,) = new_logs(1)
    one_of_each(manager, log_id, "before")

    with transaction.atomic():
        with suppress(jobs.ChangedMind), transaction.atomic():
            one_of_each(manager, log_id, "undone")
            raise jobs.ChangedMind
        one_of_each(manager, log_id, "after")

    assert violations() == []
    assert manager.version(log_id) == 9


@pytest.mark.parametrize("in_atomic", [False, True], ids=["alone", "in-atomic"])
@pytest.mark.fence
def test_appends_and_reads_continue_when_a_column_was_made_wider(scratch, in_atomic):
    manager = races("postgresql")
    (log_id,) = scratch.new_logs(1)

    with scratch.cursor() as cursor:
        one_of_each(manager, log_id, "before")
        cursor.execute("ALTER TABLE eventlogs_event ALTER type TYPE varchar(300)")
        cursor.execute("ALTER TABLE eventlogs_eventlog ALTER log_type TYPE varchar(70)")
        if in_atomic:
            with transaction.atomic():
                one_of_each(manager, log_id, "after")
        else:
            one_of_each(manager, log_id, "after")

    assert scratch.violations() == []


def one_of_each(manager, log_id: LogId, name: str) -> None:
    """Use every statement there is; the log gains 4 events."""
    state = manager.append(log_id, *batch(f"{name} one"), expected_version=ANY)
    state = manager.append(state, *batch(f"{name} many", 2))
    with pytest.raises(ConcurrentAppend):
        manager.append(log_id, *batch("late"), expected_version=state.version + 1)
    manager.append(state, *batch(f"{name} keyed"), idempotency_key=f"{name} keyed")
    manager.create(*batch(f"{name} create"), idempotency_key=f"{name} create")
    assert manager.version(log_id) == len(manager.load(log_id)) == state.version + 1


def test_a_closed_connection_is_forgotten(new_logs):
    """With CONN_MAX_AGE = 0 there is a new one for each request: none may stay in memory."""
    manager = races("postgresql")
    (log_id,) = new_logs(1)
    seen = []

    for number in range(5):
        connection.close()
        one_of_each(manager, log_id, str(number))
        seen.append(weakref.ref(connection.connection))
    connection.close()
    gc.collect()

    assert [each() for each in seen] == [None] * 5


REFUSE_AT_COMMIT = """
    CREATE FUNCTION refuse_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF new.data ->> 'marker' = 'refused' THEN
            RAISE EXCEPTION 'at commit' USING ERRCODE = 'serialization_failure';
        END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER refuse_at_commit AFTER INSERT ON eventlogs_event
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_at_commit()
"""


@pytest.mark.parametrize("first", [True, False], ids=["first-on-its-connection", "later"])
def test_a_failure_at_the_commit_of_an_append_is_raised(violations, new_logs, first):
    """A serializable transaction may fail at its commit, after its rows were returned."""
    manager = races("postgresql")
    (log_id,) = new_logs(1)
    Session.sql(REFUSE_AT_COMMIT)
    try:
        if first:
            connection.close()
        else:
            manager.append(log_id, *batch("before"), expected_version=1)

        with pytest.raises(TransactionMustRetry):
            manager.append(log_id, *batch("refused"), expected_version=ANY)

        state = manager.append(log_id, *batch("after"), expected_version=ANY)
    finally:
        connection.close()
        Session.sql("DROP FUNCTION refuse_at_commit() CASCADE")
    assert state.version == (2 if first else 3)
    assert violations([Outcome(log_id, "after", 1, None, state)]) == []


# Turns of execute.


def test_callers_get_their_turns_in_the_order_in_which_they_came(new_logs):
    """A row lock alone keeps no order, as the row changes. The portable store fails here."""
    manager = races("postgresql")
    (log_id,) = new_logs(1)
    take_turns_on(manager, log_id)
    sessions = [Session() for _ in range(5)]
    try:
        gate: Future[None] = Future()

        def hold(_: Any) -> Any:
            gate.result(60)
            return batch("first")

        waiting = [sessions[0].start(manager.execute, log_id, hold)]
        until(
            lambda: Session.sql(
                "SELECT count(*) FROM pg_locks WHERE mode = 'RowShareLock' AND pid = %s",
                sessions[0].pid,
            ),
            what="the first session's turn",
        )
        for number, session in enumerate(sessions[1:]):
            decide = partial(lambda marker, _: batch(marker), str(number))
            waiting.append(session.start(manager.execute, log_id, decide))
            wait_until_blocked(session)
        gate.set_result(None)
        states = [each.result(60) for each in waiting]
    finally:
        for session in sessions:
            session.close()

    assert [each.version for each in states] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
def test_a_turn_that_times_out_stores_nothing(violations, new_logs, other, blocked, store, setting):
    manager = races(store)
    (log_id,) = new_logs(1)
    take_turns_on(manager, log_id)
    other.begin()
    other.do(manager.append, log_id, *batch("theirs"), expected_version=1)
    blocked.do(blocked.sql, f"SET {setting} = '100ms'")

    with pytest.raises(OperationalError):
        blocked.do(manager.execute, log_id, lambda _: batch("mine"))
    other.commit()

    # The connection is still usable.
    take_turns_on(manager, log_id)
    state = blocked.do(manager.execute, log_id, lambda _: batch("mine"))
    assert violations([Outcome(log_id, "mine", 1, 2, state)]) == []


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_turn_whose_server_process_is_stopped_stores_nothing(
    violations, new_logs, other, blocked, store, how
):
    manager = races(store)
    (log_id,) = new_logs(1)
    take_turns_on(manager, log_id)
    other.begin()
    other.do(manager.append, log_id, *batch("theirs"), expected_version=1)
    waiting = blocked.start(manager.execute, log_id, lambda _: batch("mine"))
    wait_until_blocked(blocked)

    Session.sql(f"SELECT {how}(%s)", blocked.pid)
    with pytest.raises(OperationalError):
        waiting.result(10)
    other.commit()
    blocked.do(close_old_connections)

    state = blocked.do(manager.execute, log_id, lambda _: batch("mine"))
    assert violations([Outcome(log_id, "mine", 1, 2, state)]) == []


@pytest.mark.parametrize("store", STORES)
def test_a_conflict_in_a_transaction_that_holds_the_row_is_no_deadlock(
    violations, new_logs, other, blocked, store
):
    """
    An append that waited for the row keeps its lock, also where it then found a conflict.

    Another one waits in the queue for this row already, at its head.
    """
    manager = races(store)
    (log_id,) = new_logs(1)
    other.begin()
    other.do(manager.append, log_id, *batch("theirs"), expected_version=1)
    turn = Session()
    try:
        blocked.begin()
        first = blocked.start(manager.execute, log_id, lambda _: batch("mine"))
        wait_until_blocked(blocked)
        take_turns_on(manager, log_id)
        second = turn.start(manager.execute, log_id, lambda _: batch("turn"))
        wait_until_blocked(turn)

        other.commit()
        mine = first.result(60)
        blocked.commit()
        after = second.result(60)
    finally:
        turn.close()

    assert violations([Outcome(log_id, "mine", 1, mine.version - 1, mine)]) == []
    assert {mine.version, after.version} == {3, 4}
