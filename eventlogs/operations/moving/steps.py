"""
The steps of a move, each of them one transaction in one database; the package says why they hold.

Each can be called again: it does nothing where it was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from django.db import Error, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet

from eventlogs.events import chain
from eventlogs.exceptions import CannotMove, ImportDiffers, TransactionMustRetry
from eventlogs.feed import scans
from eventlogs.ids import LogId
from eventlogs.models import (
    ArchivedLog,
    ErasedLog,
    Event,
    EventLog,
    IdempotencyKey,
    LogMove,
    ReturnedLog,
    SkippedEvent,
    SubjectLog,
    UniqueValue,
)
from eventlogs.operations import jsonl
from eventlogs.operations.archiving.tables import MARK, plain
from eventlogs.operations.moving import waiting
from eventlogs.stores import store_for
from eventlogs.stores.claims import insert_missing
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.erasing import NO_LOG_TYPE, digest_of
from eventlogs.stores.restore import ExportedEvent, batched
from eventlogs.stores.retries import run_again
from eventlogs.values import StoredEvent

T = TypeVar("T")

ROWS: Final = 500  # that one statement names


class Move(NamedTuple):
    """One attempt to move a log."""

    log_id: LogId
    source: str
    target: str
    token: UUID
    by: str = ""

    def refused(self, reason: str) -> CannotMove:
        """Return the error that says why the log stays."""
        return CannotMove(self.log_id, reason=reason, using=self.source, to=self.target)


def announce(move: Move, *, is_chained: bool) -> None:
    """
    Store in the target that the log is arriving. The token must be new.

    An announcement of an earlier attempt is replaced: that attempt cannot end any more. Raise
    CannotMove if the log cannot come there.
    """
    log, using = move.log_id, move.target

    def attempt() -> None:
        insert_missing(using, [_mark(log)])
        log_type, version = _locked(log, using)
        moves = _moves(log, using)
        if not version:  # a copy by another call was committed while this one waited for the lock
            raise move.refused("overtaken")
        if log_type != NO_LOG_TYPE:
            raise move.refused("there")
        if plain(ErasedLog, using).filter(pk=log.uuid).exists():
            raise move.refused("erased")
        if plain(ArchivedLog, using).filter(pk=log.uuid).exists():
            raise move.refused("archived")
        if is_chained and moves.filter(state=LogMove.LEFT).exists():
            raise move.refused("chained")
        if _other_keys(move):
            raise move.refused("key")
        moves.filter(state=LogMove.ARRIVING).delete()
        _insert(move, LogMove.ARRIVING, using=using, other=move.source)

    _run(using, attempt)


def leave(move: Move) -> bool:
    """
    Let the log take no more events in the source; return False if it is not there.

    Right because: every append locks the log's row before it writes. One that waits for the lock
    finds no log of its type afterwards.
    """
    log, using = move.log_id, move.source

    def attempt() -> bool:
        log_type, version = _locked(log, using)
        if log_type != log.log_type:
            return False
        waiting.refuse_held(log, source=using, target=move.target)
        waiting.refuse_inline(log, source=using, target=move.target)
        if plain(UniqueValue, using).filter(log_id=log.uuid).exists():
            raise move.refused("unique")
        _insert(move, LogMove.LEAVING, using=using, other=move.target, version=version)
        plain(EventLog, using).filter(pk=log.uuid).update(log_type=NO_LOG_TYPE)
        return True

    return _run(using, attempt)


def copy(move: Move, *, tell: Callable[[int], None]) -> int:
    """
    Store the log in the target, and that it has arrived; return the number of its events.

    ``tell`` is called with numbers of events that were copied since the last call. Raise CannotMove
    if the announcement is not there any more, or if the copy differs: nothing is stored then.

    Right because: the announcement is locked, and the log takes no events in the source while it is
    there. What was stored is read again, and compared by the number of events and by a digest of
    all that is in them.
    """
    log, using = move.log_id, move.target

    def attempt() -> int:
        _locked(log, using)
        arriving = _moves(log, using).filter(token=move.token).select_for_update().first()
        if arriving is None:
            raise move.refused("overtaken")
        if arriving.state == LogMove.ARRIVED:
            return int(arriving.version)
        if plain(ErasedLog, using).filter(pk=log.uuid).exists():
            raise move.refused("erased")
        leaving = plain(LogMove, move.source).get(token=move.token)
        # Its place is taken by the log's row, which is inserted with the first events. A creator
        # that waits for this transaction finds that row.
        plain(EventLog, using).filter(pk=log.uuid)._raw_delete(using)
        digest = _store_events(move, tell)
        version, stored = _look(log, using)
        if (version, stored) != (leaving.version, digest):
            raise move.refused("differs")
        _store_skips(move)
        plain(LogMove, using).filter(token=move.token).update(
            state=LogMove.ARRIVED, version=version, digest=digest, ended_at=UTCNow()
        )
        return version

    try:
        return _run(using, attempt)
    except ImportDiffers as error:
        raise move.refused("differs") from error


def take_out(move: Move) -> None:
    """
    Take the log's events out of the source. Call it after the log has arrived.

    Keys stay, so that a retry of an old request at the source is a replay, and no second log.
    """
    log, using = move.log_id, move.source
    arrived = plain(LogMove, move.target).get(token=move.token, state=LogMove.ARRIVED)

    def attempt() -> None:
        _locked(log, using)
        leaving = _moves(log, using).filter(token=move.token, state=LogMove.LEAVING)
        if not leaving.select_for_update().exists():
            return
        connection = connections[using]
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(MARK, [log.uuid])
        deleted = plain(Event, using).filter(log_id=log.uuid)._raw_delete(using)
        if deleted != arrived.version:
            raise move.refused("differs")
        plain(SubjectLog, using).filter(log_id=log)._raw_delete(using)
        plain(ReturnedLog, using).filter(pk=log.uuid)._raw_delete(using)
        leaving.update(state=LogMove.LEFT, digest=arrived.digest, ended_at=UTCNow())

    _run(using, attempt)


def withdraw(move: Move) -> bool:
    """
    Take the announcement in the target back; return False if the log has arrived.

    After True, the log never arrives by this attempt.
    """
    log, using = move.log_id, move.target

    def attempt() -> bool:
        _locked(log, using)
        moves = _moves(log, using)
        mine = moves.filter(token=move.token)
        if mine.filter(state=LogMove.ARRIVED).select_for_update().exists():
            return False
        mine.delete()
        if not moves.exists():
            mark = plain(EventLog, using).filter(pk=log.uuid, log_type=NO_LOG_TYPE)
            others = (plain(each, using).filter(pk=log.uuid) for each in (ErasedLog, ArchivedLog))
            if not any(each.exists() for each in others):
                mark._raw_delete(using)
        return True

    return _run(using, attempt)


def go_back(move: Move) -> None:
    """Let the log take events in the source again. Call it only after ``withdraw``."""
    log, using = move.log_id, move.source

    def attempt() -> None:
        _locked(log, using)
        leaving = _moves(log, using).filter(token=move.token, state=LogMove.LEAVING)
        if leaving.select_for_update().exists():
            leaving.delete()
            plain(EventLog, using).filter(pk=log.uuid).update(log_type=log.log_type)

    _run(using, attempt)


def _run(using: str, attempt: Callable[[], T]) -> T:
    """Run a step in a transaction of its own; raise RuntimeError inside of another one."""

    def whole(_: BaseDatabaseWrapper) -> T:
        try:
            # Durable: what comes after a step, in another database, has no rollback.
            with transaction.atomic(using=using, durable=True):
                return attempt()
        except TransactionMustRetry as error:
            if isinstance(error.__cause__, Error):
                raise error.__cause__  # noqa: B904 (must_retry() looks at its cause)
            raise

    return run_again(using, whole)


def _locked(log_id: LogId, using: str) -> tuple[str, int]:
    """Lock the row of a log, also one that is a mark; return what is in it, version 0 for none."""
    rows = plain(EventLog, using).filter(pk=log_id.uuid).select_for_update()
    return rows.values_list("log_type", "version").first() or (NO_LOG_TYPE, 0)


def _moves(log_id: LogId, using: str) -> QuerySet[LogMove]:
    return plain(LogMove, using).filter(uuid=log_id.uuid)


def _mark(log_id: LogId) -> EventLog:
    return EventLog(
        id=log_id.uuid,
        log_type=NO_LOG_TYPE,
        version=1,  # not 0, which would be that of a log whose creator has not written it yet
        created_at=UTCNow(),
        updated_at=UTCNow(),
    )


def _insert(move: Move, state: str, *, using: str, other: str, version: int = 0) -> None:
    plain(LogMove, using).bulk_create(
        [
            LogMove(
                token=move.token,
                uuid=move.log_id.uuid,
                log_type=move.log_id.log_type,
                state=state,
                other=other,
                version=version,
                begun_at=UTCNow(),
                moved_by=move.by,
            )
        ]
    )


def _other_keys(move: Move) -> bool:
    """Return whether another log in the target has one of the log's idempotency keys."""
    log = move.log_id
    keys = plain(IdempotencyKey, move.source).filter(log_id=log.uuid).order_by("pk")
    there = plain(IdempotencyKey, move.target).filter(log_type=log.log_type)
    for some in batched(keys.values_list("key", flat=True).iterator(ROWS), ROWS):
        if there.filter(key__in=some).exclude(log_id=log.uuid).exists():
            return True
    return False


def _store_events(move: Move, tell: Callable[[int], None]) -> bytes:
    """Store what the source has of the log, and return the digest of its events."""
    store, is_jsonb = store_for(move.target), _is_jsonb(move.source)
    digest: bytes | None = None
    for page in _exported(move):
        for each in page:
            digest = chain.digest(digest, each.event, from_jsonb=is_jsonb)
        jsonl.note_subjects(move.target, page)
        store.restore(page)
        tell(len(page))
    return digest or chain.FIRST


def _exported(move: Move) -> Iterator[list[ExportedEvent]]:
    """Yield pages of the log's events with their keys, digests, and the time of the log."""
    log, using = move.log_id, move.source
    created_at = plain(EventLog, using).values_list("created_at", flat=True).get(pk=log.uuid)
    for page in scans.events_of_log(using, log.uuid):
        first, last = page[0].index, page[-1].index
        rows = plain(Event, using).filter(log_id=log.uuid, index__range=(first, last))
        digests = dict(rows.exclude(digest=None).values_list("index", "digest"))
        yield [
            each._replace(
                log_created_at=created_at if each.event.index == 0 else None,
                digest=_bytes(digests.get(each.event.index)),
            )
            for each in scans.exported(using, page)
        ]


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _look(log_id: LogId, using: str) -> tuple[int, bytes]:
    """Return the number of a log's events in a database, and their digest."""
    count = 0

    def counted() -> Iterable[StoredEvent]:
        nonlocal count
        for page in scans.events_of_log(using, log_id.uuid):
            count += len(page)
            yield from page

    digest = digest_of(counted(), from_jsonb=_is_jsonb(using))
    log_type, version = _locked(log_id, using)
    return (count if (log_type, version) == (log_id.log_type, count) else -1), digest


def _is_jsonb(using: str) -> bool:
    return connections[using].vendor == "postgresql"


def _store_skips(move: Move) -> None:
    """Store which events of the log a person has let projections skip: they cannot be applied."""
    log, using = move.log_id, move.target
    skips = list(plain(SkippedEvent, move.source).filter(log_id=log))
    positions: dict[int, int] = {}
    for some in batched(sorted({each.index for each in skips}), ROWS):
        rows = plain(Event, using).filter(log_id=log.uuid, index__in=some)
        positions.update(rows.values_list("index", "position"))
    for each in skips:
        each.pk, each.position = None, positions[each.index]
    model: type[models.Model] = SkippedEvent
    QuerySet(model, using=using).bulk_create(skips, batch_size=ROWS, ignore_conflicts=True)
