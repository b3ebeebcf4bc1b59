"""Findings about held events, workers, releases and rebuilds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from eventlogs import health
from eventlogs.models import Checkpoint, ProjectionState, ProjectionWorker
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Deposited, Opened
from tests.operations.health.wrong import (
    DEAD,
    NAME,
    NOON,
    acts,
    declare,
    hold,
    of,
    one,
    pay,
    work,
)
from tests.parked import parked_payment
from tests.processes import Processes
from tests.projections import conftest
from tests.projections.readmodels import InlinedBalances, declaring, fail_on
from tests.projections.release import Release

tables, inlined = conftest.tables, conftest.inlined


# Held events


def test_one_bug_in_many_logs_is_one_finding(db):
    hold(1_804)

    found = health()

    finding = one(found, "parked")
    assert "1,804 parked: ZeroDivisionError in captured()" in finding.message
    assert finding.since == NOON
    assert "fix captured()" in finding.action
    assert finding.command == f"manage.py eventlogs parked {NAME} --retry-all"
    assert acts(found) == ["parked"]


@pytest.mark.feed
def test_the_text_of_an_error_is_not_shown(db, monkeypatch):
    parked_payment(monkeypatch, "4111-1111")

    found = health()

    assert one(found, "parked").figures["logs"] == 1
    assert "4111" not in json.dumps(found.as_json())


def test_automatic_retries_are_for_information(db):
    hold(2, retry_at=timezone.now() + timedelta(minutes=1), attempts=1)

    found = health()

    assert found.is_healthy
    assert one(found, "retrying").figures["logs"] == 2


@pytest.mark.feed
def test_due_retries_without_a_worker_are_overdue(db):
    hold(2, retry_at=NOON)

    finding = one(health(), "no-worker")

    assert finding.must_act
    assert finding.figures["overdue"] == 2
    assert "2 events should have been tried again" in finding.message
    assert finding.since == NOON


def test_events_held_by_an_undeclared_projection_are_for_information(db):
    hold(projection="gone")

    found = health()

    assert found.is_healthy
    assert one(found, "undeclared").subject == "gone"


# Workers


@pytest.mark.feed
def test_a_projection_with_lag_and_without_a_worker_needs_action(transactional_db):
    pay()

    assert not one(health(), "no-worker").must_act  # for a moment
    finding = one(health(max_lag=0), "no-worker")
    assert (finding.must_act, finding.subject) == (True, NAME)
    assert "never run" in finding.message
    assert finding.command == f"manage.py eventlogs project {NAME}"

    runner = work()
    found = health(max_lag=0)
    runner.close()
    assert not of(found, "no-worker")


@pytest.mark.feed
def test_a_projection_without_any_logs_needs_no_worker(transactional_db, monkeypatch):
    monkeypatch.setattr("eventlogs.projections.lags.SPAN", 1)  # as if there were many events
    pay(3)

    found = health(max_lag=0)

    assert [each.subject for each in of(found, "no-worker")] == [NAME]  # and not fine-balance


@pytest.mark.feed
def test_a_slow_worker_and_a_missing_worker_are_different_findings(transactional_db):
    pay()
    declare("elsewhere:1:x")

    found = health(max_lag=0)

    assert not of(found, "no-worker")
    finding = one(found, "lag")
    assert (finding.must_act, finding.subject) == (True, NAME)
    assert finding.figures["events_behind"] >= 1


@pytest.mark.feed
def test_a_schedule_of_single_runs_is_no_missing_worker(transactional_db):
    PaymentSummaries.catch_up()
    pay()

    found = health()

    assert not of(found, "no-worker")
    assert one(health(max_lag=0), "no-worker").must_act


@pytest.mark.feed
def test_a_worker_that_has_died_is_reported_and_one_that_has_ended_is_not(transactional_db):
    runner = work()
    runner.close()
    assert not of(health(), "worker-died")

    declare(DEAD, age=30.0)
    declare("elsewhere:1:silent", age=200.0)
    declare("elsewhere:2:busy", age=30.0)
    declare("elsewhere:3:long-ago", age=86_400.0)
    declare("elsewhere:4:in-a-long-batch", age=200.0)
    Checkpoint.objects.filter(projection=NAME).update(
        owner="elsewhere:4:in-a-long-batch", leased_until=timezone.now() + timedelta(minutes=1)
    )

    found = health()
    assert [each.subject for each in of(found, "worker-died")] == ["elsewhere:1:silent", DEAD]
    assert "other workers have taken over" in of(found, "worker-died")[0].message

    Checkpoint.objects.update(owner="", leased_until=None)
    assert f"nobody runs {NAME}" in of(health(), "worker-died")[0].message


@pytest.mark.feed
def test_the_start_time_of_a_worker_is_kept(transactional_db):
    before = timezone.now() - timedelta(seconds=5)
    runner = work()
    [declared] = ProjectionWorker.objects.all()
    runner._declared.clear()  # as if its handlers had changed
    runner._next_beat = 0.0
    runner.round()
    [again] = ProjectionWorker.objects.all()
    runner.close()
    [ended] = ProjectionWorker.objects.all()

    assert before < declared.declared_at == again.declared_at
    assert (again.ended_at, ended.ended_at is None) == (None, False)


# Releases

OLD = """
import sys
from dataclasses import dataclass
from eventlogs import *
from eventlogs.projections.workers import Worker

@event("booking.booked")
@dataclass(frozen=True)
class Booked:
    seats: int

@dataclass
class Booking(Aggregate, log_type="booking", events=[Booked]):
    def apply(self, record): pass

@projection("letters")
class Letters(Reactor):
    log_types = ["booking"]

    @handles(Booked)
    def on_booked(self, record): pass

def findings(code, **limits):
    return [(each.level, each.message) for each in health(**limits).findings if each.code == code]
"""
REFUNDED = """
@event("booking.refunded")
@dataclass(frozen=True)
class Refunded:
    seats: int
"""
NEW = (
    OLD.replace("\n@dataclass\nclass Booking", f"{REFUNDED}\n@dataclass\nclass Booking")
    .replace("[Booked]", "[Booked, Refunded]")
    .replace("@handles(Booked)", "@handles(Booked, Refunded)")
)


@pytest.mark.feed
def test_a_worker_of_an_old_release_needs_action_if_events_wait_for_the_new_one(
    transactional_db, tmp_path
):
    with (
        Processes() as processes,
        Release(processes, tmp_path / "old", OLD) as old,
        Release(processes, tmp_path / "new", NEW) as new,
    ):
        old.do("exec('runner = Worker([\"letters\"]); runner.round()', globals())")
        [[level, message]] = new.do("findings('old-release')")
        assert (level, "nothing waits for it" in message) == ("info", True)

        new.do("Booking.logs.create(Booked(1), Refunded(1))")
        old.do("runner.round()")
        assert [level for level, _ in new.do("findings('awaiting-release')")] == ["info"]
        [[level, message]] = new.do("findings('old-release', max_deploy=0)")
        assert (level, "1 log wait" in message) == ("act", True)
        assert [level for level, _ in new.do("findings('awaiting-release', max_deploy=0)")] == [
            "act"
        ]
        # For the old release the type has no class, and the worker is of its own release.
        assert old.do("findings('old-release')") == []
        [[level, message]] = old.do("findings('unknown-type', max_deploy=0)")
        assert (level, "1 log held in letters" in message) == ("act", True)

        new.do("exec('runner = Worker([\"letters\"]); runner.round()', globals())")
        new.do("runner.round()")
        [[level, message]] = old.do("findings('old-release')")
        assert (level, "newer release" in message) == ("info", True)
        [[level, message]] = new.do("findings('old-release', max_deploy=0)")
        assert (level, "run beside" in message) == ("info", True)


# Rebuilds


@pytest.fixture
def state(transactional_db: None) -> Any:
    """The state of a projection that has run."""
    work().close()
    return ProjectionState.objects.filter(name=NAME)


@pytest.mark.feed
def test_a_rebuild_that_is_due_needs_action(state):
    state.update(version=0)

    finding = one(health(), "rebuild-due")

    assert (finding.must_act, finding.command) == (True, f"manage.py eventlogs rebuild {NAME}")


@pytest.mark.feed
def test_a_rebuild_that_failed_needs_action(state):
    state.update(rebuild_error="ValueError", rebuild_started_at=NOON)

    finding = one(health(), "rebuild-failed")

    assert (finding.must_act, finding.since) == (True, NOON)
    assert "ValueError" in finding.message


@pytest.mark.feed
def test_a_stopped_rebuild_needs_action_and_a_running_one_does_not(state):
    state.update(version=0, rebuild_version=1, rebuild_started_at=NOON)
    Checkpoint.objects.create(
        projection=NAME, is_rebuild=True, partition=0, partitions=1, owner=DEAD
    )
    found = health()
    assert acts(found) == ["rebuild-stopped"]

    Checkpoint.objects.filter(is_rebuild=True).update(
        owner="elsewhere:1:x", leased_until=timezone.now() + timedelta(minutes=1)
    )
    found = health()
    assert acts(found) == []
    assert one(found, "rebuilding").since == NOON


@pytest.mark.feed
def test_a_requested_rebuild_without_a_worker_needs_action(state):
    state.update(rebuild_requested_at=NOON)
    assert one(health(), "rebuild-waiting").must_act

    declare("elsewhere:1:x")
    assert not one(health(), "rebuild-waiting").must_act


@pytest.mark.feed
def test_rows_of_a_newer_version_say_that_this_process_is_of_an_old_release(state):
    state.update(version=2)

    finding = one(health(), "old-release")

    assert finding.must_act
    assert finding.command == f"manage.py eventlogs rebuild {NAME} --downgrade"


# Inline


@pytest.fixture
def inline(tables: None) -> Iterator[None]:
    """An inline projection is the only one that there is."""
    with declaring({"inlined-balances": InlinedBalances}):
        yield


def test_an_inline_projection_whose_rows_are_right_needs_no_worker(inline, inlined):
    Account.logs.create(Opened(owner="Ada"), Deposited(amount=1), Deposited(amount=1))

    found = health(max_lag=0)

    assert found.is_healthy
    assert found.projections["inlined-balances"]["events_behind"] == 0


@pytest.mark.fence
def test_events_that_were_appended_without_an_inline_projection_are_lag(inline):
    Account.logs.create(Opened(owner="Ada"), Deposited(amount=1), Deposited(amount=1))

    [finding] = [each for each in health(max_lag=0).findings if each.must_act]

    assert finding.figures["events_behind"] == 2
    if connection.vendor == "mysql":  # without a worker to apply it
        assert finding.command == "manage.py eventlogs rebuild inlined-balances"
    else:
        assert finding.code == "no-worker"


@pytest.mark.feed
def test_events_held_by_an_inline_projection_are_not_reported_as_lag_too(inline, monkeypatch):
    Account.logs.create(Opened(owner="Ada"), Deposited(amount=1), Deposited(amount=1))
    monkeypatch.setattr(InlinedBalances, "max_attempts", 1)
    fail_on(Deposited)
    InlinedBalances.catch_up()

    assert acts(health(max_lag=0)) == ["parked"]
