from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db.models import QuerySet

from eventlogs.events.codec import EncodedEvent
from eventlogs.management.subcommands import verify
from eventlogs.models import EventLog
from eventlogs.stores import AppendRequest, store_for
from example_project.payments.events import Captured, Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Opened


@pytest.fixture
def broken(account):
    """Two logs, the first of them with a wrong version."""
    Account.logs.create(Opened(owner="Bob"))
    QuerySet(EventLog).filter(pk=account.uuid).update(version=7)
    return account


def test_a_sound_database_has_no_findings(account, run, run_json):
    assert "3 events were checked. No findings." in run("verify")
    assert run_json("verify") == {"events": 3, "findings": 0, "checks": {}}


def test_findings_are_listed_and_make_the_command_fail(broken, run, capsys):
    with pytest.raises(CommandError, match=r"4 events .* findings: 1 of ") as caught:
        run("verify")

    assert caught.value.returncode == 1


def test_findings_are_lines_of_json(start, broken):
    program = start("verify", "--json")

    finding, summary = map(json.loads, program.ended(code=1).splitlines())
    assert (finding["check"], finding["subject"]) == ("versions", str(broken))
    assert summary == {"events": 4, "findings": 1, "checks": {"versions": 1}}


def test_many_findings_are_counted_and_some_shown(account, run, capsys, db):
    bad = [EncodedEvent("account.deposited", 1, '{"amount":"x"}')] * 20
    store_for("default").append(AppendRequest(account, bad, 3, None, "{}"))

    with pytest.raises(CommandError, match="20 of decoding"):
        run("verify", "--limit", 5)


def test_an_interrupted_verification_can_be_resumed(broken, run):
    with pytest.raises(CommandError):
        run("verify", "--log-type", "account")

    assert "1 event was checked" in run("verify", "--after", broken)
    assert "0 events were checked" in run("verify", "--log-type", "parcel")


def test_progress_is_reported_with_verbosity_2(account, run, monkeypatch, capsys):
    monkeypatch.setattr(verify, "TOLD_EVERY", 1)
    Account.logs.create(Opened(owner="Bob"))

    run("verify", "-v", 2)

    assert "--after" in capsys.readouterr().err


def test_decoding_can_be_switched_off(account, run):
    unknown = [EncodedEvent("account.teleported", 1, "{}")]
    store_for("default").append(AppendRequest(account, unknown, 3, None, "{}"))

    with pytest.raises(CommandError, match="1 of decoding"):
        run("verify")
    assert "No findings." in run("verify", "--no-decode")


# Read models


@pytest.fixture
def payments(transactional_db):
    """Three payments, of which one is held, and whose handler of captures fails."""
    states = [Payment.logs.create(Requested(amount=5)) for _ in range(3)]
    Payment.logs.append(states[1], Captured(amount=2))
    return [state.log_id for state in states]


@pytest.mark.feed
def test_held_events_are_counted_and_are_no_finding(payments, run, run_json, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(PaymentSummaries, "captured", fail)
        PaymentSummaries.catch_up()

    shown = run("verify", "--projections")
    figures = run_json("verify", "--projections")["projections"]

    assert "payment-summary: 3 logs were compared with their rows, 1 of them only up to" in shown
    assert "(manage.py eventlogs parked payment-summary)" in shown
    assert figures["payment-summary"] == {"logs": 3, "held": 1, "failed": 0, "differences": 0}


@pytest.mark.feed
def test_a_handler_that_raises_is_a_finding_and_the_other_rows_are_compared(
    payments, run, monkeypatch, capsys
):
    PaymentSummaries.catch_up()
    PaymentSummary.objects.filter(pk=payments[2]).update(requested=6)
    monkeypatch.setattr(PaymentSummaries, "captured", fail)
    out = StringIO()

    with pytest.raises(CommandError, match="2 of projections") as caught:
        call_command("eventlogs", "verify", "--projections", stdout=out)

    assert caught.value.returncode == 1
    assert f"{payments[1]}: its row in payment-summary is not compared: an event" in out.getvalue()
    assert "fails with ValueError" in out.getvalue()
    assert f"{payments[2]}: its row in payment-summary differs in requested" in out.getvalue()
    assert "payment-summary: 2 logs were compared with their rows; 1 could not be." in (
        out.getvalue()
    )
    assert "4111" not in out.getvalue()


@pytest.mark.feed
def test_findings_of_read_models_are_lines_of_json(payments, monkeypatch):
    PaymentSummaries.catch_up()
    PaymentSummary.objects.filter(pk=payments[2]).update(requested=6)
    monkeypatch.setattr(PaymentSummaries, "captured", fail)
    out = StringIO()

    with pytest.raises(CommandError):
        call_command("eventlogs", "verify", "--projections", "--json", stdout=out)

    *found, summary = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {each["subject"] for each in found} == {str(payments[1]), str(payments[2])}
    assert summary["findings"] == 2
    figures = summary["projections"]["payment-summary"]
    assert figures == {"logs": 3, "held": 0, "failed": 1, "differences": 1}


@pytest.mark.feed
def test_read_models_of_some_logs_are_compared(payments, run):
    PaymentSummaries.catch_up()
    PaymentSummary.objects.update(requested=6)
    first, *_, last = sorted(payments)

    assert "payment-summary: 0 logs" in run("verify", "--projections", "--log-type", "account")
    assert "payment-summary: 0 logs" in run("verify", "--projections", "--after", last)
    with pytest.raises(CommandError, match="2 of projections"):
        run("verify", "--projections", "--after", first)


def fail(self, row, record):
    raise ValueError("4111-1111")
