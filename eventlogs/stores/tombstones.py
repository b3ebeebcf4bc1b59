"""
Tombstones of erased logs, as exports carry them, and how an import stores them.

Events of an erased log cannot be imported, because its row in EventLog has no log type: see
``stores/erasing.py``. An imported tombstone comes with such a row, too. So no log of that id can be
created or imported afterwards, whichever of two transactions comes first: the primary key decides.

An import erases nothing. A tombstone of a log that is here, in the tables or in an archive, is
refused, and so is its whole batch.

In PostgreSQL, only the owner of the table of events may erase, and only the owner may store that a
log was erased: a tombstone that an application could write would let a log seem erased that
somebody has removed. ``manage.py eventlogs grants`` does not let it insert one either.

The row of an imported tombstone in EventLog is as old as the import. That tells the seals which
were made before it from those after: only later seals have a leaf of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from django.apps import apps
from django.db import transaction

from eventlogs.exceptions import CannotImportErased, ErasedElsewhere
from eventlogs.ids import LogId
from eventlogs.stores.claims import insert_missing
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.erasing import NO_LOG_TYPE, check_owner
from eventlogs.stores.restore import rows
from eventlogs.stores.retries import run_again

PAGE: Final = 1_000  # tombstones that are read at once


class Tombstone(NamedTuple):
    """
    What is left of a log that was erased.

    ``created_at`` is that of the log; of an imported tombstone it is the time of the import.
    """

    log_id: LogId
    events: int  # their number
    digest: bytes  # of all of its events
    erased_by: str
    reason: str
    erased_at: datetime
    created_at: datetime | None = None


class Buried(NamedTuple):
    """How many tombstones were stored, and how many logs were erased here with other events."""

    stored: int
    differing: int


def pages(
    using: str, *, log_types: Collection[str] = (), logs: Collection[LogId] = ()
) -> Iterator[list[Tombstone]]:
    """Yield the tombstones of a database in pages, in the order of UUIDs."""
    stones = rows(using, "ErasedLog").order_by("pk")
    if log_types:
        stones = stones.filter(log_type__in=sorted(log_types))
    if logs:
        stones = stones.filter(pk__in=[each.uuid for each in logs])
    page = list(stones[:PAGE])
    while page:
        marks = rows(using, "EventLog").filter(pk__in=[each.pk for each in page])
        created: dict[UUID, datetime] = dict(marks.values_list("pk", "created_at"))
        found = [
            Tombstone(
                each.log_id,
                each.count,
                bytes(each.digest),
                each.erased_by,
                each.reason,
                each.erased_at,
                created.get(each.pk),
            )
            for each in page
        ]
        yield [each for each in found if not logs or each.log_id in logs]
        page = list(stones.filter(pk__gt=page[-1].pk)[:PAGE]) if len(page) == PAGE else []


def alive(using: str, tombstones: Sequence[Tombstone], *, locking: bool = False) -> list[LogId]:
    """
    Return the logs, of some that were erased elsewhere, that are in the tables or archives here.

    With ``locking``, in a transaction, the rows of these logs are locked, in the order of their
    ids, and what is returned is true until its end. Another type's log with the UUID counts, too.
    """
    uuids = [each.log_id.uuid for each in tombstones]
    logs = rows(using, "EventLog").filter(pk__in=uuids).order_by("pk")
    archived = rows(using, "ArchivedLog").filter(pk__in=uuids).order_by("pk")
    if locking:  # on MariaDB and MySQL, a locking read shows newer rows than the snapshot
        logs, archived = logs.select_for_update(), archived.select_for_update()
    there = {uuid for uuid, log_type in logs.values_list("pk", "log_type") if log_type}
    there |= set(archived.values_list("pk", flat=True))
    # The mark of a log that is leaving may become its row again.
    leaving = rows(using, "LogMove").filter(uuid__in=uuids, state="leaving")
    there |= set(leaving.values_list("uuid", flat=True))
    return [each.log_id for each in tombstones if each.log_id.uuid in there]


def restore(using: str, tombstones: Sequence[Tombstone]) -> Buried:
    """
    Store the tombstones that a database lacks, in one transaction.

    One that is there already stays as it is. If it has another number of events or another digest,
    the log was erased here at another version, and is counted in ``differing``.

    Raise ErasedElsewhere if one of the logs is here, CannotImportErased for a role that does not
    own the table of events, and TransactionMustRetry. Nothing of the batch is stored then.
    """
    return run_again(using, lambda _: _restore(using, tombstones))


def _restore(using: str, tombstones: Sequence[Tombstone]) -> Buried:
    """
    Store what is missing, and the rows that keep the logs from being created.

    Right because: the row of each log is inserted first, unless there is one, which makes a
    concurrent creator wait, or waits for it; then all rows are locked before anything is looked
    at. An erasure and another import lock them as well, before they insert a tombstone.
    """
    stones = {each.log_id.uuid: each for each in reversed(tombstones)}
    with transaction.atomic(using=using):
        known = _known(using, stones)
        new = [stones[uuid] for uuid in sorted(stones) if uuid not in known]
        if new:
            check_owner(using, new[0].log_id, refusal=CannotImportErased)
            _insert_marks(using, new)
            there = alive(using, new, locking=True)
            if there:
                raise ErasedElsewhere(tuple(there))
            known = _known(using, stones, locking=True)
            new = [each for each in new if each.log_id.uuid not in known]
            _insert(using, new)
    differing = sum(what != _what(stones[uuid]) for uuid, what in known.items())
    return Buried(len(new), differing)


def _what(tombstone: Tombstone) -> tuple[LogId, int, bytes]:
    return tombstone.log_id, tombstone.events, tombstone.digest


def _known(
    using: str, uuids: Collection[UUID], *, locking: bool = False
) -> dict[UUID, tuple[LogId, int, bytes]]:
    """Return what the tombstones here say; with ``locking``, also those after the snapshot."""
    found = rows(using, "ErasedLog").filter(pk__in=list(uuids)).order_by("pk")
    if locking:
        found = found.select_for_update()
    return {each.pk: (each.log_id, each.count, bytes(each.digest)) for each in found}


def _insert_marks(using: str, tombstones: Sequence[Tombstone]) -> None:
    mark = apps.get_model("eventlogs", "EventLog")
    insert_missing(
        using,
        [
            mark(
                id=each.log_id.uuid,
                log_type=NO_LOG_TYPE,
                version=each.events,
                created_at=UTCNow(),
                updated_at=UTCNow(),
            )
            for each in tombstones
        ],
    )


def _insert(using: str, tombstones: Sequence[Tombstone]) -> None:
    model = apps.get_model("eventlogs", "ErasedLog")
    rows(using, "ErasedLog").bulk_create(
        [
            model(
                id=each.log_id.uuid,
                log_type=each.log_id.log_type,
                count=each.events,
                digest=each.digest,
                erased_by=each.erased_by,
                reason=each.reason,
                erased_at=each.erased_at,
            )
            for each in tombstones
        ]
    )
