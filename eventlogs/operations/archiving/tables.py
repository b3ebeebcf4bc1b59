"""
Taking logs out of the tables, and putting one back: the two transactions of archiving.

In PostgreSQL only the owner of the table may do it: the trigger of migration 0011 lets a DELETE
pass that names its log in this transaction, for the owner alone. The row of a log stays in EventLog
without its log type, as a mark; see stores/erasing.py. Its version, times and head stay in it.

Idempotency keys stay, so a retry of an old request is a replay. Unique values stay, too, and the
links to subjects, by which a person's data are found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet, Value
from django.db.models.functions import Cast

from eventlogs.archives.frames import Written
from eventlogs.exceptions import ArchiveUnavailable, ImportDiffers
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.models import ArchivedLog, ArchiveFile, Event, EventLog, ReturnedLog
from eventlogs.operations.archiving.choosing import (
    held_logs,
    last_reader,
    refuse_to_bring_back,
)
from eventlogs.operations.archiving.files import Made
from eventlogs.projections import checkpoints
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.erasing import NO_LOG_TYPE
from eventlogs.stores.restore import ExportedEvent
from eventlogs.stores.retries import run_again

ROWS: Final = 500  # of one INSERT
LOGS: Final = 500  # rows of logs that one statement names

# What the trigger of migration 0011 lets pass: the log, and this transaction. It reads the log's
# row, and so runs on the node that has the tables, where they are in a distributed schema of Citus.
MARK: Final = """
SELECT set_config('eventlogs.erasing', concat(id, ' ', pg_current_xact_id()), true)
FROM eventlogs_eventlog WHERE id = %s::uuid
"""


class _Locked(NamedTuple):
    """What is in the row of a log that is locked."""

    log_type: str
    version: int
    head: Any

    def is_still(self, log: LogRow) -> bool:
        """Return whether nobody has appended to the log since its row was read."""
        return (self.log_type, self.version) == (log.log_id.log_type, log.version)


NOT_THERE: Final = _Locked("", 0, None)


def plain(model: type[models.Model], using: str) -> QuerySet[Any]:
    """Return a plain queryset: those of these models refuse to write."""
    return QuerySet(model, using=using)


def take_out(using: str, made: Made, logs: Sequence[LogRow], *, by: str) -> set[UUID]:
    """
    Take the logs of a file out of the tables, in one transaction, and return an empty set.

    Return the logs that have changed since they were read, if there are any: then nothing was
    taken out. Raise ArchiveUnavailable if the file was given up meanwhile, and RuntimeError inside
    of a transaction.

    Right because: every append locks the row of its log before it writes. Under the locks here, a
    version that is the one that was read says that all events are those that were compared. An
    append that waits for a lock finds no log of this type afterwards.
    """

    def attempt(connection: BaseDatabaseWrapper) -> set[UUID]:
        with transaction.atomic(using=using, durable=True):
            return _take_out(connection, made, logs, by)

    return run_again(using, attempt)


def _take_out(
    connection: BaseDatabaseWrapper, made: Made, logs: Sequence[LogRow], by: str
) -> set[UUID]:
    using = connection.alias
    if not lock_file(using, made.file, ArchiveFile.WRITING):
        raise ArchiveUnavailable(
            made.file.name,
            reason="it took more than an hour to write, so another process has given it up",
        )
    found: dict[UUID, _Locked] = {}
    for some in _batched(sorted(each.log_id.uuid for each in logs), LOGS):
        rows = plain(EventLog, using).filter(pk__in=some).order_by("pk").select_for_update()
        for pk, *rest in rows.values_list("pk", "log_type", "version", "head"):
            found[pk] = _Locked(*rest)
    # Again: a projection may have begun, or begun anew, while the file was written. Before the look
    # at the held logs: a worker that holds a log moves its checkpoint past the event at the same
    # time. So one that does it between the two looks was behind at the first.
    last = last_reader(using, made.file.log_type)
    held = held_logs(using, [each.log_id for each in logs])
    changed = {
        each.log_id.uuid
        for each in logs
        if each.log_id in held
        or not found.get(each.log_id.uuid, NOT_THERE).is_still(each)
        or (last is not None and made.logs[each.log_id.uuid].last_position > last.position)
    }
    if changed:
        return changed
    for each in logs:
        log = made.logs[each.log_id.uuid]
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(MARK, [each.log_id.uuid])
        deleted = plain(Event, using).filter(log_id=each.log_id.uuid)._raw_delete(using)
        if deleted != log.version:
            raise ImportDiffers(
                each.log_id,
                index=min(deleted, log.version),
                reason=f"it has {deleted} events in the table, and {log.version} in the archive",
            )
    plain(ArchivedLog, using).bulk_create(
        [
            _row(each, made.logs[each.log_id.uuid], found[each.log_id.uuid].head, made.file, by)
            for each in logs
        ],
        batch_size=ROWS,
    )
    for some in _batched([each.log_id.uuid for each in logs], LOGS):
        plain(EventLog, using).filter(pk__in=some).update(log_type=NO_LOG_TYPE)
    complete(using, made.file)
    return set()


def _row(log: LogRow, written: Written, head: Any, file: ArchiveFile, by: str) -> ArchivedLog:
    return ArchivedLog(
        id=log.log_id.uuid,
        log_type=log.log_id.log_type,
        version=log.version,
        created_at=log.created_at,
        updated_at=log.updated_at,
        head=head,
        digest=written.digest,
        last_position=written.last_position,
        archive_id=file.pk,
        frames=[list(each) for each in written.frames],
        archived_at=UTCNow(),
        archived_by=by,
    )


def lock_file(using: str, file: ArchiveFile, state: str) -> bool:
    """Lock the row of a file; return False if it is not in this state any more."""
    rows = plain(ArchiveFile, using).filter(pk=file.pk, state=state)
    return bool(rows.select_for_update().exists())


def complete(using: str, file: ArchiveFile) -> None:
    """Store that logs are read from a file from now on."""
    plain(ArchiveFile, using).filter(pk=file.pk).update(
        state=ArchiveFile.COMPLETE,
        logs=file.logs,
        events=file.events,
        size=file.size,
        digest=file.digest,
    )


def move(using: str, made: Made, old: ArchiveFile, logs: Collection[UUID]) -> bool:
    """
    Let archived logs be read from another file, in one transaction.

    Return False if one of the two files, or the logs in the old one, are not as they were, because
    another process was faster: then nothing was changed.
    """

    def attempt(_: BaseDatabaseWrapper) -> bool:
        with transaction.atomic(using=using, durable=True):
            return _move(using, made, old, logs)

    return run_again(using, attempt)


def _move(using: str, made: Made, old: ArchiveFile, logs: Collection[UUID]) -> bool:
    if not lock_file(using, old, ArchiveFile.COMPLETE):
        return False
    if not lock_file(using, made.file, ArchiveFile.WRITING):
        return False
    rows = plain(ArchivedLog, using).filter(archive_id=old.pk).order_by("pk")
    if set(rows.select_for_update().values_list("pk", flat=True)) != set(logs):
        return False
    for log, written in made.logs.items():
        plain(ArchivedLog, using).filter(pk=log).update(
            archive_id=made.file.pk, frames=[list(each) for each in written.frames]
        )
    complete(using, made.file)
    plain(ArchiveFile, using).filter(pk=old.pk).update(
        state=ArchiveFile.REPLACED, replaced_at=UTCNow()
    )
    return True


def put_back(
    using: str, row: ArchivedLog, pages: Callable[[], Iterable[list[ExportedEvent]]]
) -> bool:
    """
    Put a log back into the tables, in one transaction; return False if it is not archived any more.

    Events get the positions that they had, so whoever has read them does not see them again.
    ``pages`` reads them from the beginning; they are proved by the row's digest. Raise what
    ``refuse_to_bring_back`` raises, and RuntimeError inside of a transaction.
    """

    def attempt(_: BaseDatabaseWrapper) -> bool:
        with transaction.atomic(using=using, durable=True):
            return _put_back(using, row, pages())

    return run_again(using, attempt)


def _put_back(using: str, row: ArchivedLog, pages: Iterable[list[ExportedEvent]]) -> bool:
    archived = plain(ArchivedLog, using).filter(pk=row.pk)
    # The log's row first, as every append and every erasure locks it first.
    mark = plain(EventLog, using).filter(pk=row.pk, log_type=NO_LOG_TYPE)
    if not mark.select_for_update().exists() or not archived.select_for_update().exists():
        return False
    refuse_to_bring_back(using, row.log_type, row.last_position)
    for page in pages:
        plain(Event, using).bulk_create(
            [_event(each, row.log_id) for each in page], batch_size=ROWS
        )
    archived._raw_delete(using)
    returned = plain(ReturnedLog, using)
    returned.filter(pk=row.pk).delete()
    returned.bulk_create([ReturnedLog(id=row.pk, returned_at=UTCNow())])
    _begin_rebuilds_anew(using)
    mark.update(log_type=row.log_type)
    return True


def _begin_rebuilds_anew(using: str) -> None:
    """
    Let rebuilds into a shadow table begin anew, those that run and those that were interrupted.

    Their checkpoints may be past the events of a log that is brought back.
    """
    checkpoints.forget_rebuilds(using)


def _event(exported: ExportedEvent, log_id: LogId) -> Event:
    event, json = exported.event, models.JSONField()
    return Event(
        position=event.position,
        log_id=log_id.uuid,
        log_type=log_id.log_type,
        index=event.index,
        type=event.type,
        schema_version=event.schema_version,
        data=Cast(Value(event.data), json),
        metadata=Cast(Value(event.metadata), json),
        idempotency_key=event.idempotency_key,
        recorded_at=event.recorded_at,
        digest=exported.digest,
    )


def forget(using: str, log: UUID) -> None:
    """Remove the row of an archived log that is erased, in the caller's transaction."""
    plain(ArchivedLog, using).filter(pk=log)._raw_delete(using)


def _batched(items: Iterable[UUID], size: int) -> Iterable[list[UUID]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
