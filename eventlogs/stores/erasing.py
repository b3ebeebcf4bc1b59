"""
Erasing a whole log: its events and all rows beside them go, and a tombstone stays.

The log's row in EventLog stays as well, as a mark: without a log type, so that no log id names it.
That is what keeps an erased log from being created again by accident. A creator inserts a row
with the log's UUID, and the primary key refuses it, whatever the creator's snapshot shows: a look
at the tombstones, in the creating statement or in a trigger, would miss one that is committed while
the creator waits for the deleted row. It costs creates nothing, appends nothing (they compare the
log type), and holds for processes of older releases, too. ``EventLog.objects`` leaves such rows
out.

In PostgreSQL, events are deleted by a function that only the owner of the table can use; migration
0011 has it, and says why. Elsewhere there are no triggers, and the ORM does the same. Both hold the
log's row: an append that waits for it finds another log type afterwards, and stores nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from django.apps import apps
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet

from eventlogs.events import chain
from eventlogs.exceptions import CannotErase, LogArchived, LogErased, LogNotFound
from eventlogs.ids import LogId
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.columns import STORED, events_of_log
from eventlogs.stores.moves import log_moved
from eventlogs.stores.retries import run_again
from eventlogs.values import StoredEvent

T = TypeVar("T")

NO_LOG_TYPE: Final = ""
"""The log type of the row that is left of an erased log."""

PAGE: Final = 2_000  # events that are read at once

IS_OWNER: Final = """
SELECT pg_has_role(current_user, relowner, 'USAGE'), current_user::text, relowner::regrole::text
FROM pg_class
WHERE oid = 'eventlogs_event'::regclass
"""

ERASE: Final = "SELECT eventlogs_erase_log(%s, %s, %s, %s, %s, %s)"


def log_erased(using: str, log_id: LogId, *, any_type: bool = False) -> LogErased | None:
    """
    Return the error for a log that was erased, or None for any other log.

    With ``any_type``, the erased log may have had another log type, and the same UUID.
    """
    found = _newest("ErasedLog", using).filter(pk=log_id.uuid)
    if not any_type:
        found = found.filter(log_type=log_id.log_type)
    erased_at = found.values_list("erased_at", flat=True).first()
    return None if erased_at is None else LogErased(log_id, erased_at=erased_at)


def log_archived(using: str, log_id: LogId, *, any_type: bool = False) -> LogArchived | None:
    """Return the error for a log that is archived, or None; ``any_type`` as in ``log_erased``."""
    found = _newest("ArchivedLog", using).filter(pk=log_id.uuid)
    if not any_type:
        found = found.filter(log_type=log_id.log_type)
    archived_at = found.values_list("archived_at", flat=True).first()
    return None if archived_at is None else LogArchived(log_id, archived_at=archived_at)


def gone(using: str, log_id: LogId, *, any_type: bool = False) -> LogNotFound | None:
    """Return the error for a log that was erased, archived or moved, or None for any other log."""
    return (
        log_erased(using, log_id, any_type=any_type)
        or log_archived(using, log_id, any_type=any_type)
        or log_moved(using, log_id, any_type=any_type)
    )


def why_gone(
    using: str, log_id: LogId, refused: T, *, any_type: bool = False
) -> LogNotFound | T | None:
    """
    Return why an append found no log: it was erased, archived or moved, or else ``refused``.

    Return None for a log that is there by now: an archived log may have come back in between, or a
    move was abandoned, and the append has to be tried again.
    """
    found = gone(using, log_id, any_type=any_type)
    if found is not None:
        return found
    logs = _rows("EventLog", using).filter(pk=log_id.uuid)
    logs = logs.exclude(log_type=NO_LOG_TYPE) if any_type else logs.filter(log_type=log_id.log_type)
    return None if logs.exists() else refused


def missing(using: str, log_id: LogId) -> LogNotFound:
    """Return the error for a log without events: LogErased, LogArchived or LogMoved, if it was."""
    return gone(using, log_id) or LogNotFound(log_id)


def check_owner(
    using: str, log_id: LogId | None = None, *, refusal: type[CannotErase] = CannotErase
) -> None:
    """
    Raise CannotErase if this database role may not delete events of closed or erased logs.

    ``refusal`` is another error to raise, for what only the owner may do as well.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        cursor.execute(IS_OWNER)
        may, role, owner = cursor.fetchone()
    if not may:
        raise refusal(log_id, using=using, role=role, owner=owner)


def erase(using: str, log_id: LogId, *, by: str, reason: str) -> bool:
    """
    Erase a log and leave a tombstone, in one transaction; return whether it was there.

    Raise RuntimeError inside of a transaction, LogNotFound for a log that never existed,
    CannotErase for a role that does not own the table, and TransactionMustRetry if the database
    has aborted the transaction six times. Nothing is erased then.
    """

    def attempt(connection: BaseDatabaseWrapper) -> bool:
        # Durable: what comes after it, in caches and read models, has no rollback.
        with transaction.atomic(using=using, durable=True):
            return _erase(connection, log_id, by=by, reason=reason)

    return run_again(using, attempt)


def _erase(connection: BaseDatabaseWrapper, log_id: LogId, *, by: str, reason: str) -> bool:
    using = connection.alias
    check_owner(using, log_id)
    # No other lock of the row is weaker than this one: appends to any version wait as well.
    rows = _rows("EventLog", using).filter(pk=log_id.uuid).select_for_update()
    row = rows.values_list("log_type", "version", "head").first()
    log_type, version, head = row or (None, 0, None)
    if log_type == NO_LOG_TYPE and _erase_archived(using, log_id, by=by, reason=reason):
        return True
    if log_type != log_id.log_type:
        if log_erased(using, log_id) is None:
            raise missing(using, log_id)
        return False
    logs = _rows("EventLog", using).filter(pk=log_id.uuid, log_type=log_id.log_type)
    if head is None:
        is_jsonb = connection.vendor == "postgresql"
        head = digest_of(_events(using, log_id), from_jsonb=is_jsonb)
    digest = bytes(head)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(ERASE, [log_id.uuid, str(log_id), version, digest, by, reason])
        return True
    count = _rows("Event", using).filter(log_id=log_id.uuid)._raw_delete(using)
    logs.update(log_type=NO_LOG_TYPE, updated_at=UTCNow())
    _bury(using, log_id, count, digest, by=by, reason=reason)
    return True


def _erase_archived(using: str, log_id: LogId, *, by: str, reason: str) -> bool:
    """Erase a log that is archived, whose mark is locked; return False if it is not."""
    rows = _rows("ArchivedLog", using).filter(pk=log_id.uuid, log_type=log_id.log_type)
    row = rows.select_for_update().values_list("version", "digest").first()
    if row is None:
        return False
    rows._raw_delete(using)
    version, digest = row
    _bury(using, log_id, version, bytes(digest), by=by, reason=reason)
    return True


def _bury(using: str, log_id: LogId, count: int, digest: bytes, *, by: str, reason: str) -> None:
    """Remove the rows beside the events of a log, and leave a tombstone."""
    for name in ("IdempotencyKey", "UniqueValue"):
        _rows(name, using).filter(log_id=log_id.uuid)._raw_delete(using)
    _rows("SubjectLog", using).filter(log_id=log_id)._raw_delete(using)
    tombstone = apps.get_model("eventlogs", "ErasedLog")(
        id=log_id.uuid,
        log_type=log_id.log_type,
        count=count,
        digest=digest,
        erased_by=by,
        reason=reason,
        erased_at=UTCNow(),
    )
    _rows("ErasedLog", using).bulk_create([tombstone])


def digest_of(events: Iterable[StoredEvent], *, from_jsonb: bool = False) -> bytes:
    """Return the digest that a chained log of these events has: see ``events/chain.py``."""
    digest: bytes | None = None
    for event in events:
        digest = chain.digest(digest, event, from_jsonb=from_jsonb)
    return digest or chain.FIRST


def _events(using: str, log_id: LogId) -> Iterator[StoredEvent]:
    events = _rows("Event", using).filter(log_id=log_id.uuid, log_type=log_id.log_type)
    start = 0
    while True:
        page = events.filter(index__gte=start).order_by("index").values_list(*STORED)[:PAGE]
        found = events_of_log(log_id, page)
        yield from found
        if len(found) < PAGE:
            return
        start = found[-1].index + 1


def _newest(model: str, using: str) -> QuerySet[Any]:
    """
    Return rows as they are committed, inside of a transaction as well.

    On MariaDB and MySQL the snapshot may be older than the lock of a log, which showed its mark.
    """
    rows, connection = _rows(model, using), connections[using]
    is_old = connection.vendor == "mysql" and connection.in_atomic_block
    return rows.select_for_update() if is_old else rows


def _rows(model: str, using: str) -> QuerySet[Any]:
    # A plain queryset: those of the models refuse to write. By name: models import stores.
    return QuerySet(apps.get_model("eventlogs", model), using=using)
