"""``eventlogs archive``: what it counts, moves, checks, brings back, refuses and says."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import CommandError
from django.db import connection, transaction

from eventlogs import CannotErase
from eventlogs.archives import Retention
from eventlogs.management.subcommands import grants
from eventlogs.models import (
    ArchivedLog,
    ArchiveFile,
    Checkpoint,
    Event,
    ParkedEvent,
    ProjectionState,
)
from eventlogs.operations import archiving
from tests.accounts import Account, Deposited, Noted, Opened
from tests.management.conftest import ACCOUNTS
from tests.operations.archiving.conftest import use

pytestmark = pytest.mark.django_db(transaction=True)

ROLE = "eventlogs_archivist"


@pytest.fixture(autouse=True)
def archives(settings, tmp_path):
    use(settings, tmp_path)
    return tmp_path


@pytest.fixture
def closed():
    """A closed account; another one is open."""
    ACCOUNTS.create(Opened("Mary"), Deposited(1))
    return ACCOUNTS.create(Opened("Ada"), Noted("x")).log_id


def test_closed_logs_are_counted_moved_checked_and_brought_back(run, run_json, closed):
    assert run("archive", "--dry-run") == "account: 1 log, with 2 events.\n"

    text = run("archive", "--by", "grace")
    row = ArchivedLog.objects.select_related("archive").get()
    size = f"{row.archive.size:,}"
    assert text == f"1 log was archived, with 2 events, in 1 file of {size} bytes.\n"
    assert (row.log_id, row.archived_by) == (closed, "grace")

    assert run("archive", "--check") == (
        "1 archive was read, with 2 events. All of them are what was written.\n"
    )
    assert run("archive", "--restore", str(closed)) == f"{closed} is back, with 2 events.\n"
    assert run("archive", "--check") == (
        "0 archives were read, with 0 events. All of them are what was written.\n"
    )
    assert Event.objects.count() == 4


def test_an_archive_that_is_lost_keeps_no_other_log_from_being_archived(
    run, run_json, closed, archives
):
    run("archive")
    lost = ArchivedLog.objects.select_related("archive").get().archive.name
    other = ACCOUNTS.create(Opened("Grace")).log_id
    ArchiveFile.objects.update(logs=2)  # as if another one was erased
    (archives / lost).unlink()
    expected = (
        f"The older archive {lost} is still to be written anew, or deleted: the file is not in the "
        f"storage. Restore it from a backup, or set EVENTLOGS['ARCHIVE_STORAGE'] to the storage "
        f"that has it. Then archive again."
    )

    with pytest.raises(CommandError) as caught:
        run("archive")

    assert (str(caught.value), caught.value.returncode) == (expected, 1)
    assert {each.log_id for each in ArchivedLog.objects.all()} == {closed, other}


def test_json_for_programs(run_json, closed):
    assert run_json("archive", "--dry-run") == {
        "dry_run": True,
        "rules": [{"log_type": "account", "logs": 1, "events": 2}],
    }

    done = run_json("archive")
    file = ArchivedLog.objects.select_related("archive").get().archive
    assert done == {
        "database": "default",
        "logs": 1,
        "events": 2,
        "files": [file.name],
        "bytes": file.size,
        "waiting": 0,
    }
    assert run_json("archive", "--check") == {
        "name": file.name,
        "logs": 1,
        "events": 2,
        "is_signed": False,
        "problem": "",
    }
    assert run_json("archive", "--restore", str(closed)) == {"log_id": str(closed), "events": 2}


def test_a_damaged_file_is_named(run, archives, closed):
    run("archive")
    [file] = archives.rglob("*.gz")
    file.write_bytes(file.read_bytes() + b"x")

    with pytest.raises(CommandError) as caught:
        run("archive", "--check")

    assert caught.value.returncode == 1
    assert str(caught.value) == (
        "1 archive was read, with 2 events. 1 archive cannot be relied on: restore the files from "
        "a backup, then run manage.py eventlogs archive --check again."
    )


def test_logs_that_a_projection_has_still_to_read_stay(run, run_json, capsys, closed):
    ProjectionState.objects.create(name="slow", version=1, mode="async", partitions=1)
    Checkpoint.objects.create(projection="slow", partition=0, partitions=1, position=1)

    assert run_json("archive")["waiting"] == 1
    run("archive")

    assert "1 closed log stayed: the projection slow is at position 1." in capsys.readouterr().err
    assert not ArchivedLog.objects.exists()


def test_logs_that_a_projection_holds_stay(run_json, closed):
    now = Event.objects.values_list("recorded_at", flat=True)[0]
    ParkedEvent.objects.create(
        projection="slow", log_id=closed, index=0, position=1, first_failed_at=now, failed_at=now
    )

    assert run_json("archive")["logs"] == 0


def test_a_log_that_cannot_be_judged_stays_and_is_named(run, settings, closed):
    def is_closed(account: Account) -> bool:
        return 1 // account.balance > 1

    rule = Retention("account", timedelta(microseconds=1), when=is_closed)
    settings.EVENTLOGS = {**settings.EVENTLOGS, "RETENTION": [rule]}

    with pytest.raises(CommandError) as caught:
        run("archive")

    assert caught.value.returncode == 1
    assert str(caught.value) == (
        "1 log could not be judged: the events cannot be folded, or the rule raises an error. "
        "Correct the code, then archive again."
    )
    assert not ArchivedLog.objects.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"RETENTION": ()},
            "EVENTLOGS['RETENTION'] has no rule, so no log is closed. docs/retention.md shows one.",
        ),
        (
            {"RETENTION": [Retention("lost", timedelta(1), when=bool)]},
            "A Retention has when= for 'lost', and no aggregate class has this log type. Correct "
            "the log type, or import the aggregate's module in models.py.",
        ),
        (
            {"RETENTION": ["tests.no_such_module.rule"]},
            "EVENTLOGS['RETENTION'] names 'tests.no_such_module.rule', which cannot be imported: "
            "No module named 'tests.no_such_module'. Give the dotted path to a Retention.",
        ),
        (
            {"ARCHIVE_STORAGE": None},
            "The archives cannot be used: EVENTLOGS['ARCHIVE_STORAGE'] is not set. Set it to an "
            "alias in STORAGES. Then do it again: nothing was changed.",
        ),
        (
            {"ARCHIVE_STORAGE": "nowhere"},
            "The archives cannot be used: EVENTLOGS['ARCHIVE_STORAGE'] is 'nowhere', which is no "
            "usable storage. Correct it, or add it to STORAGES. Then do it again: nothing was "
            "changed.",
        ),
    ],
)
def test_settings_that_are_missing_or_wrong(run, settings, closed, changed, message):
    settings.EVENTLOGS = {**settings.EVENTLOGS, **changed}

    with pytest.raises(CommandError) as caught:
        run("archive")

    assert (str(caught.value), caught.value.returncode) == (message, 2)
    assert Event.objects.count() == 4


def test_a_log_in_no_archive_is_a_mistake(run, closed):
    with pytest.raises(CommandError, match="is in no archive of this database") as caught:
        run("archive", "--restore", str(closed))
    assert caught.value.returncode == 2


@pytest.mark.postgresql
def test_a_role_that_does_not_own_the_tables_moves_nothing(closed):
    with connection.cursor() as cursor:
        cursor.execute(f"DROP ROLE IF EXISTS {ROLE}")
        cursor.execute(f"CREATE ROLE {ROLE}")
        for statement in grants.grants("default", ROLE)[0]:
            cursor.execute(statement)
        cursor.execute("SELECT current_user")
        [owner] = cursor.fetchone()
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SET SESSION AUTHORIZATION {ROLE}")
        for move in (
            lambda: archiving.archive(by="eve"),
            lambda: archiving.restore(closed),
        ):
            with pytest.raises(CannotErase) as caught:
                move()
            assert str(caught.value) == (
                f"No event was moved: the role {ROLE} does not own the table of events in "
                f"'default'. Run this with a database alias or settings that connect as {owner}, "
                f"the role that runs migrate."
            )
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET SESSION AUTHORIZATION")
            with transaction.atomic():
                cursor.execute(f"DROP OWNED BY {ROLE}")
                cursor.execute(f"DROP ROLE {ROLE}")
    assert Event.objects.count() == 4
