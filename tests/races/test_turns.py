"""
Races of ``execute`` on one log: a caller with a conflict waits for its turn, and gets it.

Each call has one retry. With the log locked, one retry is always enough.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from django.db import connection

from eventlogs import ConcurrentAppend, LogState, TransactionMustRetry
from tests.locks import a_session_waits
from tests.processes import Processes, until
from tests.races import COMMITS, jobs
from tests.races.history import kinds
from tests.races.stores import races
from tests.races.test_races import answers, answers_by_log, on_every_store

pytestmark = COMMITS

BROKEN = "tests.races.broken."


@on_every_store
@pytest.mark.parametrize("keyed", [False, True], ids=["", "keyed"])
@pytest.mark.parametrize("in_atomic", [False, True], ids=["", "atomic"])
def test_concurrent_executes_on_one_log_all_succeed(
    crew, violations, new_logs, writers, store, keyed, in_atomic
):
    (log_id,) = new_logs(1)

    outcomes = crew.race(writers, jobs.execute, store, log_id, 8, keyed, in_atomic)

    assert answers(outcomes) == {LogState: 8 * writers}
    # None was decided on an old state: "expected" is what the decider has seen.
    assert violations(outcomes) == []
    assert races("portable").version(log_id) == 1 + 8 * writers


@pytest.mark.postgresql
@pytest.mark.parametrize("variant", ["TakesNoTurns", "GivesItsTurnAway", "DecidesBeforeItsTurn"])
def test_a_store_that_takes_no_turns_is_found(crew, new_logs, writers, variant):
    def lost() -> int:
        (log_id,) = new_logs(1)
        outcomes = crew.race(writers, jobs.execute, BROKEN + variant, log_id, 8, False, False)
        return len(outcomes) - answers(outcomes)[LogState]

    assert any(lost() for _ in range(5))


@on_every_store
def test_a_decision_that_many_execute_with_one_key_is_made_once(
    crew, violations, new_logs, callers, store
):
    log_ids = new_logs(5)

    outcomes = crew.race(callers, jobs.execute_with_one_key, store, log_ids)

    assert violations(outcomes) == []
    assert answers_by_log(outcomes) == {each: {LogState: callers} for each in log_ids}
    states = defaultdict(set)
    for outcome in outcomes:
        states[outcome.log_id].add(outcome.answer)
    assert all(len(each) == 1 for each in states.values())
    assert {races("portable").version(each) for each in log_ids} == {2}


@pytest.mark.postgresql
def test_a_store_that_forgets_keys_makes_a_decision_twice(crew, violations, new_logs, callers):
    log_ids = new_logs(5)

    outcomes = crew.race(callers, jobs.execute_with_one_key, BROKEN + "ForgetsKeys", log_ids)

    assert kinds(violations(outcomes))["doubled"] > 0


@pytest.mark.locks
def test_decisions_in_a_deadlock_are_run_again_as_a_whole(
    crew, violations, new_logs, quick_deadlocks
):
    """In a turn, appends of a decider are rolled back with the decision, and stored again."""
    log_ids = new_logs(2)

    answered = crew.race(4, jobs.execute_crosswise, "portable", log_ids, 10, **quick_deadlocks)

    assert violations() == []
    done = [each for each in answered if each != "given up"]
    assert len(done) > 0
    noted = Counter(
        record.event.marker
        for each in log_ids
        for record in races("portable").stream(each)
        if not record.event.marker.startswith("log ")
    )
    assert noted == Counter([*done, *(f"beside {each}" for each in done)])


@pytest.mark.postgresql
@pytest.mark.parametrize("level", [r"repeatable\ read", "serializable"])
@pytest.mark.parametrize("store", ["postgresql", "portable"])
def test_on_connections_that_default_to_snapshots_nothing_is_decided_on_an_old_state(
    crew, violations, new_logs, store, level
):
    (log_id,) = new_logs(1)
    options = {"options": f"-c default_transaction_isolation={level}"}

    outcomes = crew.race(8, jobs.execute, store, log_id, 5, True, False, **options)

    assert violations(outcomes) == []
    assert not answers(outcomes).keys() - {LogState, TransactionMustRetry, ConcurrentAppend}
    assert answers(outcomes)[LogState] > 0


@pytest.mark.locks
@pytest.mark.parametrize(
    "store", [pytest.param("postgresql", marks=pytest.mark.postgresql), "portable"]
)
def test_the_turn_of_a_process_that_is_killed_goes_to_the_next(violations, new_logs, store):
    (log_id,) = new_logs(1)
    with Processes(database=dict(connection.settings_dict)) as processes:
        holder = processes.start(jobs.hold_the_turn, store, log_id)
        assert holder.heard() == "it decides"
        processes.line_up(4, jobs.execute_alone, store, log_id, 3)
        processes.go()
        if connection.vendor == "postgresql":
            until(a_session_waits)
        assert races(store).version(log_id) == 1

        holder.kill()
        outcomes = [each for report in processes.reports() for each in report]

    assert violations(outcomes) == []
    assert answers(outcomes) == {LogState: 12}
    assert races(store).version(log_id) == 13
