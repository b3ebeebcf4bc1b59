"""``eventlogs erase``: what it lists, refuses, erases and says."""

from __future__ import annotations

import pytest
from django.core.management import CommandError
from django.db import connection, transaction

from eventlogs import LogErased
from eventlogs.exceptions import Unreachable
from eventlogs.management.subcommands import grants
from eventlogs.models import ErasedLog, Event
from tests.accounts import Account, Deposited, Opened
from tests.management.conftest import ACCOUNTS

pytestmark = pytest.mark.django_db(transaction=True)

ROLE = "eventlogs_eraser"


@pytest.fixture
def log():
    return ACCOUNTS.create(Opened("ada"), Deposited(5), idempotency_key="k").log_id


def test_a_log_is_erased_and_a_tombstone_is_shown(run_json, log):
    done = run_json("erase", log, "--reason", "order 7", "--by", "grace", "--yes")

    stone = ErasedLog.objects.get()
    assert done["log_id"] == str(log)
    assert (done["events"], done["is_new"]) == (2, True)
    assert (done["erased_by"], done["reason"]) == ("grace", "order 7")
    assert done["digest"] == bytes(stone.digest).hex()
    assert done["to_rebuild"] == []
    with pytest.raises(LogErased):
        ACCOUNTS.reduce(log)


def test_running_it_again_finishes_it_and_says_who_was_first(run, log):
    text = run("erase", log, "--reason", "order 7", "--by", "grace", "--yes")
    assert f"{log} was erased, with 2 events." in text
    text = run("erase", log, "--reason", "again", "--by", "hal", "--yes")
    assert "was erased before" in text
    assert "by grace" in text
    assert ErasedLog.objects.get().reason == "order 7"


def test_a_dry_run_lists_what_would_go(run, run_json, log):
    assert run_json("erase", log, "--dry-run") == {
        "log_id": str(log),
        "dry_run": True,
        "events": 2,
        "idempotency_keys": 1,
        "unique_values": 0,
        "subjects": 0,
        "rows": [],
        "to_rebuild": [],
    }
    text = run("erase", log, "--dry-run")
    assert "- 2 events" in text
    assert "- 1 idempotency key" in text
    assert Event.objects.count() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "grace", "--yes"], "--reason TEXT"),
        (["--by", "grace", "--reason", " ", "--yes"], "--reason TEXT"),
        (["--by", "x" * 256, "--reason", "order 7", "--yes"], "--by NAME"),
        (["--by", "grace", "--reason", "order 7"], "add --yes"),
    ],
)
def test_nothing_is_erased_without_reason_name_and_confirmation(run, log, options, message):
    with pytest.raises(CommandError, match=message) as caught:
        run("erase", log, *options)
    assert caught.value.returncode == 2
    assert Event.objects.count() == 2


def test_a_log_that_never_existed_is_a_mistake(run):
    log = ACCOUNTS.new_id()
    for options in (["--dry-run"], ["--reason", "order 7", "--by", "grace", "--yes"]):
        with pytest.raises(CommandError, match="does not exist") as caught:
            run("erase", log, *options)
        assert caught.value.returncode == 2


def test_a_dry_run_of_an_erased_log_says_how_to_remove_copies(run, log):
    run("erase", log, "--reason", "order 7", "--by", "grace", "--yes")
    with pytest.raises(CommandError, match=f"eventlogs erase {log} --reason … --yes"):
        run("erase", log, "--dry-run")


def test_other_commands_name_the_erasure(run, log):
    run("erase", log, "--reason", "order 7", "--by", "grace", "--yes")
    with pytest.raises(CommandError, match="was erased at"):
        run("show", log)
    assert "No findings" in run("verify")


def test_an_error_after_the_erasure_says_that_the_log_is_erased(run, log, monkeypatch):
    def unreachable(log, using):
        raise Unreachable(alias="default")

    monkeypatch.setattr("eventlogs.operations.erasure.forget_copies", unreachable)
    with pytest.raises(CommandError, match="The log itself is erased") as caught:
        run("erase", log, "--reason", "order 7", "--by", "grace", "--yes")
    assert caught.value.returncode == 2
    monkeypatch.undo()
    assert "was erased before" in run("erase", log, "--reason", "x", "--by", "hal", "--yes")


def test_rows_that_several_logs_share_are_a_finding(run, log, monkeypatch):
    monkeypatch.setattr(
        "eventlogs.operations.erasure.forget_copies",
        lambda log, using: type("Forgotten", (), {"rows": (), "entries": 0, "to_rebuild": ("x",)}),
    )
    with pytest.raises(CommandError, match="eventlogs rebuild x --restart") as caught:
        run("erase", log, "--reason", "order 7", "--by", "grace", "--yes")
    assert caught.value.returncode == 1


@pytest.mark.postgresql
def test_a_role_with_the_printed_grants_cannot_erase_and_learns_who_can(run, log):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {ROLE}")
        statements, _ = grants.grants("default", ROLE)
        for each in statements:
            cursor.execute(each)
        cursor.execute(f"SET LOCAL ROLE {ROLE}")
        with pytest.raises(CommandError, match=f"role {ROLE} does not own") as caught:
            run("erase", log, "--dry-run")
        cursor.execute("SELECT count(*) FROM eventlogs_erasedlog")
        assert cursor.fetchone() == (0,)
        cursor.execute("RESET ROLE")
        transaction.set_rollback(True)
    assert "runs migrate" in str(caught.value)
    assert Account.logs.reduce(log).version == 2
