"""A process that archives is killed at each step: nothing is lost, and the next run ends it."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest

from eventlogs import LogManager
from eventlogs.archives import storage
from eventlogs.exceptions import ArchiveUnavailable
from eventlogs.models import ArchivedLog, ArchiveFile, Event, EventLog
from eventlogs.operations import archiving
from eventlogs.operations.archiving import files, running, tables
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.projections.crashes import after, before, killed_in

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("directory")]

accounts = LogManager(Account)


def closed():
    """Create closed accounts; return what can be read of them."""
    for number in range(3):
        accounts.create(Opened(f"owner {number}"), Deposited(number), Withdrawn(number))
    return read()


def read():
    """Return all events of all logs, wherever they are, and the states."""
    ids = sorted(
        [each.log_id for each in EventLog.objects.all()]
        + [each.log_id for each in ArchivedLog.objects.all()]
    )
    return [(list(accounts.stream(each)), accounts.reduce(each).aggregate) for each in ids]


STEPS = [
    pytest.param(lambda m: before(m, files, "Writer"), id="the file's row is committed"),
    pytest.param(lambda m: before(m, storage, "save"), id="the file is written"),
    pytest.param(lambda m: after(m, storage, "save"), id="the file is stored"),
    pytest.param(lambda m: after(m, storage, "save", call=2), id="the manifest is stored"),
    pytest.param(lambda m: after(m, files, "compare"), id="the file is compared"),
    pytest.param(lambda m: before(m, tables, "_row"), id="the events are deleted"),
    pytest.param(lambda m: before(m, tables, "complete"), id="the logs are marked"),
    pytest.param(lambda m: after(m, tables, "complete"), id="before the commit"),
    pytest.param(lambda m: after(m, tables, "take_out"), id="after the commit"),
    pytest.param(lambda m: before(m, running, "forget_cached"), id="before the caches"),
]


@pytest.mark.parametrize("step", STEPS)
def test_killed_while_archiving(monkeypatch, directory, step):
    there = closed()

    with monkeypatch.context() as dying:
        step(dying)
        assert killed_in(lambda: archiving.archive(by="grace"))

    assert read() == there
    assert Event.objects.count() in (0, 9)

    archiving.tidy(older_than=timedelta())
    archiving.archive(by="grace")

    assert read() == there
    assert Event.objects.count() == 0
    assert [each.problem for each in archiving.check()] == [""]
    assert ArchiveFile.objects.count() == len(list(directory.rglob("*.gz"))) == 1
    assert len(list(directory.rglob("*"))) == 3 + 2  # directories; the file and its manifest


BACK = [
    pytest.param(lambda m: before(m, tables, "put_back"), id="nothing is done"),
    pytest.param(lambda m: after(m, tables, "_event", call=2), id="before the commit"),
    pytest.param(lambda m: after(m, tables, "put_back"), id="after the commit"),
    pytest.param(lambda m: after(m, files, "make"), id="a new file is written"),
    pytest.param(lambda m: after(m, files, "compare"), id="it is compared"),
    pytest.param(lambda m: after(m, tables, "move"), id="it is read from now on"),
    pytest.param(lambda m: before(m, storage, "delete"), id="before the old one is deleted"),
    pytest.param(lambda m: after(m, storage, "delete"), id="before its manifest is deleted"),
]


@pytest.mark.parametrize("step", BACK)
def test_killed_while_a_log_is_brought_back(monkeypatch, directory, settings, step):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "ARCHIVE_GRACE": timedelta()}
    there = closed()
    archiving.archive(by="grace")
    log_id = ArchivedLog.objects.order_by("pk")[0].log_id

    with monkeypatch.context() as dying:
        step(dying)
        assert killed_in(lambda: archiving.restore(log_id))

    assert read() == there

    if ArchivedLog.objects.count() == 3:
        archiving.restore(log_id)
    archiving.tidy(older_than=timedelta())

    assert read() == there
    assert [each.log_id for each in EventLog.objects.all()] == [log_id]
    assert [each.problem for each in archiving.check()] == [""]
    [file] = directory.rglob("*.gz")
    [row] = ArchiveFile.objects.all()
    assert (str(file.relative_to(directory)), row.logs) == (row.name, 2)
    assert len(list(directory.rglob("*.json"))) == 1


def lossy(monkeypatch):
    """Let the storage lose the end of each file that it stores."""
    save = storage.save

    def save_a_part(name, content):
        whole = content.read()
        save(name, io.BytesIO(whole[: len(whole) // 2]))

    monkeypatch.setattr(storage, "save", save_a_part)


def test_what_a_storage_has_not_kept_is_noticed_before_anything_is_taken_out(monkeypatch):
    there = closed()
    lossy(monkeypatch)

    with pytest.raises(ArchiveUnavailable) as caught:
        archiving.archive(by="grace")

    assert str(caught.value) == (
        f"The archive {caught.value.archive!r} cannot be used: it is not the file that was "
        f"written. Check the storage. Then do it again: nothing was changed."
    )
    assert (read(), Event.objects.count()) == (there, 9)


def test_a_broken_version_that_does_not_read_back_loses_events(monkeypatch):
    closed()
    lossy(monkeypatch)
    monkeypatch.setattr(files, "compare", lambda made, source: set())

    archiving.archive(by="grace")

    with pytest.raises(ArchiveUnavailable):
        read()
