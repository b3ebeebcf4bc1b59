"""Archived logs in the admin: found by the ids that people paste, and read from their archives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain

from eventlogs.archives.reading import ArchivedStore, exported_pages
from eventlogs.exceptions import ArchiveUnavailable, LogNotFound
from eventlogs.models import ArchivedLog, Event, EventLog
from eventlogs.operations.pasted_ids import Named
from eventlogs.stores import export_lines


def named(name: Named, using: str) -> ArchivedLog | None:
    """Return the archived log that a text names, or None."""
    rows = ArchivedLog.objects.using(using).select_related("archive").filter(pk=name.uuid)
    if name.log_type is not None:
        rows = rows.filter(log_type=name.log_type)
    return rows.first()


def as_log(row: ArchivedLog) -> EventLog:
    """Return the row that an archived log had in the table of logs. It is never saved."""
    return EventLog(
        id=row.pk,
        log_type=row.log_type,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
        head=row.head,
    )


def event_of(row: ArchivedLog, index: int, using: str) -> Event | None:
    """Return an event of an archived log as its row was, or None if it cannot be read."""
    store = ArchivedStore(using, row)
    try:
        found = store.events(row.log_id, start=index, limit=1)
    except (ArchiveUnavailable, LogNotFound):
        return None
    for each in found:
        return Event(
            position=each.position,
            log_id=row.pk,
            log_type=row.log_type,
            index=each.index,
            type=each.type,
            schema_version=each.schema_version,
            data=json.loads(each.data),
            metadata=json.loads(each.metadata),
            idempotency_key=each.idempotency_key,
            recorded_at=each.recorded_at,
        )
    return None


def export_parts(row: ArchivedLog, using: str) -> Iterator[str]:
    """
    Return an iterator over the parts of an export of an archived log.

    The first events are read at once: raise ArchiveUnavailable if they cannot be.
    """
    pages = exported_pages(row, using=using)
    first = next(pages, [])

    def parts() -> Iterator[str]:
        yield export_lines.header(after=0)
        for page in chain([first], pages):
            yield "".join(map(export_lines.event_line, page))
        yield export_lines.footer(events=row.version, until=row.last_position)

    return parts()
