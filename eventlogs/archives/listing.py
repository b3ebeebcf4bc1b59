"""Which logs are archived: their ids in order, whether some logs are among them, their events."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Final
from uuid import UUID

from django.db.models import QuerySet

from eventlogs.archives.frames import events_of as stored
from eventlogs.archives.reading import in_file, opened
from eventlogs.exceptions import ArchiveUnavailable
from eventlogs.ids import LogId
from eventlogs.models import ArchivedLog, EventLog
from eventlogs.values import StoredEvent

PAGE: Final = 500  # ids that are read at once
SHORT: Final = 50  # events of a log that is read together with others


def archived_logs(using: str, *, log_types: Collection[str] | None = None) -> QuerySet[ArchivedLog]:
    """Return the rows of archived logs; None stands for logs of all types."""
    rows: QuerySet[ArchivedLog] = ArchivedLog.objects.using(using)
    return rows if log_types is None else rows.filter(log_type__in=log_types)


def ids_in_order(
    using: str, *, after: UUID | None = None, log_types: Collection[str] | None = None
) -> Iterator[LogId]:
    """Yield the ids of archived logs, in the order of their UUIDs, after the one given."""
    rows = archived_logs(using, log_types=log_types).order_by("pk").values_list("log_type", "pk")
    while True:
        page = [
            LogId.stored(log_type, pk)
            for log_type, pk in (rows if after is None else rows.filter(pk__gt=after))[:PAGE]
        ]
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].uuid


def archived_among(using: str, log_ids: Iterable[LogId]) -> dict[LogId, int]:
    """Return those of some hundred logs that are archived, with their versions."""
    by_uuid = {each.uuid: each for each in log_ids}
    rows = ArchivedLog.objects.using(using).filter(pk__in=list(by_uuid))
    return {
        by_uuid[pk]: version
        for pk, log_type, version in rows.values_list("pk", "log_type", "version")
        if by_uuid[pk].log_type == log_type
    }


def version_of(using: str, log_id: LogId) -> int:
    """Return the version of a log that is in the tables or archived; 0 for any other."""
    logs = EventLog.objects.using(using).filter(pk=log_id.uuid, log_type=log_id.log_type)
    version: int | None = logs.values_list("version", flat=True).first()
    return version or archived_among(using, [log_id]).get(log_id, 0)


def events_of(
    using: str, log_ids: Iterable[LogId], *, most: int = SHORT
) -> dict[LogId, list[StoredEvent]]:
    """
    Return the events of those of some hundred archived logs that have at most ``most`` each.

    Each file is opened once. Logs that cannot be read here are left out: read them alone, which
    says why, or finds where they are by now.
    """
    rows = (
        ArchivedLog.objects.using(using)
        .filter(pk__in=[each.uuid for each in log_ids], version__lte=most)
        .select_related("archive")
    )
    found: dict[LogId, list[StoredEvent]] = {}
    ordered = sorted(rows, key=lambda row: (row.archive_id, in_file(row)))
    for _, logs in groupby(ordered, key=attrgetter("archive_id")):
        some = list(logs)
        first, *_ = some
        with suppress(ArchiveUnavailable, FileNotFoundError), opened(first) as reader:
            for row in some:
                frames = reader.frames(
                    row.log_id, row.frames, version=row.version, digest=bytes(row.digest)
                )
                found[row.log_id] = list(stored(frames))
    return found
