"""
Reading a log that is being moved to another database, and is still in this one.

Its row in EventLog is a mark already, so that it takes no events. The events themselves are where
they were, until the copy is complete.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventlogs.exceptions import EventLogError, LogNotFound
from eventlogs.ids import LogId
from eventlogs.stores.base import AppendRequest
from eventlogs.stores.moves import error_of, newest_move
from eventlogs.stores.portable import PortableStore
from eventlogs.values import LogState, StoredEvent


class LeavingStore(PortableStore):
    """One log that is leaving: it is read through the ORM, in any database."""

    def __init__(self, using: str, log_id: LogId, version: int, refusal: LogNotFound) -> None:
        super().__init__(using)
        self._log_id = log_id
        self._version = version
        self._refusal = refusal

    def version(self, log_id: LogId) -> int:
        return self._version if log_id == self._log_id else 0

    def missing(self, log_id: LogId) -> LogNotFound:
        return self._refusal

    def append(self, request: AppendRequest) -> LogState:
        raise self._refusal


def leaving_store(using: str, log_id: LogId) -> LeavingStore | None:
    """
    Return a store that reads a log that is leaving, or None for any other log.

    Raise LogMoved for a log that has left, and for one that is arriving.
    """
    move = newest_move(using, log_id)
    if move is None or move.state == move.ARRIVED:
        return None
    moved = error_of(move, log_id, using)
    if move.state != move.LEAVING:
        raise moved
    return LeavingStore(using, log_id, move.version, moved)


def page_of_leaving(using: str, log_id: LogId, *, start: int, limit: int) -> Sequence[StoredEvent]:
    """Return a page of a log that is leaving, and nothing of any other log."""
    try:
        store = leaving_store(using, log_id)
    except EventLogError:
        return []
    return [] if store is None else store.events(log_id, start=start, limit=limit)
