"""``eventlogs chain`` and ``eventlogs verify --chain``."""

from __future__ import annotations

import json
import re
import time
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import QuerySet

from eventlogs import LogId, LogManager
from eventlogs.models import Event, EventLog
from eventlogs.stores import store_for
from tests.accounts import Account, Deposited

TRIGGER = "eventlogs_event_refuse_change"
PROBLEM = "its digest does not fit: it, or what is before it, was changed"


@pytest.fixture
def accounts(transactional_db) -> LogManager[Account]:
    return LogManager(Account, store=store_for("default"))


@pytest.fixture
def log(accounts):
    return accounts.create(*[Deposited(amount=each) for each in range(5)])


def spoil() -> None:
    change(data={"amount": 1_000_000})


def change(**values: Any) -> None:
    """Change event 3 of the logs."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"ALTER TABLE eventlogs_event DISABLE TRIGGER {TRIGGER}")
        QuerySet(Event).filter(index=3).update(**values)
        if connection.vendor == "postgresql":
            cursor.execute(f"ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER {TRIGGER}")


def test_logs_are_chained_and_verified(log, run, run_json):
    assert "1 log was chained, with 5 events." in run("chain")
    assert run_json("chain") == {"database": "default", "logs": 0, "events": 0}

    assert "5 events were checked of 1 chained log. No findings." in run("verify", "--chain")


def test_damaged_logs_are_named_and_all_others_are_chained(accounts, log, run):
    accounts.create(Deposited(amount=1))
    change(index=9)
    out = StringIO()

    with pytest.raises(CommandError, match="1 log was chained, with 1 event") as caught:
        call_command("eventlogs", "chain", stdout=out)
    assert caught.value.returncode == 1
    assert f"{log.log_id} event 3: it is missing" in out.getvalue()

    out = StringIO()
    with pytest.raises(CommandError):
        call_command("eventlogs", "chain", "--json", stdout=out)
    assert json.loads(out.getvalue())["damaged"] == [
        {"log_id": str(log.log_id), "index": 3, "message": "it is missing"}
    ]


def test_logs_without_a_chain_are_counted(log, run):
    assert "of 0 chained logs and 1 log without a chain. No findings." in run("verify", "--chain")


def test_a_changed_event_is_named(log, run):
    run("chain")
    spoil()

    with pytest.raises(CommandError, match="with findings: 1 of chain") as caught:
        run("verify", "--chain")
    assert caught.value.returncode == 1


def test_findings_as_json(log, run):
    run("chain")
    spoil()
    out = StringIO()

    with pytest.raises(CommandError):
        call_command("eventlogs", "verify", "--chain", "--json", stdout=out)
    finding, summary = map(json.loads, out.getvalue().splitlines())
    assert finding == {
        "check": "chain",
        "subject": str(log.log_id),
        "message": PROBLEM,
        "index": 3,
    }
    assert summary == {
        "events": 5,
        "findings": 1,
        "checks": {"chain": 1},
        "chained": 1,
        "unchained": 0,
    }


@pytest.mark.parametrize("option", ["--no-decode", "--caches", "--projections"])
def test_chain_is_checked_alone(db, run, option):
    with pytest.raises(CommandError, match="leave the other options out") as caught:
        run("verify", "--chain", option)
    assert caught.value.returncode == 2


@pytest.fixture
def export(accounts, settings, run, tmp_path) -> Path:
    """The export of a chained log and of one that is not."""
    accounts.create(Deposited(amount=1))
    settings.EVENTLOGS = {"CHAIN": True}
    accounts.create(
        *[Deposited(amount=each) for each in range(4)],
        idempotency_key="clé\n",
        metadata={"z": 1.50, "a": "\x7fü\n", "bb": [1e-7, -0.0]},
    )
    settings.EVENTLOGS = {}
    path = tmp_path / "export.jsonl"
    run("export", path)
    return path


def heads(alias: str = "default") -> dict[UUID, bytes | None]:
    return {
        pk: None if head is None else bytes(head)
        for pk, head in EventLog.objects.using(alias).values_list("pk", "head")
    }


def test_an_import_keeps_chains(export, second_database, run):
    run("import", export, "--database", second_database)

    assert heads(second_database) == heads()
    assert {head is None for head in heads().values()} == {True, False}
    told = run("verify", "--chain", "--database", second_database)
    assert "5 events were checked of 1 chained log and 1 log without a chain" in told
    assert "No findings" in run("verify", "--chain")


def test_an_import_chains_where_the_setting_says_so(export, second_database, run, settings):
    settings.EVENTLOGS = {"CHAIN": True}
    run("import", export, "--database", second_database)

    assert None not in heads(second_database).values()
    assert "No findings" in run("verify", "--chain", "--database", second_database)


def test_a_changed_export_is_refused(export, second_database, run):
    text = re.sub(r'"amount": ?2\b', '"amount":2000000', export.read_text())
    export.write_text(text)

    with pytest.raises(CommandError, match="it does not fit the digest") as caught:
        run("import", export, "--database", second_database)
    assert caught.value.returncode
    assert None in heads(second_database).values() or not heads(second_database)


@pytest.mark.parametrize("digest", ["", "00", "x" * 64, "0" * 66])
def test_a_digest_that_is_none(export, second_database, run, digest):
    text = re.sub(r'"digest":"[0-9a-f]*"', f'"digest":"{digest}"', export.read_text())
    export.write_text(text)

    with pytest.raises(CommandError, match="its digest is invalid"):
        run("import", export, "--database", second_database)


def test_exports_without_digests_are_imported(export, second_database, run):
    export.write_text(re.sub(r',"digest":"[0-9a-f]*"', "", export.read_text()))
    run("import", export, "--database", second_database)

    assert set(heads(second_database).values()) == {None}


def test_an_export_of_the_end_alone_continues_a_chain(
    accounts, export, second_database, run, settings, tmp_path
):
    run("import", export, "--database", second_database)
    last = Event.objects.order_by("-position").values_list("position", flat=True)[0]
    chained = Event.objects.get(position=last).log_id
    accounts.append(LogId.stored("account", chained), Deposited(amount=9), expected_version=4)
    rest = tmp_path / "rest.jsonl"
    run("export", rest, "--after", last)

    run("import", rest, "--database", second_database)

    assert heads(second_database) == heads()


def test_a_run_that_is_killed_beside_appends_is_resumed(accounts, start, run):
    long = accounts.create(Deposited(amount=1))
    for _ in range(3):
        long = accounts.append(long, *[Deposited(amount=2)] * 2_000)
    for _ in range(20):
        accounts.create(Deposited(amount=3))
    program = start("chain")
    deadline = time.monotonic() + 60
    while not Event.objects.filter(digest__isnull=False).exists():
        assert time.monotonic() < deadline
        if connection.vendor != "sqlite":  # one writer at a time, which waits up to 20 s
            long = accounts.append(long, Deposited(amount=4))
    program.kill()
    program.wait()

    long = accounts.append(long, Deposited(amount=5))
    run("chain")

    assert "No findings" in run("verify", "--chain")
    assert None not in heads().values()
    assert not Event.objects.filter(digest__isnull=True).exists()
