"""Moving a log from the first step to the last, and abandoning a move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple
from uuid import uuid4

from django.db import DatabaseError, transaction

from eventlogs.exceptions import (
    CannotMove,
    EventLogError,
    LogNotFound,
    ProjectionFailed,
    ProjectionUnavailable,
)
from eventlogs.ids import LogId
from eventlogs.models import EventLog, LogMove
from eventlogs.operations import erasure
from eventlogs.operations.archiving.tables import plain
from eventlogs.operations.jsonl import SEAL_LOG_TYPE
from eventlogs.operations.moving import steps, waiting
from eventlogs.operations.moving.steps import Move
from eventlogs.projections import rebuild
from eventlogs.projections.base import RowProjection, declared
from eventlogs.routing import databases_of
from eventlogs.stores import erasing
from eventlogs.stores.moves import newest_move

MAX_NAME: Final = 255  # characters of ``by``
LOOKS: Final = 10  # at a log that other calls move at the same time


class Moved(NamedTuple):
    """
    A log that is in the target now.

    ``is_new`` is False if an earlier call has moved it: this one has only removed copies.
    ``to_rebuild`` are projections of the source with rows that several logs share, and rebuilds
    that are running there. ``unmade`` are inline projections of the target that could not make the
    log's row: the next append, or their worker, says why.
    """

    log_id: LogId
    events: int
    is_new: bool
    rows: tuple[str, ...]  # projections whose row was removed in the source
    to_rebuild: tuple[str, ...]
    unmade: tuple[str, ...]


def _nobody(_: int) -> None:
    return None


def move(
    log_id: LogId | str,
    *,
    source: str,
    target: str,
    by: str,
    timeout: float = 60.0,
    tell: Callable[[int], None] = _nobody,
) -> Moved:
    """
    Move a log from one database to another one, while others read it and append to it.

    Events keep their times, keys and digests, and get new positions. From the moment when the copy
    begins until the router sends the log to the target, appends raise LogMoved. Reactors of the
    target do not react to the events that have moved: those of the source have.

    ``source`` and ``target`` are aliases. ``by``, at most 255 characters, is the name of who does
    it, for people. ``timeout`` is how many seconds to wait for the projections and reactors of the
    source to come to the log's last event, before the log takes no events and once more after it.
    ``tell`` is called with numbers of copied events. In PostgreSQL the role that ``source``
    connects as must own the table of events.

    Calling it again is safe, and ends what a process that was killed has begun. If an error is
    raised, the log is in the source, and takes events there; unless the process could not reach
    the databases any more, or the copy was complete: then call it again.

    Raise ValueError for a name out of range, InvalidLogId, LogNotFound (LogErased, LogArchived,
    LogMoved) for a log that is not in the source, CannotMove, CannotErase if the role does not own
    the table, TransactionMustRetry, and RuntimeError inside of a transaction. Raise what
    ``erasure.forget_copies`` raises: then the log is in the target, and copies may be left.
    """
    log = log_id if isinstance(log_id, LogId) else LogId.parse(log_id)
    by = by.strip()
    if not by or len(by) > MAX_NAME:
        raise ValueError(f"by is {by!r}. It must be a name of 1 to {MAX_NAME} characters.")
    _refuse_places(log, source, target)
    _refuse_transactions(source, target)
    erasing.check_owner(source)
    for _ in range(LOOKS):
        attempt = _begun(log, source, target, by, timeout)
        if attempt is None:
            continue
        found, is_new = attempt
        events = _copied(found, timeout, tell) if is_new else _version(found)
        unmade = _make_rows(log, target)
        steps.take_out(found)
        copies = erasure.forget_copies(log, using=source)
        return Moved(log, events, is_new, copies.rows, copies.to_rebuild, unmade)
    raise CannotMove(log, reason="overtaken", using=source, to=target)


def abandon(log_id: LogId | str, *, source: str, target: str) -> None:
    """
    End a move that was begun and is not complete: the log takes events in the source again.

    Calling it again is safe. A call that is moving the log at the same time raises CannotMove.

    Raise CannotMove if no move was begun, or if the copy is complete already, which makes the
    target the place of the log. Raise InvalidLogId, and RuntimeError inside of a transaction.
    """
    log = log_id if isinstance(log_id, LogId) else LogId.parse(log_id)
    nothing = CannotMove(log, reason="nothing", using=source, to=target)
    there = newest_move(source, log)
    if there is not None and there.state == LogMove.LEAVING:
        if there.other != target:
            raise _elsewhere(log, source, target, there)
        _go_back(Move(log, source, target, there.token))
        return
    arriving = newest_move(target, log)
    if arriving is None or arriving.state != LogMove.ARRIVING or arriving.other != source:
        raise nothing
    # Announced, and the source was not reached: the log is there as it was.
    steps.withdraw(Move(log, source, target, arriving.token))


def _refuse_places(log: LogId, source: str, target: str) -> None:
    reason = ""
    databases = databases_of(log.log_type)
    if source == target:
        reason = "same"
    elif log.log_type == SEAL_LOG_TYPE:
        reason = "seals"
    elif databases and target not in databases:
        reason = "unknown"
    if reason:
        raise CannotMove(log, reason=reason, using=source, to=target)


def _refuse_transactions(*aliases: str) -> None:
    """Raise RuntimeError inside of a transaction: a step, once committed, has no rollback."""
    for alias in aliases:
        with transaction.atomic(using=alias, durable=True):
            pass


def _begun(
    log: LogId, source: str, target: str, by: str, timeout: float
) -> tuple[Move, bool] | None:
    """
    Return the attempt to go on with, and whether its copy may be missing; begin one if need be.

    Return None if the log was changed by another call meanwhile: look again.
    """
    last = newest_move(source, log)
    if last is not None and last.state == LogMove.LEFT and last.other == target:
        return Move(log, source, target, last.token, by), False
    if last is not None and last.state == LogMove.LEAVING:
        if last.other != target:
            raise _elsewhere(log, source, target, last)
        found = Move(log, source, target, last.token, by)
        if plain(LogMove, target).filter(token=last.token).exists():
            return found, True
        # Another call has withdrawn it: it never arrives with this token.
        _go_back(found)
        return None
    row = plain(EventLog, source).filter(pk=log.uuid, log_type=log.log_type).first()
    if row is None:
        raise erasing.missing(source, log)
    waiting.wait(log, source=source, target=target, timeout=timeout)
    found = Move(log, source, target, uuid4(), by)
    try:
        steps.announce(found, is_chained=row.head is not None)
    except CannotMove:
        if newest_move(source, log) != last:
            return None
        raise
    try:
        if steps.leave(found):
            return found, True
    except BaseException:
        _go_back_if_possible(found)
        raise
    _go_back(found)
    return None


def _copied(found: Move, timeout: float, tell: Callable[[int], None]) -> int:
    """Copy the log, when all have read it, and return the number of its events."""
    arrived = plain(LogMove, found.target).filter(token=found.token, state=LogMove.ARRIVED)
    if arrived.exists():
        return _version(found)
    try:
        waiting.wait(found.log_id, source=found.source, target=found.target, timeout=timeout)
        return steps.copy(found, tell=tell)
    except BaseException:
        _go_back_if_possible(found)
        raise


def _version(found: Move) -> int:
    """Return the number of events that have moved."""
    version: int = plain(LogMove, found.source).get(token=found.token).version
    return version


def _make_rows(log: LogId, target: str) -> tuple[str, ...]:
    """
    Make the rows of inline projections, as an append would have; return those that failed.

    Other projections come to the events through the feed.
    """
    unmade: list[str] = []
    for each in declared(RowProjection, using=target):
        types = each.log_types_read()
        if each.mode != each.INLINE or (types is not None and log.log_type not in types):
            continue
        try:
            rebuild.rebuild_log(each, log, using=target)
        except (ProjectionFailed, ProjectionUnavailable):
            unmade.append(each.name)
        except LogNotFound:  # it has moved on, or was erased there
            continue
    return tuple(unmade)


def _go_back(found: Move) -> None:
    if not steps.withdraw(found):
        raise found.refused("arrived")
    steps.go_back(found)


def _go_back_if_possible(found: Move) -> None:
    """Let the log be where it was; if a database does not answer, the next call does it."""
    with suppress(EventLogError, DatabaseError):
        _go_back(found)


def _elsewhere(log: LogId, source: str, target: str, last: Any) -> CannotMove:
    return CannotMove(log, reason="elsewhere", using=source, to=target, other=last.other)
