"""
The store for any database that Django knows: the ORM, row locks, unique constraints.

Why it is right. On SQLite a transaction is IMMEDIATE (a system check sees to it), so there is
one writer at a time. Elsewhere every writer of a log first locks the log's row, with
``select_for_update``; a log that does not exist yet is claimed by
inserting its row at version 0, which makes a racing creator wait for this transaction's end.
Rows are claimed by inserting them unless they are there (``claims.py``), and read again, so a
lost race is no database error. The unique constraints on (log, index) and
(log type, key) are the last safeguard: without any of the above, they would still refuse a
duplicate.

A log's row at version 0 is never committed: the transaction that inserted it raises its version,
or deletes the row.

On MySQL and MariaDB under REPEATABLE READ, a plain read answers from a snapshot that may be older
than the lock, and only a locking read sees what is committed. So the version is read by the lock,
the time of the last append by a second locking read, and a key is looked at a second time, by a
locking read, before an append is refused for another reason, and after an insert has found it
taken. Not the first time: a locking read that finds nothing locks the gap where the row would be,
and two callers with new keys would be a deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any, NamedTuple, TypeVar, cast
from uuid import UUID

from django.apps import apps
from django.db import Error, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, QuerySet, Value
from django.db.models.functions import Cast, Greatest

from eventlogs import conf
from eventlogs.conf import MAX_VERSION
from eventlogs.events import chain
from eventlogs.events.codec import request_fingerprints
from eventlogs.events.unique import UniqueValue
from eventlogs.exceptions import EventLogError, LogAlreadyExists, LogNotFound
from eventlogs.ids import LogId
from eventlogs.stores import buckets, layouts, mariadb, stored_types, unique_values
from eventlogs.stores.base import (
    AppendRequest,
    BaseStore,
    Claim,
    Rules,
    claim_of,
    refusal,
    rules_refusal,
)
from eventlogs.stores.claims import insert_missing
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.columns import STORED, events_of_log
from eventlogs.stores.erasing import NO_LOG_TYPE, gone, missing
from eventlogs.stores.restore import (
    ExportedEvent,
    Restored,
    note_restored,
    raise_versions,
    restore,
    restore_new_logs,
)
from eventlogs.stores.retries import given_up, in_transaction, run_again, run_in_transaction
from eventlogs.values import LogState, StoredEvent

T = TypeVar("T")

INSERT_BATCH = 500  # rows of one INSERT
MAX_INSERT = 2_000_000  # characters of their JSON: MariaDB takes 16 MiB at once by default
LOOKS = 20  # attempts to claim a key or a unique value that others take and give back meanwhile
NO_RULES = Rules()


class Locked(NamedTuple):
    """What is in the row of a log that is locked."""

    log_type: str
    version: int
    head: bytes | None  # the digest of the last event, in a log that is chained


NOT_THERE = Locked("", 0, None)


class PortableStore(BaseStore):
    """Logs in a database, through the ORM."""

    using: str
    keeps_rules = True

    def __init__(self, using: str) -> None:
        self.using = using

    def append(self, request: AppendRequest) -> LogState:
        try:
            answer = run_again(self.using, lambda connection: self._attempt(connection, request))
        except Error as error:
            if connections[self.using].in_atomic_block:
                # The log's version may be raised, and its events are not stored.
                connections[self.using].set_rollback(True)
            layouts.refuse(error, self.using)
            raise
        if isinstance(answer, EventLogError):
            raise answer
        stored_types.note(connections[self.using], request.log_id.log_type, request.events)
        return answer

    def _attempt(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | EventLogError:
        """Return the new state or the refusal; raising it would roll a caller's block back."""
        refused = mariadb.refusal(connection, request.log_id, request.events, request.metadata)
        if refused is not None:
            return refused
        if connection.in_atomic_block:
            return self._claim_and_insert(connection, request)
        if connection.vendor == "sqlite" and in_transaction(connection):
            # There is no savepoint without a transaction, and none has begun: its end would commit.
            layouts.check(connection)
            return self._claim_and_insert(connection, request)
        # A savepoint where autocommit is off: after an error, the caller may commit the rest.
        with transaction.atomic(using=self.using):
            return self._claim_and_insert(connection, request)

    def in_turn(
        self,
        log_id: LogId,
        call: Callable[[], T],
        *,
        conflicts: int,
        others: Sequence[LogState] = (),
    ) -> T:
        connection = connections[self.using]
        ids = [log_id.uuid, *[each.log_id.uuid for each in others]]

        def locked() -> T:
            self._lock_all(connection, ids)
            return call()

        if not in_transaction(connection):
            return run_in_transaction(self.using, locked)
        self._read(lambda: self._lock_all(connection, ids))
        return call()

    def _claim_and_insert(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | EventLogError:
        log_id, key, count = request.log_id, request.idempotency_key, len(request.events)
        rules = request.rules or NO_RULES
        logs = self._rows("EventLog").filter(pk=log_id.uuid)
        # A locking read of a row that is not there would lock the gap on MySQL; see above.
        is_new = request.expected_version == 0 and not logs.exists()
        ids = [each.log_id.uuid for each in rules.others]
        known = self._lock_all(connection, ids if is_new else [log_id.uuid, *ids])
        locked = known.get(log_id.uuid)
        claimed_log = locked is None and request.expected_version == 0
        if claimed_log:
            # Not before the key is looked at: a replayed create leaves nothing to take back.
            refused = refusal(request, self._claim(log_id.log_type, key), 0, None)
            if refused is not None:
                return refused
            locked = self._claim_log(connection, log_id)
        log_type, version, head = locked or Locked(log_id.log_type, 0, None)
        is_gone = log_type == NO_LOG_TYPE
        if log_type != log_id.log_type and request.expected_version != 0:
            version = 0  # the UUID is another type's: this log does not exist

        position = None
        if request.expected_position is not None:
            position = self._position(log_id.uuid, version - 1, locking=True)
        claim = self._claim(log_id.log_type, key)
        refused = refusal(request, claim, version, position)
        if refused is not None and claim is None:
            claim = self._claim(log_id.log_type, key, locking=True)
            refused = refusal(request, claim, version, position)
        if refused is None and rules.others:
            refused = rules_refusal(rules, log_id, self._states(rules.others, known), {})
        claimed: list[UniqueValue] = []
        stale: list[UniqueValue] = []
        if refused is None and rules.values:
            refused = self._claim_values(request, version, rules.values, claimed, stale)
        if refused is None and key is not None:
            refused = self._claim_key(request, key, version)
        if refused is not None:
            unique_values.delete(self.using, log_id, claimed)
            if claimed_log and version == 0:
                self._give_log_back(log_id)
            if isinstance(refused, LogNotFound | LogAlreadyExists) and is_gone:
                return gone(self.using, log_id, any_type=True) or refused
            if isinstance(refused, LogNotFound) and refused.log_id != log_id:
                return missing(self.using, refused.log_id)
            return refused

        unique_values.delete(self.using, log_id, stale)
        now = Greatest(UTCNow(), F("updated_at"))
        if head is not None:
            # Locked, so this waits for nobody: a snapshot may not show the row, or an older time.
            row = self._locking("EventLog", True).filter(pk=log_id.uuid)
            recorded_at = row.values_list(now, flat=True).get()
            events = _stored(request, version, recorded_at)
            digests: list[bytes | None] = list(chain.chained(bytes(head), events))
            # The log's row is locked: no other append has read the head that this one replaces.
            logs.update(version=F("version") + count, updated_at=recorded_at, head=digests[-1])
        else:
            logs.update(version=F("version") + count, updated_at=now)
            recorded_at = logs.values_list("updated_at", flat=True).get()
            events = _stored(request, version, recorded_at)
            digests = [None] * count
        at = self._insert_all(events, digests)
        if at is None:
            at = self._position(log_id.uuid, version + count - 1, locking=False)
        return LogState(log_id, version + count, cast("int", at))

    def _lock(self, connection: BaseDatabaseWrapper, logs: QuerySet[Any]) -> Locked | None:
        """Lock the log's row until the transaction ends; return what is in it."""
        no_key = connection.features.has_select_for_no_key_update
        row = (
            logs.select_for_update(no_key=no_key).values_list("log_type", "version", "head").first()
        )
        return None if row is None else Locked(*row)

    def _lock_all(self, connection: BaseDatabaseWrapper, ids: Sequence[UUID]) -> dict[UUID, Locked]:
        """
        Lock the rows of logs until the transaction ends; return what is in them.

        They are locked in the order of their ids, by one statement, so that two appends that
        expect something of each other's logs do not deadlock.
        """
        if len(ids) == 1:
            row = self._lock(connection, self._rows("EventLog").filter(pk=ids[0]))
            return {} if row is None else {ids[0]: row}
        if not ids:
            return {}
        logs = self._rows("EventLog").filter(pk__in=ids).order_by("pk")
        no_key = connection.features.has_select_for_no_key_update
        locked = logs.select_for_update(no_key=no_key).values_list(
            "pk", "log_type", "version", "head"
        )
        return {pk: Locked(*row) for pk, *row in locked}

    def _states(
        self, others: Sequence[LogState], known: dict[UUID, Locked]
    ) -> dict[LogId, tuple[int, int | None]]:
        """Return the versions of logs that are locked, and the positions of their last events."""
        states: dict[LogId, tuple[int, int | None]] = {}
        for each in others:
            log_type, version, _ = known.get(each.log_id.uuid, NOT_THERE)
            if log_type == each.log_id.log_type and version:
                position = self._position(each.log_id.uuid, version - 1, locking=True)
                states[each.log_id] = version, position
        return states

    def _claim_values(
        self,
        request: AppendRequest,
        version: int,
        values: Sequence[UniqueValue],
        claimed: list[UniqueValue],
        stale: list[UniqueValue],
    ) -> EventLogError | None:
        """
        Claim unique values for the log, which is locked; return the refusal where one is taken.

        Those that it did not have before are added to ``claimed``, those that it must release to
        ``stale``.
        """
        log_id = request.log_id
        own = unique_values.of_logs(self.using, [log_id], locking=self._is_old(log_id, version))
        had = {UniqueValue(scope, each) for scope, all_ in own[log_id].items() for each in all_}
        new = [each for each in values if each.digest is not None and each not in had]
        for _ in range(LOOKS):
            unique_values.insert(self.using, dict.fromkeys(new, log_id))
            owners = unique_values.owners(self.using, new, locking=True)
            if len(owners) == len(new):
                claimed += [each for each in new if owners[each] == log_id]
                scopes = {each.scope for each in values}
                stale += [each for each in had if each.scope in scopes and each not in values]
                return rules_refusal(Rules(new), log_id, {}, owners)
            # Another log had one of them, and released it before it could be read: claim again.
        raise given_up(self.using)

    def _is_old(self, log_id: LogId, version: int) -> bool:
        """Return whether this transaction's snapshot is older than the lock of the log."""
        if connections[self.using].vendor != "mysql":
            return False
        seen = self._rows("EventLog").filter(pk=log_id.uuid).values_list("version", flat=True)
        return bool(seen.first() != version)

    def _claim_log(self, connection: BaseDatabaseWrapper, log_id: LogId) -> Locked:
        model = apps.get_model("eventlogs", "EventLog")
        row = model(
            id=log_id.uuid,
            log_type=log_id.log_type,
            version=0,
            created_at=UTCNow(),
            updated_at=UTCNow(),
            head=chain.FIRST if conf.chain() else None,
        )
        insert_missing(self.using, [row])
        locked = self._lock(connection, self._rows("EventLog").filter(pk=log_id.uuid))
        # None: its row is another transaction's that this one's snapshot does not show.
        return locked or Locked(log_id.log_type, MAX_VERSION, None)

    def _give_log_back(self, log_id: LogId) -> None:
        """Delete the row of a log that was claimed, and whose append is refused."""
        # The public delete() is refused here, and would load the row first.
        self._rows("EventLog").filter(pk=log_id.uuid)._raw_delete(self.using)

    def _claim_key(self, request: AppendRequest, key: str, version: int) -> EventLogError | None:
        """Claim the key for this append; return the refusal where somebody else has it."""
        model = apps.get_model("eventlogs", "IdempotencyKey")
        row = model(
            log_type=request.log_id.log_type,
            key=key,
            log_id=request.log_id.uuid,
            first_index=version,
            count=len(request.events),
            fingerprint=next(request_fingerprints(request.events)),
            created_at=UTCNow(),
        )
        for _ in range(LOOKS):
            insert_missing(self.using, [row])
            holder = (
                self._locking("IdempotencyKey", True)
                .filter(log_type=request.log_id.log_type, key=key)
                .values_list("log_id", "first_index")
                .first()
            )
            # The log's row is locked: nobody else can have claimed a key for this very index.
            if holder == (request.log_id.uuid, version):
                return None
            claim = self._claim(request.log_id.log_type, key, locking=True)
            if claim:
                return refusal(request, claim, version, None)
            # Somebody else had the key, and it was pruned before it could be read: claim again.
            row.pk = None
        raise given_up(self.using)

    def _insert_all(
        self, events: Sequence[StoredEvent], digests: Iterable[bytes | None]
    ) -> int | None:
        """
        Insert events at new positions, in statements that are not too long.

        Return the last position if it was taken from a counter, and None if the database assigned
        it.
        """
        model = apps.get_model("eventlogs", "Event")
        json = models.JSONField()
        positions: Iterable[int | None] = repeat(None)  # the database assigns them
        if conf.has_buckets():
            positions = buckets.take_positions(self.using, [each.log_id.uuid for each in events])
        rows: list[Any] = []
        characters, position = 0, None
        for each, digest, position in zip(events, digests, positions, strict=False):
            size = len(each.data) + len(each.metadata)
            if rows and characters + size > MAX_INSERT:
                self._rows("Event").bulk_create(rows, batch_size=INSERT_BATCH)
                rows, characters = [], 0
            characters += size
            rows.append(
                model(
                    position=position,
                    log_type=each.log_type,
                    log_id=each.log_id.uuid,
                    index=each.index,
                    type=each.type,
                    schema_version=each.schema_version,
                    data=Cast(Value(each.data), json),
                    metadata=Cast(Value(each.metadata), json),
                    idempotency_key=each.idempotency_key,
                    recorded_at=each.recorded_at,
                    digest=digest,
                )
            )
        self._rows("Event").bulk_create(rows, batch_size=INSERT_BATCH)
        return position

    def owner(self, value: UniqueValue) -> LogId | None:
        return self._read(lambda: unique_values.owners(self.using, [value])).get(value)

    def claim(self, log_type: str, idempotency_key: str) -> Claim | None:
        return self._read(lambda: self._claim(log_type, idempotency_key))

    def _read(self, read: Callable[[], T]) -> T:
        # Where transactions are SERIALIZABLE by default, a read may have to be run again too.
        return run_again(self.using, lambda connection: read())

    def _claim(self, log_type: str, key: str | None, *, locking: bool = False) -> Claim | None:
        """Return the claim of a key; with ``locking``, also one that a snapshot does not show."""
        if key is None:
            return None
        row = (
            self._locking("IdempotencyKey", locking)
            .filter(log_type=log_type, key=key)
            .values_list("log_id", "first_index", "count", "fingerprint")
            .first()
        )
        if row is None:
            return None
        log, first_index, count, fingerprint = row
        position = self._position(log, first_index + count - 1, locking=locking)
        return claim_of(log_type, log, first_index, count, fingerprint, position)

    def _position(self, log: UUID, index: int, *, locking: bool) -> int | None:
        """Return the position of an event, or None where there is none."""
        events = self._locking("Event", locking).filter(log_id=log, index=index)
        position: int | None = events.values_list("position", flat=True).first()
        return position

    def version(self, log_id: LogId) -> int:
        logs = self._rows("EventLog").filter(pk=log_id.uuid, log_type=log_id.log_type)
        version: int | None = self._read(logs.values_list("version", flat=True).first)
        return version or 0

    def missing(self, log_id: LogId) -> LogNotFound:
        return self._read(lambda: missing(self.using, log_id))

    def events(
        self, log_id: LogId, *, start: int, limit: int, reverse: bool = False
    ) -> Sequence[StoredEvent]:
        events = self._rows("Event").filter(log_id=log_id.uuid, log_type=log_id.log_type)
        if reverse:
            events = events.filter(index__lte=start).order_by("-index")
        else:
            events = events.filter(index__gte=start).order_by("index")
        page = events.values_list(*STORED)[:limit]
        return self._read(lambda: events_of_log(log_id, page.all()))

    def restore(self, events: Sequence[ExportedEvent]) -> Restored:
        return run_again(self.using, lambda _: restore(self.using, events, self._insert_restored))

    def restore_new_logs(self, events: Sequence[ExportedEvent]) -> frozenset[LogId]:
        return run_again(
            self.using, lambda _: restore_new_logs(self.using, events, self._insert_restored)
        )

    def _insert_restored(self, events: Sequence[ExportedEvent]) -> None:
        stored = [each.event for each in events]
        for event in stored:
            refused = mariadb.refusal(
                connections[self.using], event.log_id, [event], event.metadata
            )
            if refused is not None:
                raise refused
        self._insert_all(stored, [each.digest for each in events])
        raise_versions(self.using, events)
        note_restored(connections[self.using], events)

    def _locking(self, model: str, locking: bool) -> QuerySet[Any]:
        """Return rows; with ``locking``, also those that a snapshot does not show."""
        rows = self._rows(model)
        is_needed = locking and connections[self.using].vendor == "mysql"
        return rows.select_for_update() if is_needed else rows

    def _rows(self, model: str) -> QuerySet[Any]:
        # A plain queryset: those of the models refuse to write. By name: models import stores.
        return QuerySet(apps.get_model("eventlogs", model), using=self.using)


def _stored(request: AppendRequest, version: int, recorded_at: datetime) -> list[StoredEvent]:
    """Return the events of a request as they are stored, at no position yet."""
    return [
        StoredEvent(
            request.log_id,
            index,
            0,
            event.type,
            event.schema_version,
            event.data,
            request.metadata,
            request.idempotency_key,
            recorded_at,
        )
        for index, event in enumerate(request.events, start=version)
    ]
