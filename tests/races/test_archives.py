"""Races of archiving: no event is lost or doubled, and every reader sees each log all the time."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from eventlogs import ANY, LogArchived, LogId, LogManager, NotArchived
from eventlogs.exceptions import ArchiveUnavailable
from eventlogs.models import ArchivedLog, ArchiveFile, EventLog
from eventlogs.operations import archiving
from tests.accounts import Account, Noted, Opened
from tests.operations.archiving.closed import closed_accounts
from tests.processes.forks import Place, Processes
from tests.races import COMMITS

pytestmark = COMMITS

SECONDS = 3.0
LOGS = 12

accounts = LogManager(Account)


def append(place: Place, log_ids: list[LogId]) -> Counter[str]:
    """Append to logs at random; return how many events of each were stored."""
    stored: Counter[str] = Counter()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        # A third of the logs at a time: no log is archived that changes while its file is written.
        log_id = place.random.choice(log_ids[int(time.monotonic()) % 3 :: 3])
        try:
            accounts.append(log_id, Noted(place.number), expected_version=ANY)
            stored[str(log_id)] += 1
        except LogArchived:
            stored["refused"] += 1
    return stored


def move(place: Place, log_ids: list[LogId]) -> Counter[str]:
    """Archive all logs, and bring single ones back."""
    moved: Counter[str] = Counter()
    until = time.monotonic() + SECONDS
    # On a busy machine the first file may be written when the writers have ended.
    while time.monotonic() < until or not moved["archived"]:
        try:
            moved["archived"] += archiving.archive(by=f"process {place.number}").logs
            archiving.restore(place.random.choice(log_ids))
            moved["restored"] += 1
        except NotArchived:
            pass
        except ArchiveUnavailable as error:
            # Another process has written the file anew, or deleted it.
            moved[error.reason[:60]] += 1
    return moved


def read(place: Place, log_ids: list[LogId]) -> list[str]:
    """Read logs at random; return what was wrong."""
    wrong: list[str] = []
    seen: Counter[LogId] = Counter()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        log_id = place.random.choice(log_ids)
        look = place.random.randrange(4)
        if look == 0:
            found = accounts.reduce(log_id)
            version, counted = found.version, found.aggregate.notes + 1
        elif look == 1:
            version = counted = accounts.version(log_id)
        elif look == 2:
            events = list(accounts.stream(log_id))
            version, counted = len(events), events[-1].index + 1 if events else 0
        else:
            page = accounts.load(log_id, limit=10_000)
            version, counted = len(page), page[-1].index + 1 if page else 0
        if version != counted or version < seen[log_id]:
            wrong.append(f"{look}: {version}, {counted} after {seen[log_id]}")
        seen[log_id] = version
    return wrong


def test_no_event_is_lost_while_logs_are_moved_to_and_fro(tmp_path: Path, settings):
    log_ids = [accounts.create(Opened("Ada")).log_id for _ in range(LOGS)]
    changed = {
        "STORAGES": {
            **settings.STORAGES,
            "archives": {
                "BACKEND": "django.core.files.storage.FileSystemStorage",
                "OPTIONS": {"location": str(tmp_path)},
            },
        },
        "EVENTLOGS": {"ARCHIVE_STORAGE": "archives", "RETENTION": [closed_accounts]},
    }
    settings.STORAGES, settings.EVENTLOGS = changed["STORAGES"], changed["EVENTLOGS"]

    with Processes(settings=changed) as team:
        team.line_up(3, append, log_ids)
        team.line_up(2, move, log_ids)
        team.line_up(2, read, log_ids)
        team.go()
        reports = team.reports()

    *appended, first, second, one, other = reports
    stored: Counter[str] = sum(appended, Counter())
    moved = first + second
    assert one + other == []
    assert {each: accounts.version(each) - 1 for each in log_ids} == {
        each: stored[str(each)] for each in log_ids
    }
    for each in log_ids:
        assert [record.index for record in accounts.stream(each)] == list(
            range(accounts.version(each))
        )
    assert EventLog.objects.count() + ArchivedLog.objects.count() == LOGS
    assert moved["archived"] > 1

    archiving.archive(by="the last")
    files = set(ArchiveFile.objects.values_list("name", flat=True))
    assert {str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*.gz")} == files
    assert [each.problem for each in archiving.check() if each.problem] == []
