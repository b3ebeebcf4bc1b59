"""
The races of test_races.py, run on deliberately broken versions: each finds the defect.

A test that cannot fail proves nothing; here each test fails.
"""

from __future__ import annotations

import pytest

from eventlogs import LogId
from tests.processes import ProcessFailed
from tests.races import COMMITS, jobs
from tests.races.history import kinds
from tests.races.stores import races

pytestmark = [pytest.mark.postgresql, COMMITS]

BROKEN = "tests.races.broken."


def test_a_store_that_does_not_compare_versions_is_found(crew, violations, new_logs, writers):
    (log_id,) = new_logs(1)

    outcomes = crew.race(
        writers, jobs.append_at_one_version, BROKEN + "NoVersionComparison", log_id, 5, False
    )

    assert kinds(violations(outcomes))["expectation ignored"] > 0


@pytest.mark.one_table
@pytest.mark.fence
def test_a_store_that_takes_no_lock_is_found(crew, scratch, writers):
    scratch.drop_unique_constraints("eventlogs_event")
    (log_id,) = scratch.new_logs(1)

    outcomes = crew.race(
        writers,
        jobs.append_at_one_version,
        BROKEN + "NoLock",
        log_id,
        5,
        False,
        **scratch.options,
    )

    found = kinds(scratch.violations(outcomes))
    assert found["doubled index"] > 0
    assert found["wrong version"] > 0


@pytest.mark.parametrize("variant", ["KeyLookedUpButNotClaimed", "KeyClaimedAfterwards"])
def test_a_store_that_claims_no_key_or_too_late_is_found(
    crew, violations, new_logs, callers, variant
):
    log_ids = new_logs(5, version=3)

    outcomes = crew.race(
        callers, jobs.append_with_one_key, BROKEN + variant, log_ids, "any", "same"
    )

    assert kinds(violations(outcomes))["doubled"] > 0


def test_a_store_that_claims_the_key_too_early_is_found(crew, violations, new_logs, writers):
    log_ids = new_logs(2)

    outcomes = crew.race(writers, jobs.append_anywhere, BROKEN + "KeyClaimedBefore", log_ids, 5)

    assert kinds(violations(outcomes))["orphan key"] > 0


def test_a_create_that_leaves_its_key_is_found(crew, violations, writers):
    log_ids = [LogId.new("race") for _ in range(2)]

    outcomes = crew.race(
        writers, jobs.create_one_log, BROKEN + "CreateLeavesItsKey", log_ids, True, False
    )

    found = kinds(violations(outcomes))
    # An orphaned key then looks like a completed request: its caller gets a replay.
    assert found == {"orphan key": 2 * (writers - 1), "lost": 2 * (writers - 1)}


def test_a_create_that_breaks_the_callers_transaction_is_found(crew, writers, transactional_db):
    log_ids = [LogId.new("race")]

    unusable = r"TransactionManagementError|current transaction is abort"
    with pytest.raises(ProcessFailed, match=unusable):
        crew.race(
            writers, jobs.create_one_log, BROKEN + "CreateFailsInTheDatabase", log_ids, True, True
        )


def test_a_batch_in_two_transactions_is_found(crew, violations, new_logs, writers):
    log_ids = new_logs(1)

    outcomes = crew.race(writers, jobs.append_anywhere, BROKEN + "BatchInTwo", log_ids, 5)

    assert kinds(violations(outcomes))["torn batch"] > 0


@pytest.mark.fence
def test_positions_against_the_order_of_a_batch_are_found(crew, violations, new_logs):
    log_ids = new_logs(1)

    outcomes = crew.race(4, jobs.append_anywhere, BROKEN + "BatchBackwards", log_ids, 5)

    assert kinds(violations(outcomes))["positions run backwards"] > 0


@pytest.mark.fence
def test_a_clock_that_steps_back_is_found(crew, scratch):
    scratch.make_the_clock_jump()
    log_ids = scratch.new_logs(2)

    outcomes = crew.race(
        4, jobs.append_anywhere, BROKEN + "NoGreatest", log_ids, 5, **scratch.options
    )

    assert set(kinds(scratch.violations(outcomes))) == {"time runs backwards"}


@pytest.mark.parametrize("store", ["postgresql", "portable", "mixed"])
@pytest.mark.fence
def test_times_in_a_log_do_not_run_backwards_with_the_clock(crew, scratch, store):
    scratch.make_the_clock_jump()
    log_ids = scratch.new_logs(2)

    outcomes = crew.race(4, jobs.append_anywhere, store, log_ids, 5, **scratch.options)

    assert scratch.violations(outcomes) == []


@pytest.mark.fence
def test_indexes_that_do_not_roll_back_are_found(crew, scratch):
    log_ids = scratch.new_logs(1)
    with scratch.cursor() as cursor:
        cursor.execute("CREATE SEQUENCE race_index MINVALUE 1")

    outcomes = crew.race(
        4,
        jobs.append_in_transactions,
        BROKEN + "IndexFromASequence",
        log_ids,
        5,
        "",
        **scratch.options,
    )

    assert kinds(scratch.violations(outcomes))["hole"] > 0


def test_a_replay_of_other_events_is_found(crew, violations, new_logs):
    log_ids = new_logs(2, version=3)

    outcomes = crew.race(
        8, jobs.append_with_one_key, BROKEN + "AnyEventsAreAReplay", log_ids, "any", "different"
    )

    assert kinds(violations(outcomes)) == {"lost": 2 * 7}


def test_a_store_that_forgets_keys_is_found(crew, violations, new_logs, callers):
    log_ids = new_logs(2, version=3)

    outcomes = crew.race(
        callers, jobs.append_with_one_key, BROKEN + "ForgetsKeys", log_ids, "any", "same"
    )

    assert kinds(violations(outcomes))["doubled"] > 0


GROUPED = "tests.stores.grouped."


@pytest.mark.fence
def test_joined_appends_that_do_not_compare_versions_are_found(crew, violations, new_logs, writers):
    (log_id,) = new_logs(1)

    outcomes = crew.race(
        writers, jobs.append_at_one_version, GROUPED + "NoVersionComparison", log_id, 5, False
    )

    assert kinds(violations(outcomes))["expectation ignored"] > 0


@pytest.mark.one_table
@pytest.mark.fence
def test_joined_appends_that_take_no_lock_are_found(crew, scratch, writers):
    scratch.drop_unique_constraints("eventlogs_event")
    (log_id,) = scratch.new_logs(1)

    outcomes = crew.race(
        writers,
        jobs.append_at_one_version,
        GROUPED + "NoLock",
        log_id,
        5,
        False,
        **scratch.options,
    )

    found = kinds(scratch.violations(outcomes))
    assert found["doubled index"] > 0


@pytest.mark.fence
def test_joined_appends_that_need_no_key_are_found(crew, violations, new_logs, callers):
    log_ids = new_logs(5, version=3)

    outcomes = crew.race(
        callers, jobs.append_with_one_key, GROUPED + "KeyNotNeeded", log_ids, "any", "same"
    )

    assert kinds(violations(outcomes))["doubled"] > 0


@pytest.mark.fence
def test_joined_creates_that_leave_a_key_behind_are_found(crew, violations, writers):
    manager = races("group")
    log_ids = [manager.new_id() for _ in range(20)]

    outcomes = crew.race(
        writers, jobs.create_one_log, GROUPED + "KeyLeftBehind", log_ids, True, False
    )

    assert kinds(violations(outcomes))["orphan key"] > 0


@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        ("TimeRunsBackwards", "time runs backwards"),
        ("WithoutOrder", "positions run backwards"),
    ],
)
@pytest.mark.fence
def test_joined_appends_out_of_order_are_found(crew, violations, new_logs, variant, kind):
    (log_id,) = new_logs(1)

    outcomes = crew.race(2, jobs.append_at_one_version, GROUPED + variant, log_id, 14, True)

    assert kinds(violations(outcomes))[kind] > 0
