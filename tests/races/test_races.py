"""
Races of separate processes on the same logs, on every store: nothing lost, doubled or torn.

That each of these can fail is shown in test_broken_versions.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from django.db import connection

from eventlogs import (
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogAlreadyExists,
    LogId,
    LogState,
    TransactionMustRetry,
)
from tests.races import COMMITS, jobs
from tests.races.events import batch
from tests.races.history import Outcome
from tests.races.stores import races

pytestmark = COMMITS

ISOLATIONS = ["REPEATABLE READ", "SERIALIZABLE"]
EVERY_ISOLATION = [
    pytest.param("", id="default"),
    *(pytest.param(level, marks=pytest.mark.locks) for level in ISOLATIONS),
]

on_every_store = pytest.mark.parametrize(
    "store",
    [
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("portable"),
        pytest.param("mixed", marks=pytest.mark.postgresql),
        pytest.param("citus", marks=[pytest.mark.postgresql, pytest.mark.buckets]),
        # That of "group and single" alone: in the long campaigns.
        pytest.param(
            "group", marks=[pytest.mark.postgresql, pytest.mark.one_server, pytest.mark.long]
        ),
        pytest.param("group and single", marks=[pytest.mark.postgresql, pytest.mark.one_server]),
    ],
)


def answers(outcomes: list[Outcome]) -> Counter[type]:
    return Counter(type(outcome.answer) for outcome in outcomes)


def answers_by_log(outcomes: list[Outcome]) -> dict[LogId, Counter[type]]:
    found: dict[LogId, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        found[outcome.log_id].append(outcome)
    return {log_id: answers(each) for log_id, each in found.items()}


# One log, one version.


@on_every_store
@pytest.mark.parametrize("batches", [False, True], ids=["single", "batches"])
def test_one_of_many_writers_that_expect_one_version_wins(
    crew, violations, new_logs, writers, store, batches
):
    (log_id,) = new_logs(1)

    outcomes = crew.race(writers, jobs.append_at_one_version, store, log_id, 40, batches)

    assert violations(outcomes) == []
    assert answers(outcomes) == {LogState: 40, ConcurrentAppend: 40 * (writers - 1)}
    # The losers get the right version: no writer can be ahead by more than one append.
    for outcome in outcomes:
        if isinstance(outcome.answer, ConcurrentAppend):
            assert outcome.answer.log_id == log_id
            assert outcome.answer.expected_version == outcome.expected
            assert outcome.answer.actual_version == outcome.expected + outcome.of


@on_every_store
def test_batches_of_any_size_are_whole_and_consecutive(crew, violations, new_logs, writers, store):
    log_ids = new_logs(3)

    outcomes = crew.race(writers, jobs.append_anywhere, store, log_ids, 20)

    assert violations(outcomes) == []
    assert set(answers(outcomes)) <= {LogState, ConcurrentAppend}
    assert all(
        isinstance(outcome.answer, LogState) for outcome in outcomes if outcome.expected is None
    )


# One new log.


@on_every_store
@pytest.mark.parametrize("keyed", [False, True], ids=["without-key", "with-key"])
@pytest.mark.parametrize("in_atomic", [False, True], ids=["alone", "in-atomic"])
def test_a_log_that_many_create_is_created_once(crew, violations, writers, store, keyed, in_atomic):
    log_ids = [LogId.new("race") for _ in range(10)]

    outcomes = crew.race(writers, jobs.create_one_log, store, log_ids, keyed, in_atomic)

    assert violations(outcomes) == []
    for counted in answers_by_log(outcomes).values():
        assert counted == {LogState: 1, LogAlreadyExists: writers - 1}


@on_every_store
def test_the_keys_of_creates_that_were_too_late_are_free(crew, violations, writers, store):
    log_ids = [LogId.new("race") for _ in range(5)]
    outcomes = crew.race(writers, jobs.create_one_log, store, log_ids, True, False)
    losers = [each.marker for each in outcomes if isinstance(each.answer, LogAlreadyExists)]

    states = [races("portable").create(*batch("mine"), idempotency_key=key) for key in losers[:20]]

    assert len(states) == 20
    assert {state.version for state in states} == {1}


# One key.


@on_every_store
@pytest.mark.parametrize("one_id", [False, True], ids=["new-ids", "one-id"])
def test_a_request_to_create_that_many_make_at_once_is_done_once(
    crew, violations, callers, store, one_id, quick_deadlocks
):
    ids = [LogId.new("race") for _ in range(10)] if one_id else []

    # The two stores claim the key and the log in different orders: mixed, they deadlock, and
    # try again by themselves.
    outcomes = crew.race(callers, jobs.create_with_one_key, store, 10, ids, **quick_deadlocks)

    assert violations(outcomes) == []
    assert_one_is_stored_and_the_others_are_replays(outcomes, rounds=10)


@on_every_store
@pytest.mark.parametrize("expectations", ["current", "any"])
def test_an_append_that_many_make_at_once_is_done_once(
    crew, violations, new_logs, callers, store, expectations
):
    log_ids = new_logs(10, version=3)

    outcomes = crew.race(callers, jobs.append_with_one_key, store, log_ids, expectations, "same")

    assert violations(outcomes) == []
    assert_one_is_stored_and_the_others_are_replays(outcomes, rounds=10)


def assert_one_is_stored_and_the_others_are_replays(
    outcomes: list[Outcome], *, rounds: int
) -> None:
    by_round = defaultdict(list)
    for outcome in outcomes:
        by_round[outcome.marker].append(outcome)
    assert len(by_round) == rounds
    for each in by_round.values():
        assert answers(each) == {LogState: 1, IdempotentReplay: len(each) - 1}
        assert len({outcome.state for outcome in each}) == 1


@on_every_store
def test_a_caller_with_a_stale_version_is_never_appended_twice(
    crew, violations, new_logs, callers, store
):
    """A call before the winner's commit is a conflict; a later one is a replay."""
    log_ids = new_logs(10, version=3)

    outcomes = crew.race(callers, jobs.append_with_one_key, store, log_ids, "stale", "same")

    assert violations(outcomes) == []
    for counted in answers_by_log(outcomes).values():
        assert set(counted) <= {LogState, IdempotentReplay, ConcurrentAppend}
        assert counted[LogState] == 1
    for outcome in outcomes:
        if outcome.expected == 3:
            assert isinstance(outcome.answer, LogState | IdempotentReplay)


@on_every_store
def test_one_of_several_different_appends_with_one_key_is_done(
    crew, violations, new_logs, callers, store
):
    log_ids = new_logs(10, version=3)

    outcomes = crew.race(callers, jobs.append_with_one_key, store, log_ids, "any", "different")

    assert violations(outcomes) == []
    for counted in answers_by_log(outcomes).values():
        assert counted == {LogState: 1, IdempotencyKeyReused: callers - 1}


@on_every_store
def test_a_key_that_is_raced_on_many_logs_is_used_on_one(
    crew, violations, new_logs, writers, store
):
    log_ids = new_logs(10 * writers, version=3)

    outcomes = crew.race(writers, jobs.append_to_own_log_with_one_key, store, log_ids, 10)

    assert violations(outcomes) == []
    by_round = defaultdict(list)
    for outcome in outcomes:
        by_round[outcome.marker.partition(" by ")[0]].append(outcome)
    for each in by_round.values():
        assert answers(each) == {LogState: 1, IdempotencyKeyReused: writers - 1}


@on_every_store
def test_keys_are_pruned_while_they_are_used(crew, violations, new_logs, writers, store):
    log_ids = new_logs(20)

    outcomes = crew.race(writers, jobs.append_while_keys_are_pruned, store, log_ids, 20)

    assert violations(outcomes, keys_were_pruned=True) == []
    assert set(answers(outcomes)) <= {LogState, IdempotencyKeyReused}
    for counted in answers_by_log(outcomes).values():
        assert counted[LogState] >= 1


# Transactions of the caller.


@on_every_store
def test_transactions_that_roll_back_at_random_leave_nothing(
    crew, violations, new_logs, store, quick_deadlocks
):
    log_ids = new_logs(6)

    outcomes = crew.race(8, jobs.append_in_transactions, store, log_ids, 8, "", **quick_deadlocks)

    assert violations(outcomes) == []
    counted = answers(outcomes)
    assert set(counted) <= {LogState, ConcurrentAppend, TransactionMustRetry}
    assert counted[LogState] > 8
    # Deadlocks are included; on SQLite no caller gets "database is locked".
    assert (counted[TransactionMustRetry] > 0) == (connection.vendor != "sqlite")


@pytest.mark.sqlite
def test_sqlite_transactions_that_are_not_immediate_are_found(crew, new_logs):
    outcomes = crew.race(
        8, jobs.append_in_transactions, "portable", new_logs(6), 8, "", transaction_mode=None
    )

    assert answers(outcomes)[TransactionMustRetry] > 0


@pytest.mark.long
@on_every_store
@pytest.mark.parametrize("isolation", EVERY_ISOLATION)
def test_long_campaigns_of_transactions_leave_nothing(
    crew, violations, new_logs, writers, store, isolation, quick_deadlocks
):
    log_ids = new_logs(6)

    outcomes = crew.race(
        writers, jobs.append_in_transactions, store, log_ids, 25, isolation, **quick_deadlocks
    )

    assert violations(outcomes) == []
    assert set(answers(outcomes)) <= {LogState, ConcurrentAppend, TransactionMustRetry}


@pytest.mark.locks
@on_every_store
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_transactions_on_snapshots_leave_nothing(
    crew, violations, new_logs, store, isolation, quick_deadlocks
):
    log_ids = new_logs(4)

    outcomes = crew.race(
        8, jobs.append_in_transactions, store, log_ids, 4, isolation, **quick_deadlocks
    )

    assert violations(outcomes) == []
    assert set(answers(outcomes)) <= {LogState, ConcurrentAppend, TransactionMustRetry}
    assert answers(outcomes)[TransactionMustRetry] > 0


@on_every_store
@pytest.mark.parametrize("isolation", EVERY_ISOLATION)
def test_callers_that_retry_all_succeed(
    crew, violations, new_logs, store, isolation, quick_deadlocks
):
    (log_id,) = new_logs(1)

    outcomes = crew.race(8, jobs.increment, store, log_id, 8, isolation, **quick_deadlocks)

    assert violations(outcomes) == []
    counted = answers(outcomes)
    assert set(counted) <= {LogState, ConcurrentAppend, TransactionMustRetry}
    assert counted[LogState] == 8 * 8
    assert races("portable").version(log_id) == 1 + 8 * 8


@pytest.mark.locks
@on_every_store
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_key_raced_on_snapshots_is_used_once(crew, violations, new_logs, store, isolation):
    log_ids = new_logs(10, version=3)

    outcomes = crew.race(8, jobs.append_on_a_snapshot, store, log_ids, isolation)

    assert violations(outcomes) == []
    for counted in answers_by_log(outcomes).values():
        assert set(counted) <= {LogState, IdempotentReplay, TransactionMustRetry}
        assert counted[LogState] == 1
        assert counted[LogState] + counted[IdempotentReplay] == 8


REPEATABLE_READ_BY_DEFAULT = {
    "postgresql": {"options": "-c default_transaction_isolation=repeatable\\ read"},
    "mysql": {"isolation_level": "repeatable read"},
}


@pytest.mark.locks
@on_every_store
@pytest.mark.fence
def test_on_snapshots_creates_of_different_logs_do_not_block_each_other(
    crew, violations, writers, store
):
    """On MariaDB, a locking read that found no log would lock the gap that others insert into."""
    options = REPEATABLE_READ_BY_DEFAULT[connection.vendor]

    outcomes = crew.race(writers, jobs.create_own_logs, store, 10, **options)

    assert violations(outcomes) == []
    assert answers(outcomes) == {LogState: 2 * 10 * writers}


SERIALIZABLE_BY_DEFAULT = {
    "postgresql": {
        "options": "-c default_transaction_isolation=serializable -c deadlock_timeout=20ms"
    },
    "mysql": {"isolation_level": "serializable"},
}


@pytest.mark.locks
@pytest.mark.one_server
@on_every_store
def test_stores_on_connections_that_default_to_snapshots_retry_by_themselves(
    crew, violations, new_logs, store
):
    log_ids = new_logs(3)

    outcomes = crew.race(
        8,
        jobs.append_anywhere,
        store,
        log_ids,
        10,
        **SERIALIZABLE_BY_DEFAULT[connection.vendor],
    )

    assert violations(outcomes) == []
    assert set(answers(outcomes)) <= {LogState, ConcurrentAppend, TransactionMustRetry}
