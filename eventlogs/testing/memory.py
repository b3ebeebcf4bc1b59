"""
A store in memory, for unit tests: the same contract as the real ones, without a database.

It keeps what a database would keep (JSON text, not objects), so that codec and gate are
tested with it. It takes no part in transactions: a rollback takes nothing back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from threading import RLock
from typing import NamedTuple
from uuid import UUID

from msgspec.structs import replace

from eventlogs.events.codec import request_fingerprints
from eventlogs.exceptions import HistoryDiffers
from eventlogs.ids import LogId
from eventlogs.stores.base import AppendRequest, BaseStore, Claim, refusal
from eventlogs.stores.restore import ExportedEvent, Known, Restored, compare, plan
from eventlogs.testing import clock
from eventlogs.values import LogState, StoredEvent


class _Log(NamedTuple):
    log_type: str
    events: list[StoredEvent]


class MemoryStore(BaseStore):
    """
    Logs in this process' memory; safe to use from several threads.

    ``now`` returns the time that appended events get, an aware datetime: by default that of
    Python's clock, or the moment at which ``freeze_recorded_at`` has stopped it.
    """

    def __init__(self, *, now: Callable[[], datetime] = clock.now) -> None:
        self._now = now
        self._lock = RLock()
        self._logs: dict[UUID, _Log] = {}
        self._claims: dict[tuple[str, str], Claim] = {}
        self._position = 0

    def append(self, request: AppendRequest) -> LogState:
        log_id, key = request.log_id, request.idempotency_key
        with self._lock:
            log = self._logs.get(log_id.uuid)
            known = log is not None and (
                log.log_type == log_id.log_type or request.expected_version == 0
            )
            version = len(log.events) if log is not None and known else 0
            claim = self._claims.get((log_id.log_type, key)) if key is not None else None
            position = log.events[-1].position if log is not None and version else None
            refused = refusal(request, claim, version, position)
            if refused is not None:
                raise refused
            if log is None:
                log = self._logs[log_id.uuid] = _Log(log_id.log_type, [])
            state = self._insert(log, version, request)
            if key is not None:
                self._claims[log_id.log_type, key] = Claim(
                    log_id=log_id,
                    first_index=version,
                    count=len(request.events),
                    fingerprint=next(request_fingerprints(request.events)),
                    position=state.position,
                )
            return state

    def _insert(self, log: _Log, version: int, request: AppendRequest) -> LogState:
        now = self._now()
        if log.events:
            now = max(now, log.events[-1].recorded_at)
        for event in request.events:
            # As jsonb does: what cannot be stored there must not pass a unit test either.
            json.loads(event.data)
            self._position += 1
            log.events.append(
                StoredEvent(
                    request.log_id,
                    len(log.events),
                    self._position,
                    event.type,
                    event.schema_version,
                    event.data,
                    request.metadata,
                    request.idempotency_key,
                    now,
                )
            )
        return LogState(request.log_id, version + len(request.events), self._position)

    def restore(self, events: Sequence[ExportedEvent]) -> Restored:
        with self._lock:
            known = {}
            for event, _, _ in events:
                log = self._logs.get(event.log_id.uuid, _Log(event.log_type, []))
                last = log.events[-1].recorded_at if log.events else None
                known[event.log_id.uuid] = Known(log.log_type, len(log.events), last)
            new, present, refusal = plan(events, known)
            for event in present:
                compare(event, self._logs[event.log_id.uuid].events[event.index])
            if refusal is not None:
                raise refusal
            for exported in new:
                self._check_claim(exported)
            for exported in new:
                self._restore(exported)
            return Restored(len(new), len(present))

    def _check_claim(self, exported: ExportedEvent) -> None:
        event = exported.event
        claim = self._claims.get((event.log_type, event.idempotency_key or ""))
        if (
            exported.claim is not None
            and claim is not None
            and (claim.log_id, claim.first_index) != (event.log_id, event.index)
        ):
            raise HistoryDiffers(
                event.log_id,
                index=event.index,
                reason=f"its idempotency key is that of event {claim.first_index} of "
                f"{claim.log_id} here",
            )

    def _restore(self, exported: ExportedEvent) -> None:
        event, claim, _ = exported
        self._position += 1
        log = self._logs.setdefault(event.log_id.uuid, _Log(event.log_type, []))
        log.events.append(replace(event, position=self._position))
        if claim is not None and event.idempotency_key is not None:
            self._claims[event.log_type, event.idempotency_key] = Claim(
                log_id=event.log_id,
                first_index=event.index,
                count=claim.count,
                fingerprint=claim.fingerprint,
                position=self._position + claim.count - 1,
            )

    def claim(self, log_type: str, idempotency_key: str) -> Claim | None:
        with self._lock:
            return self._claims.get((log_type, idempotency_key))

    def version(self, log_id: LogId) -> int:
        return len(self._events(log_id))

    def events(
        self, log_id: LogId, *, start: int, limit: int, reverse: bool = False
    ) -> Sequence[StoredEvent]:
        with self._lock:
            events = self._events(log_id)
            if not reverse:
                return events[start : start + limit]
            end = min(start + 1, len(events))
            return events[max(end - limit, 0) : end][::-1]

    def _events(self, log_id: LogId) -> list[StoredEvent]:
        log = self._logs.get(log_id.uuid)
        return log.events if log is not None and log.log_type == log_id.log_type else []
