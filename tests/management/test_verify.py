from __future__ import annotations

import json

import pytest
from django.core.management import CommandError
from django.db.models import QuerySet

from eventlogs.codec import EncodedEvent
from eventlogs.management.subcommands import verify
from eventlogs.models import EventLog
from eventlogs.stores import AppendRequest, store_for
from tests.accounts import Account, Opened
from tests.management.test_eventlogs import in_a_process


@pytest.fixture
def broken(account):
    """Two logs, the first of them with a wrong version."""
    Account.logs.create(Opened(owner="Bob"))
    QuerySet(EventLog).filter(pk=account.uuid).update(version=7)
    return account


def test_a_sound_database(account, run, run_json):
    assert "3 events were looked at. Nothing is wrong." in run("verify")
    assert run_json("verify") == {"events": 3, "findings": 0, "checks": {}}


def test_findings_are_listed_and_make_the_command_fail(broken, run, capsys):
    with pytest.raises(CommandError, match=r"4 events .* findings: 1 of ") as caught:
        run("verify")

    assert caught.value.returncode == 1


def test_findings_are_lines_of_json(broken, transactional_db):
    done = in_a_process("eventlogs", "verify", "--json")

    finding, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert (finding["check"], finding["subject"]) == ("versions", str(broken))
    assert summary == {"events": 4, "findings": 1, "checks": {"versions": 1}}


def test_many_findings_are_counted_and_some_shown(account, run, capsys, db):
    bad = [EncodedEvent("account.deposited", 1, '{"amount":"x"}')] * 20
    store_for("default").append(AppendRequest(account, bad, 3, None, "{}"))

    with pytest.raises(CommandError, match="20 of decoding"):
        run("verify", "--limit", 5)


def test_a_verification_is_taken_up_where_it_was_left(broken, run):
    with pytest.raises(CommandError):
        run("verify", "--log-type", "account")

    assert "1 events were looked at" in run("verify", "--after", broken)
    assert "0 events were looked at" in run("verify", "--log-type", "parcel")


def test_where_it_is_is_told_when_asked_for(account, run, monkeypatch, capsys):
    monkeypatch.setattr(verify, "TOLD_EVERY", 1)
    Account.logs.create(Opened(owner="Bob"))

    run("verify", "-v", 2)

    assert "--after" in capsys.readouterr().err


def test_events_need_not_be_decoded(account, run):
    unknown = [EncodedEvent("account.teleported", 1, "{}")]
    store_for("default").append(AppendRequest(account, unknown, 3, None, "{}"))

    with pytest.raises(CommandError, match="1 of decoding"):
        run("verify")
    assert "Nothing is wrong" in run("verify", "--no-decode")
