"""``eventlogs parked``: what waits, and what to do about it."""

from __future__ import annotations

import json

import pytest
from django.core.management import CommandError

from eventlogs.models import ParkedEvent
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.parked import parked_payment

pytestmark = pytest.mark.feed


@pytest.fixture
def state(db, monkeypatch):
    """A payment whose second event is parked, with a third one behind it."""
    return parked_payment(monkeypatch, "4111-1111")


def test_what_is_parked_is_shown_without_data(run, state):
    shown = run("parked")

    for part in ("payment-summary", str(state.log_id), "payment.captured", "parked", "ValueError"):
        assert part in shown
    assert "4111" not in shown
    assert "4111" in run("parked", "--details")
    [line] = run("parked", "--json").splitlines()
    assert json.loads(line)["position"] == state.position - 1


def test_nothing_is_said_to_wait_where_nothing_does(run, db):
    assert "No event waits." in run("parked")


def test_an_event_is_retried(run, state):
    assert "1 events are tried again" in run("parked", "payment-summary", "--retry", state.log_id)
    PaymentSummaries.catch_up()

    row = PaymentSummary.objects.get()
    assert (row.captured, row.requested) == (3, 7)
    with pytest.raises(CommandError, match="No event of"):
        run("parked", "--retry", state.log_id)


def test_all_are_retried(run_json, state):
    assert run_json("parked", "--retry-all") == {"retried": 1}


def test_an_event_is_skipped_by_who_means_it(run, state):
    with pytest.raises(CommandError, match="Add --yes"):
        run("parked", "payment-summary", "--skip", state.log_id)
    with pytest.raises(CommandError, match="Name the one projection"):
        run("parked", "--skip", state.log_id, "--yes")

    run("parked", "payment-summary", "--skip", state.log_id, "--yes")
    PaymentSummaries.catch_up()

    row = PaymentSummary.objects.get()
    assert (row.captured, row.requested) == (0, 7)
    assert not ParkedEvent.objects.exists()
    with pytest.raises(CommandError, match="No event of"):
        run("parked", "payment-summary", "--skip", state.log_id, "--yes")
