"""Reads that also look up an idempotency key, in the same statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eventlogs.exceptions import LogNotFound
from eventlogs.ids import LogId
from eventlogs.stores.base import STREAM_PAGE, AppendRequest, BaseStore, Claim
from eventlogs.values import LogState, StoredEvent


class KeyedReads(BaseStore):
    """
    A store that looks up one key with each read of the events behind a cached reduction.

    ``claim`` then returns the claim that the last read has found, without a query. Right because:
    the key is looked up in the snapshot of that read or later. So if the events that were read
    include those of the key's append, the key is found.
    """

    def __init__(self, store: BaseStore, log_type: str, idempotency_key: str) -> None:
        self.using = store.using
        self._store = store
        self._key = log_type, idempotency_key
        self._is_looked_up = False
        self._claim: Claim | None = None

    def since(self, log_id: LogId, *, start: int, limit: int) -> Sequence[StoredEvent]:
        events, self._claim = self._store.since_with_claim(
            log_id, self._key, start=start, limit=limit
        )
        self._is_looked_up = True
        return events

    def claim(self, log_type: str, idempotency_key: str) -> Claim | None:
        if self._is_looked_up and (log_type, idempotency_key) == self._key:
            return self._claim
        return self._store.claim(log_type, idempotency_key)

    # These reads do not look the key up. They may be newer than the last look-up, which is dropped.

    def events(
        self, log_id: LogId, *, start: int, limit: int, reverse: bool = False
    ) -> Sequence[StoredEvent]:
        self._is_looked_up = False
        return self._store.events(log_id, start=start, limit=limit, reverse=reverse)

    def pages(
        self, log_id: LogId, *, start: int = 0, page: int = STREAM_PAGE
    ) -> Iterator[Sequence[StoredEvent]]:
        self._is_looked_up = False
        return self._store.pages(log_id, start=start, page=page)

    def version(self, log_id: LogId) -> int:
        return self._store.version(log_id)

    def missing(self, log_id: LogId) -> LogNotFound:
        return self._store.missing(log_id)

    def append(self, request: AppendRequest) -> LogState:
        return self._store.append(request)
