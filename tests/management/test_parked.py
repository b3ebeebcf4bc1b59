"""``eventlogs parked``: held events, and actions on them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from django.core.management import CommandError

from eventlogs import LogId
from eventlogs.models import ParkedEvent, ProjectionAction
from eventlogs.projections import actions
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.parked import parked_payment

pytestmark = pytest.mark.feed


@pytest.fixture
def state(db, monkeypatch):
    """A payment whose second event is parked, with a third one behind it."""
    return parked_payment(monkeypatch, "4111-1111")


@pytest.mark.fence
def test_parked_events_are_shown_without_data(run, state):
    shown = run("parked")

    for part in ("payment-summary", str(state.log_id), "payment.captured", "parked", "ValueError"):
        assert part in shown
    assert "4111" not in shown
    assert "4111" in run("parked", "--details")
    [line] = run("parked", "--json").splitlines()
    assert json.loads(line)["position"] == state.position - 1


def test_without_held_events_the_command_says_so(run, db):
    assert "No event waits." in run("parked")


def test_a_bug_is_shown_first_and_then_the_first_of_its_events(run, db):
    hold(60)

    shown = run("parked").splitlines()

    assert shown[:4] == [
        "60 parked: ZeroDivisionError in captured()",
        "  payment-summary, payment.captured version 1; first failed 2026-11-23 12:00:00 UTC, "
        "last 2026-11-23 12:00:00 UTC",
        "Fix the cause, then retry the events:",
        "  manage.py eventlogs parked payment-summary --retry-all",
    ]
    assert sum("payment_" in line for line in shown) == 50
    assert shown[-1] == "50 of 60 events are shown. --limit N or --all shows more."


def test_the_number_of_events_shown_can_be_limited(run, db):
    hold(60)

    assert run("parked", "--limit", 2).count("payment_") == 2
    assert run("parked", "--limit", 0).count("payment_") == 0
    assert run("parked", "--all").count("payment_") == 60
    assert "are shown" not in run("parked", "--all")
    assert len(run("parked", "--json").splitlines()) == 60
    assert len(run("parked", "--json", "--limit", 2).splitlines()) == 2


def hold(count):
    at = datetime(2026, 11, 23, 12, tzinfo=UTC)
    ParkedEvent.objects.bulk_create(
        ParkedEvent(
            projection="payment-summary",
            log_id=LogId.new("payment"),
            index=1,
            position=2,
            type="payment.captured",
            attempts=5,
            error="ZeroDivisionError",
            handler="captured",
            first_failed_at=at,
            failed_at=at,
        )
        for _ in range(count)
    )


def test_an_event_is_retried(run, state):
    assert "1 event will be retried" in run("parked", "payment-summary", "--retry", state.log_id)
    PaymentSummaries.catch_up()

    row = PaymentSummary.objects.get()
    assert (row.captured, row.requested) == (3, 7)
    with pytest.raises(CommandError, match="No event of"):
        run("parked", "--retry", state.log_id)


def test_all_are_retried(run_json, state):
    assert run_json("parked", "--retry-all") == {"retried": 1}


def test_skipping_an_event_requires_yes_and_one_projection(run, state):
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


def test_the_history_shows_actions_and_users_newest_first(
    run, run_json, transactional_db, state, monkeypatch
):
    assert "The history is empty." in run("parked", "--history")
    monkeypatch.setenv("LOGNAME", "grace")
    run("parked", "payment-summary", "--retry-all")
    run("parked", "payment-summary", "--skip", state.log_id, "--yes")
    run("rebuild", "payment-summary")

    shown = run("parked", "--history").splitlines()

    assert [line.split()[3:5] for line in shown] == [["grace", "payment-summary"]] * 3
    for line, words in zip(shown, ("rebuilt", "skipped", "retried"), strict=True):
        assert words in line
    assert f"{state.log_id}:1" in shown[1]
    assert "UTC" in shown[0]
    found = json.loads(run("parked", "payment-summary", "--history", "--json").splitlines()[1])
    assert (found["action"], found["by"], found["index"]) == ("skipped", "grace", 1)
    assert found["at"].endswith("Z")
    assert "4111" not in run("parked", "--history", "--json")


def test_the_history_can_be_limited_and_includes_removed_projections(run, db):
    for name in ("gone", "gone", "payment-summary"):
        actions.add(name, ProjectionAction.RETRIED, using="default", count=1)

    assert "The newest 1 are shown." in run("parked", "gone", "--history", "--limit", "1")
    assert len(run("parked", "gone", "--history").splitlines()) == 2
    with pytest.raises(CommandError, match="There is no projection 'x'"):
        run("parked", "x", "--history")


def test_a_user_without_a_name_can_act(run, state, monkeypatch):
    def nobody():
        raise OSError("No username set in the environment")

    monkeypatch.setattr("getpass.getuser", nobody)
    run("parked", "payment-summary", "--retry-all")

    assert ProjectionAction.objects.get().by == ""
