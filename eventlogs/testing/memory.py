"""
A store in memory, for unit tests: the same contract as the real ones, without a database.

It keeps what a database would keep (JSON text, not objects), so that encoding and validation are
tested with it. It takes no part in transactions: a rollback undoes nothing.
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
from eventlogs.events.unique import UniqueValue
from eventlogs.exceptions import ImportDiffers
from eventlogs.ids import LogId
from eventlogs.stores.base import (
    AppendRequest,
    BaseStore,
    Claim,
    Rules,
    refusal,
    rules_refusal,
)
from eventlogs.stores.restore import (
    ExportedEvent,
    Known,
    Restored,
    compare,
    of_new_logs,
    plan,
    values_of,
    without_taken_keys,
)
from eventlogs.stores.unique_values import Taken
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

    keeps_rules = True
    encrypts = False  # it keeps nothing, and its tests need no keys

    def __init__(self, *, now: Callable[[], datetime] = clock.now) -> None:
        self._now = now
        self._lock = RLock()
        self._logs: dict[UUID, _Log] = {}
        self._claims: dict[tuple[str, str], Claim] = {}
        self._owners: dict[UniqueValue, LogId] = {}
        self._values: dict[tuple[LogId, str], UniqueValue] = {}
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
            if refused is None and request.rules is not None:
                states = self._states(request.rules)
                refused = rules_refusal(request.rules, log_id, states, self._owners)
            if refused is not None:
                raise refused
            for value in request.rules.values if request.rules is not None else ():
                self._claim_value(log_id, value)
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

    def _states(self, rules: Rules) -> dict[LogId, tuple[int, int | None]]:
        return {
            other.log_id: (len(events), events[-1].position)
            for other in rules.others
            if (events := self._events(other.log_id))
        }

    def _claim_value(self, log_id: LogId, value: UniqueValue) -> None:
        """Let a log have a value that is free; a value of another log stays there."""
        had = self._values.pop((log_id, value.scope), None)
        if had is not None:
            del self._owners[had]
        if value.digest is not None and self._owners.setdefault(value, log_id) == log_id:
            self._values[log_id, value.scope] = value

    def owner(self, value: UniqueValue) -> LogId | None:
        with self._lock:
            return self._owners.get(value)

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

    def restore_new_logs(self, events: Sequence[ExportedEvent]) -> frozenset[LogId]:
        with self._lock:
            events = without_taken_keys(events, self._claims)
            new = of_new_logs(events, self._known(events))
            for exported in new:
                self._restore(exported)
            self._restore_values(new)
            return frozenset(each.event.log_id for each in new)

    def _known(self, events: Sequence[ExportedEvent]) -> dict[UUID, Known]:
        known = {}
        for event, *_ in events:
            log = self._logs.get(event.log_id.uuid, _Log(event.log_type, []))
            last = log.events[-1].recorded_at if log.events else None
            known[event.log_id.uuid] = Known(log.log_type, len(log.events), last)
        return known

    def restore(self, events: Sequence[ExportedEvent]) -> Restored:
        with self._lock:
            known = self._known(events)
            new, present, refusal = plan(events, known)
            for event in present:
                compare(event, self._logs[event.log_id.uuid].events[event.index])
            if refusal is not None:
                raise refusal
            for exported in new:
                self._check_claim(exported)
            for exported in new:
                self._restore(exported)
            return Restored(len(new), len(present), tuple(self._restore_values(new)))

    def _restore_values(self, new: Sequence[ExportedEvent]) -> list[Taken]:
        found = values_of(each.event for each in new)
        values = [
            (log_id, UniqueValue(scope, digest))
            for log_id, by_scope in found.items()
            for scope, digest in by_scope.items()
        ]
        for log_id, value in values:  # all are released before one is claimed
            self._claim_value(log_id, UniqueValue(value.scope, None))
        for log_id, value in values:
            self._claim_value(log_id, value)
        return [
            Taken(log_id, value.scope, self._owners[value])
            for log_id, value in values
            if value.digest is not None and self._owners[value] != log_id
        ]

    def _check_claim(self, exported: ExportedEvent) -> None:
        event = exported.event
        claim = self._claims.get((event.log_type, event.idempotency_key or ""))
        if (
            exported.claim is not None
            and claim is not None
            and (claim.log_id, claim.first_index) != (event.log_id, event.index)
        ):
            raise ImportDiffers(
                event.log_id,
                index=event.index,
                reason=f"its idempotency key is that of event {claim.first_index} of "
                f"{claim.log_id} here",
            )

    def _restore(self, exported: ExportedEvent) -> None:
        event, claim, *_ = exported
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
