"""Files that were replaced: kept for other histories, and gone where they have erased events."""

from __future__ import annotations

import io
import threading
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from eventlogs import LogManager
from eventlogs.archives import storage
from eventlogs.archives.reading import archived_log, exported_pages
from eventlogs.models import ArchiveFile
from eventlogs.operations import archiving, erasure
from eventlogs.operations.archiving import bringing_back
from eventlogs.operations.erasure import erase
from tests.accounts import Account
from tests.operations.archiving.test_running import filled

pytestmark = pytest.mark.django_db(transaction=True)

accounts = LogManager(Account)


def test_a_file_that_was_replaced_is_kept_for_databases_that_still_name_it(directory):
    closed, other, _ = filled()
    archiving.archive(by="grace")
    before = archived_log("default", other)
    assert before is not None
    [old] = directory.rglob("*.gz")

    archiving.restore(closed)

    # A database without that commit, e.g. a promoted replica, has this row still.
    events = [each for page in exported_pages(before, using="default") for each in page]
    assert [each.event.index for each in events] == [0, 1, 2]
    assert [each.problem for each in archiving.check()] == [""]

    was_replaced(timedelta(days=6))
    archiving.archive(by="grace", retention=[])
    assert old.exists()
    was_replaced(timedelta(days=8))
    archiving.archive(by="grace", retention=[])
    assert not old.exists()
    assert ArchiveFile.objects.count() == len(list(directory.rglob("*.gz"))) == 1
    assert accounts.version(other) == 3


def was_replaced(ago):
    """Let all files that are kept have been replaced so long ago."""
    kept = ArchiveFile.objects.filter(state=ArchiveFile.REPLACED)
    assert kept.update(replaced_at=timezone.now() - ago) == 1


class Missing(io.BytesIO):
    """A file of a storage that looks for it only when it is read."""

    def read(self, size=-1):
        raise FileNotFoundError


def test_the_new_file_is_found_also_if_the_storage_misses_the_old_one_when_it_is_read(
    directory, monkeypatch
):
    closed, other, _ = filled()
    archiving.archive(by="grace")
    before = archived_log("default", other)
    assert before is not None
    archiving.restore(closed)
    archiving.tidy(grace=timedelta())
    open_file = storage.open_file
    monkeypatch.setattr(
        storage,
        "open_file",
        lambda name: Missing() if name == before.archive.name else open_file(name),
    )

    pages = exported_pages(before, using="default")

    assert [each.event.index for page in pages for each in page] == [0, 1, 2]


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_file_that_was_replaced_goes_at_once_if_a_log_of_its_type_is_erased(
    directory, monkeypatch, is_killed
):
    closed, other, _ = filled()
    archiving.archive(by="grace")
    [old] = directory.rglob("*.gz")
    archiving.restore(closed)
    assert old.exists()

    if is_killed:
        with monkeypatch.context() as patch:
            patch.setattr(erasure, "tidy", kill)
            with pytest.raises(SystemExit):
                erase(closed, reason="asked", by="grace")
        assert old.exists()
        archiving.archive(by="grace", retention=[])
    else:
        erase(closed, reason="asked", by="grace")

    assert not old.exists()
    assert accounts.version(other) == 3


def kill(**options):
    """Stand for a process that is killed."""
    raise SystemExit


def test_a_log_that_was_brought_back_and_erased_before_its_archive_is_written_anew(
    directory, monkeypatch
):
    closed, other, _ = filled()
    archiving.archive(by="grace")
    [old] = directory.rglob("*.gz")
    with monkeypatch.context() as patch:
        patch.setattr(bringing_back, "tidy", kill)
        with pytest.raises(SystemExit):
            archiving.restore(closed)
    erase(closed, reason="asked", by="grace")

    assert not old.exists()
    assert [each.logs for each in archiving.check()] == [1]
    assert accounts.version(other) == 3


@pytest.mark.parametrize("is_killed", [False, True])
def test_files_with_events_that_were_redacted_go_at_once(directory, monkeypatch, is_killed):
    closed, other, _ = filled()
    archiving.archive(by="grace")
    [old] = directory.rglob("*.gz")
    with monkeypatch.context() as patch:
        if is_killed:
            patch.setattr(bringing_back, "tidy", kill)
            with pytest.raises(SystemExit):
                archiving.restore(closed)
        else:
            archiving.restore(closed)
    assert old.exists()

    erasure.forget_copies(other)  # whichever it is: no row says which logs a replaced file has

    assert not old.exists()
    assert accounts.version(other) == 3


@pytest.mark.locks
def test_a_reader_with_an_old_snapshot_reads_the_file_that_was_replaced(directory):
    closed, other, _ = filled()
    archiving.archive(by="grace")

    level = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":  # of the next transaction
            cursor.execute(level)
    with transaction.atomic():
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute(level)
        assert accounts.version(other) == 3  # the snapshot begins

        def restore():
            archiving.restore(closed)
            connection.close()

        thread = threading.Thread(target=restore)
        thread.start()
        thread.join(30)

        assert [record.index for record in accounts.load(other)] == [0, 1, 2]
        assert [record.index for record in accounts.load(closed)] == [0, 1]
