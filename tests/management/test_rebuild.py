"""``eventlogs rebuild``: the rows of read models are rebuilt."""

from __future__ import annotations

import io
import time

import pytest
from django.core.management import CommandError
from django.db import connections

from eventlogs.management.terminal import Lines, Progress
from eventlogs.models import ParkedEvent, ProjectionAction, ProjectionState
from eventlogs.projections import rebuild
from eventlogs.projections.base import projections
from example_project.payments.events import Captured, Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.projections.readmodels import Letters

pytestmark = [pytest.mark.feed, pytest.mark.django_db(transaction=True)]  # a rebuild commits


@pytest.fixture
def state(db):
    """A payment, with a row that is wrong."""
    state = Payment.logs.create(Requested(amount=5), Captured(amount=3))
    PaymentSummaries.catch_up()
    PaymentSummary.objects.update(captured=99)
    return state


def captured() -> int:
    return PaymentSummary.objects.get().captured


def test_a_read_model_is_rebuilt(run, run_json, state):
    assert "payment-summary: rebuilt from 2 events." in run("rebuild", "payment-summary")
    assert captured() == 3
    assert run_json("rebuild", "payment-summary", "--restart") == {
        "projection": "payment-summary",
        "applied": 2,
        "applied_before": 0,
        "waiting": 0,
    }


def test_the_row_of_one_log_is_rebuilt(run, state):
    run("rebuild", "payment-summary", "--log", state.log_id)

    assert captured() == 3


def test_read_models_that_are_due_are_rebuilt(run, state):
    assert "No rebuild is due." in run("rebuild", "--due")
    ProjectionState.objects.filter(name="payment-summary").update(version=0)

    assert "payment-summary: rebuilt from" in run("rebuild", "--due")
    assert captured() == 3
    assert not PaymentSummaries.is_rebuild_due()


def test_an_event_that_cannot_be_applied_ends_the_rebuild(run, state, monkeypatch):
    def fail(*_):
        raise ValueError("4111-1111")

    monkeypatch.setattr(PaymentSummaries, "captured", fail)
    with pytest.raises(CommandError, match="could not apply the event at position") as caught:
        run("rebuild", "payment-summary")
    assert "4111" not in str(caught.value)
    assert captured() == 99  # the old row stays

    assert "1 event could not be applied" in run("rebuild", "payment-summary", "--park")
    waiting = ParkedEvent.objects.get()
    assert (waiting.log_id, waiting.index) == (state.log_id, 1)


@pytest.mark.fence
def test_events_of_an_interrupted_run_count_as_progress_but_not_for_the_speed(
    run, state, monkeypatch
):
    for _ in range(4):
        Payment.logs.create(Requested(amount=5), Captured(amount=3))
    monkeypatch.setattr(PaymentSummaries, "batch_size", 2)
    interrupted = rebuild.rebuild_steps(PaymentSummaries)
    next(interrupted)
    interrupted.close()
    told = []
    monkeypatch.setattr(Progress, "resume", lambda _, done: told.append(("resume", done)))
    monkeypatch.setattr(Progress, "advance", lambda _, count=1: told.append(("advance", count)))

    shown = run("rebuild", "payment-summary")

    assert "rebuilt from 10 events, 8 of them in this run, which resumed the rebuild." in shown
    assert told[0] == ("resume", state.position)
    assert sum(count for what, count in told if what == "advance") < told[0][1] + 9


def test_the_remaining_time_is_estimated_from_this_run_only():
    stream = io.StringIO()
    lines = Lines(stream, "Rebuilding x", 1_000_000, "positions")
    lines.resume(900_000)
    lines._begun, lines._next = time.monotonic() - 100, 0.0
    lines.advance(100)

    assert "900,100 of 1,000,000 positions, about 99,9" in stream.getvalue()


def test_the_user_of_a_rebuild_is_recorded(run, state, monkeypatch):
    monkeypatch.setenv("LOGNAME", "grace")
    run("rebuild", "payment-summary")

    assert ProjectionAction.objects.get().by == "grace"


def test_mistakes_of_the_user_are_command_errors(run, db, monkeypatch):
    with pytest.raises(CommandError, match="Name the read models to rebuild"):
        run("rebuild")
    with pytest.raises(CommandError, match="There is no projection 'x'"):
        run("rebuild", "x")
    with pytest.raises(CommandError, match="does not exist"):
        run("rebuild", "payment-summary", "--log", Payment.logs.new_id())
    for option in ("--restart", "--park"):
        with pytest.raises(CommandError, match="leave them out"):
            run("rebuild", "payment-summary", "--log", Payment.logs.new_id(), option)
    for alias in ("unknown", "default"):
        with pytest.raises(CommandError, match=f"--replica {alias}: name an alias of DATABASES"):
            run("rebuild", "payment-summary", "--replica", alias)
    monkeypatch.setitem(connections.databases, "replica", connections.databases["default"])
    monkeypatch.setattr(PaymentSummaries, "mode", "inline")
    with pytest.raises(CommandError, match="payment-summary is inline"):
        run("rebuild", "payment-summary", "--replica", "replica")
    monkeypatch.setitem(projections, "letters", Letters)
    with pytest.raises(CommandError, match="is a reactor"):
        run("rebuild", "letters")
