"""
Reading archived logs: a store that reads one log from its archive.

A log is looked up in the table of archived logs, which says where its events are in which file.
Everything that is read is proved by the digests of that table: see ``frames.py``. Each call opens
the file anew, and closes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from eventlogs.archives import storage
from eventlogs.archives.frames import Damaged, Reader, events_of, frames_of
from eventlogs.exceptions import ArchiveUnavailable, LogArchived
from eventlogs.ids import LogId
from eventlogs.models import ArchivedLog
from eventlogs.stores import store_for
from eventlogs.stores.base import STREAM_PAGE, AppendRequest, BaseStore, Claim
from eventlogs.stores.restore import ExportedEvent
from eventlogs.values import LogState, StoredEvent

LOOKS: Final = 3  # at the table, while archives are written anew


def archived_log(using: str, log_id: LogId) -> ArchivedLog | None:
    """Return the row of a log that is archived, or None for any other log. One query."""
    rows = ArchivedLog.objects.using(using).select_related("archive")
    return rows.filter(pk=log_id.uuid, log_type=log_id.log_type).first()


def in_file(row: ArchivedLog) -> tuple[int, UUID]:
    """Return by what the rows of one archive are sorted, to read its file once."""
    return frames_of(row.frames)[0].offset, row.pk


def archived_store(using: str, log_id: LogId) -> ArchivedStore | None:
    """Return a store that reads an archived log, or None for any other log."""
    row = archived_log(using, log_id)
    return None if row is None else ArchivedStore(using, row)


def reading_store(using: str, log_id: LogId) -> BaseStore:
    """Return the store to read a log from: that of the database, or that of its archive."""
    store = store_for(using)
    if store.version(log_id):
        return store
    return archived_store(using, log_id) or store


@contextmanager
def opened(row: ArchivedLog) -> Iterator[Reader]:
    """
    Open the archive of a log.

    Raise FileNotFoundError if the file is not there, and ArchiveUnavailable if it cannot be
    opened, or if what is read from it is not what was archived.
    """
    name = row.archive.name
    reader = Reader(storage.open_file(name))
    try:
        yield reader
    except Damaged as damage:
        raise ArchiveUnavailable(
            name,
            reason=f"of {row.log_id}, {damage}. Restore the file from a backup: see "
            f"docs/retention.md",
        ) from None
    except FileNotFoundError:  # of a storage that looks only when it reads
        raise
    except OSError as error:
        raise ArchiveUnavailable(name, reason="it cannot be read") from error
    finally:
        reader.close()


def exported_pages(
    row: ArchivedLog, *, start: int = 0, reverse: bool = False, using: str
) -> Iterator[list[ExportedEvent]]:
    """
    Yield the events of an archived log, some hundred at a time, as an export has them.

    They begin before ``start``, where its frame does. If the archive was written anew since the row
    was read, the new one is found. Raise ArchiveUnavailable, and LogNotFound for a log that is not
    archived any more.
    """
    done = False
    for look in range(LOOKS):
        try:
            with opened(row) as reader:
                for page in reader.frames(
                    row.log_id,
                    row.frames,
                    version=row.version,
                    digest=bytes(row.digest),
                    start=start,
                    reverse=reverse,
                ):
                    done = True
                    yield page
            return
        except FileNotFoundError as error:
            found = archived_log(using, row.log_id)
            if found is None:
                raise store_for(using).missing(row.log_id) from error
            if done or found.archive_id == row.archive_id or look + 1 == LOOKS:
                raise ArchiveUnavailable(
                    row.archive.name,
                    reason="the file is not in the storage. Restore it from a backup, or set "
                    "EVENTLOGS['ARCHIVE_STORAGE'] to the storage that has it",
                ) from error
            row = found


class ArchivedStore(BaseStore):
    """One log, read from its archive. It takes no events."""

    encrypts = True

    def __init__(self, using: str, row: ArchivedLog) -> None:
        self.using = using
        self._row = row

    def version(self, log_id: LogId) -> int:
        return self._row.version if log_id == self._row.log_id else 0

    def events(
        self, log_id: LogId, *, start: int, limit: int, reverse: bool = False
    ) -> Sequence[StoredEvent]:
        if log_id != self._row.log_id:
            return []
        found: list[StoredEvent] = []
        for page in exported_pages(self._row, start=start, reverse=reverse, using=self._using):
            events = [each.event for each in page]
            if reverse:
                found += [each for each in reversed(events) if each.index <= start]
            else:
                found += [each for each in events if each.index >= start]
            if len(found) >= limit:
                break
        return found[:limit]

    def pages(
        self, log_id: LogId, *, start: int = 0, page: int = STREAM_PAGE
    ) -> Iterator[Sequence[StoredEvent]]:
        """Yield the events frame by frame: each is read once, whatever ``page`` is."""
        if log_id != self._row.log_id:
            return
        for frame in exported_pages(self._row, start=start, using=self._using):
            kept = [each for each in events_of([frame]) if each.index >= start]
            if kept:
                yield kept

    def claim(self, log_type: str, idempotency_key: str) -> Claim | None:
        return store_for(self._using).claim(log_type, idempotency_key)

    def append(self, request: AppendRequest) -> LogState:
        raise LogArchived(request.log_id, archived_at=self._row.archived_at)

    @property
    def _using(self) -> str:
        assert self.using is not None
        return self.using
