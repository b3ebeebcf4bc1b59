"""``eventlogs rebuild``: rows made anew."""

from __future__ import annotations

import pytest
from django.core.management import CommandError

from eventlogs.models import ParkedEvent, ProjectionState
from eventlogs.projections.declarations import projections
from example_project.payments.events import Captured, Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.projections.readmodels import Letters

pytestmark = pytest.mark.feed


@pytest.fixture
def state(db):
    """A payment, with a row that is wrong."""
    state = Payment.logs.create(Requested(amount=5), Captured(amount=3))
    PaymentSummaries.catch_up()
    PaymentSummary.objects.update(captured=99)
    return state


def captured() -> int:
    return PaymentSummary.objects.get().captured


def test_a_read_model_is_made_anew(run, run_json, state):
    assert "payment-summary: made anew of 2 events." in run("rebuild", "payment-summary")
    assert captured() == 3
    assert run_json("rebuild", "payment-summary", "--restart") == {
        "projection": "payment-summary",
        "applied": 2,
        "waiting": 0,
    }


def test_the_row_of_one_log_is_made_anew(run, state):
    run("rebuild", "payment-summary", "--log", state.log_id)

    assert captured() == 3


def test_what_is_due_is_rebuilt(run, state):
    assert "No rebuild is due." in run("rebuild", "--due")
    ProjectionState.objects.filter(name="payment-summary").update(version=0)

    assert "payment-summary: made anew" in run("rebuild", "--due")
    assert captured() == 3
    assert not PaymentSummaries.is_rebuild_due()


def test_an_event_that_cannot_be_applied_ends_it(run, state, monkeypatch):
    def fail(*_):
        raise ValueError("4111-1111")

    monkeypatch.setattr(PaymentSummaries, "captured", fail)
    with pytest.raises(CommandError, match="could not apply the event at position") as caught:
        run("rebuild", "payment-summary")
    assert "4111" not in str(caught.value)
    assert captured() == 99  # the old row serves

    assert "1 events could not be applied" in run("rebuild", "payment-summary", "--park")
    waiting = ParkedEvent.objects.get()
    assert (waiting.log_id, waiting.index) == (state.log_id, 1)


def test_mistakes_are_said(run, db, monkeypatch):
    with pytest.raises(CommandError, match="Which one"):
        run("rebuild")
    with pytest.raises(CommandError, match="There is no projection 'x'"):
        run("rebuild", "x")
    with pytest.raises(CommandError, match="does not exist"):
        run("rebuild", "payment-summary", "--log", Payment.logs.new_id())
    monkeypatch.setitem(projections, "letters", Letters)
    with pytest.raises(CommandError, match="is a reactor"):
        run("rebuild", "letters")
