"""
The store for PostgreSQL: an append is one prepared statement and one round trip.

The statements are in ``sql/``, each with the reason why it is right. A refused append is no
database error: its statement has written nothing. Only then a second query finds out why. If
that finds no reason (the other writer has rolled back meanwhile), the append is tried again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import Any, TypeVar, cast

import psycopg
from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

from eventlogs import conf
from eventlogs.conf import MAX_POSITION, MAX_VERSION
from eventlogs.events.codec import EncodedEvent, request_fingerprints
from eventlogs.events.unique import UniqueValue
from eventlogs.exceptions import EventLogError, LogAlreadyExists, LogNotFound, NameTaken
from eventlogs.ids import LogId
from eventlogs.stores import buckets, layouts
from eventlogs.stores.append_statements import VARIANTS
from eventlogs.stores.base import (
    AppendRequest,
    BaseStore,
    Claim,
    Rules,
    claim_of,
    refusal,
    rules_refusal,
)
from eventlogs.stores.bulk_reads import Part
from eventlogs.stores.columns import events_of_log, events_of_rows
from eventlogs.stores.erasing import NO_LOG_TYPE, missing, why_gone
from eventlogs.stores.restore import (
    ExportedEvent,
    Restored,
    note_restored,
    restore,
    restore_new_logs,
)
from eventlogs.stores.retries import (
    given_up,
    in_transaction,
    run_after,
    run_again,
    run_in_transaction,
)
from eventlogs.stores.statements import Row, Statement, raw_connection
from eventlogs.stores.stored_types import known_types, note
from eventlogs.values import LogState, StoredEvent

T = TypeVar("T")

# Databases where this process has met a chained log though its settings do not chain new ones:
# appends there take the variant for all logs at once.
with_chained_logs: set[str] = set()

# How often one call attempts a refused append whose refusal has no visible reason, because another
# writer came and went in between. After that, the caller must retry.
LOOKS = 20

CLAIM = 5  # columns of a claim, in front of others

OPEN = (TransactionStatus.INTRANS, TransactionStatus.INERROR)

WHY_REFUSED = Statement("why_refused")
STATES = Statement("states")
OWNERS = Statement("owners")
LOCK_OWNERS = Statement("lock_owners")
LOCK_LOG = Statement("lock_log")
LOCK_LOGS = Statement("lock_logs")
TAKE_TURN = Statement("take_turn")
GIVE_KEY_BACK = Statement("give_key_back")
GIVE_CLAIMS_BACK = Statement("give_claims_back")
EVENTS_FORWARDS = Statement("events_forwards")
EVENTS_BACKWARDS = Statement("events_backwards")
EVENTS_SINCE = Statement("events_since")
EVENTS_SINCE_WITH_KEY = Statement("events_since_with_key")
EVENTS_OF_LOGS = Statement("events_of_logs")
VERSION = Statement("version")
RESTORE = {each: Statement("restore", has_buckets=each) for each in (False, True)}


class _AllOrNothing:
    """
    The statements of one append, of which nothing may be left where it is refused.

    An append that is a transaction of its own divides by zero where it finds that, for example,
    its key was free but the log exists: nothing of it is stored, and the block ends. (See
    docs/decisions/0002.) Inside of a transaction, what was stored is given back.
    """

    __slots__ = ("_alone", "_connection")

    def __init__(self, connection: BaseDatabaseWrapper, *, alone: bool) -> None:
        self._connection = connection
        self._alone = alone

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None:
            return False
        if isinstance(error, Error):
            is_refused = isinstance(error.__cause__, psycopg.errors.DivisionByZero)
            return self._alone and is_refused
        # Raised by a signal handler, perhaps: the transaction may hold a key or a value of an
        # append that it has not stored.
        if self._connection.in_atomic_block:
            self._connection.set_rollback(True)
        return False


class PostgreSQLStore(BaseStore):
    """Logs in PostgreSQL."""

    using: str
    keeps_rules = True

    def __init__(self, using: str) -> None:
        self.using = using

    def append(self, request: AppendRequest) -> LogState:
        connection = connections[self.using]
        try:
            answer = self._attempt(connection, request)
        except Error as error:
            layouts.refuse(error, self.using)
            answer = run_after(error, connection, self._attempt, request)
        if isinstance(answer, EventLogError):
            raise answer
        if conf.has_buckets():
            buckets.note_held(connection, [buckets.bucket_of(request.log_id.uuid)])
        # What ``note`` looks at first: a call would cost an append more than the look does.
        log_type = request.log_id.log_type
        known = known_types.get(
            (self.using, getattr(connection, "schema_name", None), log_type), ()
        )
        for event in request.events:
            if event[:2] not in known:
                note(connection, log_type, request.events)
                break
        return answer

    def _attempt(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | EventLogError:
        if request.rules is not None:
            return self._attempt_under_rules(connection, request, request.rules)
        for _ in range(LOOKS):
            if request.expected_version == 0:
                state = self._create_log(connection, request)
            else:
                state = self._add_to_log(connection, request)
            if state is not None:
                return state
            refused = self._why_refused(connection, request)
            if refused is not None:
                return refused
        raise given_up(self.using)

    def _attempt_under_rules(
        self, connection: BaseDatabaseWrapper, request: AppendRequest, rules: Rules
    ) -> LogState | EventLogError:
        is_locked = request.expected_version == 0  # there is no row to lock
        for _ in range(LOOKS):
            state = self._append_under_rules(connection, request, rules)
            if state is not None:
                return state
            refused = self._why_refused(connection, request)
            if refused is not None:
                return refused
            if is_locked:
                continue
            # Another writer has appended since the statement's snapshot. Where many append at any
            # version, one always has: the next statement begins with the locks held.
            if _is_alone(connection):
                with transaction.atomic(using=self.using):
                    return self._attempt_under_rules(connection, request, rules)
            LOCK_LOGS.rows(connection, _locks(request.log_id, rules.others))
            is_locked = True
        raise given_up(self.using)

    def in_turn(
        self,
        log_id: LogId,
        call: Callable[[], T],
        *,
        conflicts: int,
        others: Sequence[LogState] = (),
    ) -> T:
        connection, parameters = connections[self.using], {"log": log_id.uuid}
        lock, lock_alone = LOCK_LOG, TAKE_TURN
        if others:
            # No queue: it is for one log, and the first lock of its transaction.
            lock = lock_alone = LOCK_LOGS
            parameters = _locks(log_id, others)

        def locked() -> T:
            lock_alone.rows(connection, parameters)
            return call()

        if _is_alone(connection):
            return run_in_transaction(self.using, locked)
        self._read(lock, parameters)
        return call()

    def _add_to_log(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | None:
        parameters = _parameters(request)
        parameters["expected"] = request.expected_version
        parameters["position"] = request.expected_position
        is_one = len(request.events) == 1
        # The head of the log decides whether it is chained, the settings only what is tried first.
        chained = conf.chain() or self.using in with_chained_logs
        statements = VARIANTS[chained, conf.has_buckets()]
        if request.idempotency_key is not None:
            statement = statements.append_one_with_key if is_one else statements.append_with_key
        else:
            statement = statements.append_one if is_one else statements.append_many
        answer = statement.numbers(connection, parameters)
        if answer is None:
            return None
        position, version = answer
        return LogState(request.log_id, cast("int", version), cast("int", position))

    def _create_log(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | None:
        parameters = _parameters(request)
        has_key = request.idempotency_key is not None
        parameters["alone"] = alone = has_key and _is_alone(connection)
        statements = VARIANTS[conf.chain(), conf.has_buckets()]
        if len(request.events) > 1:
            statement = statements.create
        else:
            statement = statements.create_one_with_key if has_key else statements.create_one
        position = None
        with _AllOrNothing(connection, alone=alone):
            position, orphan = statement.numbers(connection, parameters) or (None, 0)
            if orphan:
                GIVE_KEY_BACK.rows(connection, parameters)
        if position is None:
            return None
        return LogState(request.log_id, len(request.events), position)

    def _append_under_rules(
        self, connection: BaseDatabaseWrapper, request: AppendRequest, rules: Rules
    ) -> LogState | None:
        parameters = _parameters(request)
        parameters["events"] = _as_json(request.events)
        parameters["count"] = len(request.events)
        parameters["expected"] = request.expected_version
        parameters["position"] = request.expected_position
        parameters["values"] = _values_as_json(rules.values)
        parameters["others"] = _states_as_json(rules.others)
        parameters["alone"] = alone = _is_alone(connection)
        is_met = self.using in with_chained_logs and request.expected_version != 0
        statements = VARIANTS[conf.chain() or is_met, conf.has_buckets()]
        position = version = None
        with _AllOrNothing(connection, alone=alone):
            answer = statements.append_under_rules.numbers(connection, parameters)
            position, version, first, keyed = answer or (None, None, None, 0)
            if first is not None or keyed:
                # Without values there is no first one: the highest id is above all.
                parameters["first"] = MAX_POSITION if first is None else first
                parameters["keyed"] = bool(keyed)
                GIVE_CLAIMS_BACK.rows(connection, parameters)
        if position is None:
            return None
        return LogState(request.log_id, cast("int", version), position)

    def _why_refused(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> EventLogError | None:
        parameters = {
            "log": request.log_id.uuid,
            "log_type": request.log_id.log_type,
            "key": request.idempotency_key,
        }
        [row] = WHY_REFUSED.rows(connection, parameters)
        *key, log_type, version, position, isolation, is_chained = row
        if is_chained:
            with_chained_logs.add(self.using)
        claim = claim_of(request.log_id.log_type, *key)
        if log_type != request.log_id.log_type and request.expected_version != 0:
            version = None  # the UUID is another type's: this log does not exist
        refused = refusal(request, claim, version or 0, position)
        if claim is None and version and isolation != "read committed":
            # The snapshot may be older than the log: then the whole transaction must retry.
            LOCK_LOG.rows(connection, parameters)
        if log_type == NO_LOG_TYPE and isinstance(refused, LogNotFound | LogAlreadyExists):
            return why_gone(self.using, request.log_id, refused, any_type=True)
        if refused is None and request.rules is not None:
            refused = self._why_ruled_out(connection, request.rules, request.log_id, isolation)
        if isinstance(refused, LogNotFound) and refused.log_id != request.log_id:
            return why_gone(self.using, refused.log_id, refused)
        return refused

    def _why_ruled_out(
        self, connection: BaseDatabaseWrapper, rules: Rules, log_id: LogId, isolation: str
    ) -> EventLogError | None:
        states = {}
        if rules.others:
            found = STATES.rows(connection, {"logs": [each.log_id.uuid for each in rules.others]})
            states = {
                LogId.stored(log_type, log): (version, position)
                for log_type, log, version, position in found
            }
        owners = self._owners(connection, rules.values)
        refused = rules_refusal(rules, log_id, states, owners)
        if isinstance(refused, NameTaken) and isolation != "read committed":
            # The snapshot may be older than the release: then the whole transaction must retry.
            LOCK_OWNERS.rows(connection, _digests(rules.values))
        return refused

    def _owners(
        self, connection: BaseDatabaseWrapper, values: Sequence[UniqueValue]
    ) -> dict[UniqueValue, LogId]:
        parameters = _digests(values)
        if not parameters["digests"]:
            return {}
        return {
            UniqueValue(scope, digest): LogId.stored(log_type, log)
            for scope, digest, log_type, log in OWNERS.rows(connection, parameters)
        }

    def owner(self, value: UniqueValue) -> LogId | None:
        return run_again(self.using, lambda connection: self._owners(connection, [value])).get(
            value
        )

    def claim(self, log_type: str, idempotency_key: str) -> Claim | None:
        parameters = {"log": None, "log_type": log_type, "key": idempotency_key}
        [(*key, _, _, _, _, _)] = self._read(WHY_REFUSED, parameters)
        return claim_of(log_type, *key)

    def _read(self, statement: Statement, parameters: dict[str, Any]) -> list[Row]:
        # Under SERIALIZABLE, a statement that only reads may have to be run again as well.
        return run_again(self.using, lambda connection: statement.rows(connection, parameters))

    def _events(
        self, statement: Statement, log_id: LogId, parameters: dict[str, Any]
    ) -> list[StoredEvent]:
        make = partial(events_of_log, log_id)
        return run_again(
            self.using, lambda connection: statement.read(connection, parameters, make)
        )

    def version(self, log_id: LogId) -> int:
        parameters = {"log": log_id.uuid, "log_type": log_id.log_type}
        [(version,)] = self._read(VERSION, parameters) or [(0,)]
        return cast("int", version)

    def missing(self, log_id: LogId) -> LogNotFound:
        return run_again(self.using, lambda _: missing(self.using, log_id))

    def events(
        self, log_id: LogId, *, start: int, limit: int, reverse: bool = False
    ) -> Sequence[StoredEvent]:
        parameters = {
            "log": log_id.uuid,
            "log_type": log_id.log_type,
            "start": start,
            "limit": limit,
        }
        statement = EVENTS_BACKWARDS if reverse else EVENTS_FORWARDS
        return self._events(statement, log_id, parameters)

    def since(self, log_id: LogId, *, start: int, limit: int) -> Sequence[StoredEvent]:
        end = min(start + limit, MAX_VERSION)
        parameters = {"log": log_id.uuid, "start": start, "end": end}
        return self._events(EVENTS_SINCE, log_id, parameters)

    def since_with_claim(
        self, log_id: LogId, key: tuple[str, str], *, start: int, limit: int
    ) -> tuple[Sequence[StoredEvent], Claim | None]:
        log_type, idempotency_key = key
        parameters = {
            "log": log_id.uuid,
            "start": start,
            "end": min(start + limit, MAX_VERSION),
            "log_type": log_type,
            "key": idempotency_key,
        }
        rows = self._read(EVENTS_SINCE_WITH_KEY, parameters)
        claim = claim_of(log_type, *rows[0][:CLAIM])
        if rows[0][CLAIM] is None:  # no event
            return [], claim
        return events_of_log(log_id, (row[CLAIM:] for row in rows)), claim

    def restore(self, events: Sequence[ExportedEvent]) -> Restored:
        return run_again(self.using, lambda _: restore(self.using, events, self._insert_restored))

    def restore_new_logs(self, events: Sequence[ExportedEvent]) -> frozenset[LogId]:
        return run_again(
            self.using, lambda _: restore_new_logs(self.using, events, self._insert_restored)
        )

    def _insert_restored(self, events: Sequence[ExportedEvent]) -> None:
        connection = connections[self.using]
        has_buckets = conf.has_buckets()
        positions: Iterable[int | None] = repeat(None)
        if has_buckets:
            logs = [each.event.log_id.uuid for each in events]
            positions = buckets.take_positions(self.using, logs)
        RESTORE[has_buckets].rows(connection, {"events": _restored_as_json(events, positions)})
        note_restored(connection, events)


def events_of_logs(using: str, parts: Collection[Part]) -> list[StoredEvent]:
    """Return the events of parts of logs in one statement, one log after the other."""
    if not parts:
        return []
    parameters = {
        "logs": [each.log_id.uuid for each in parts],
        "starts": [each.start for each in parts],
        "ends": [each.end for each in parts],
    }
    return run_again(
        using, lambda connection: EVENTS_OF_LOGS.read(connection, parameters, events_of_rows)
    )


def _parameters(request: AppendRequest) -> dict[str, Any]:
    """Return the parameters that all appends and creates have."""
    parameters: dict[str, Any] = {
        "log": request.log_id.uuid,
        "log_type": request.log_id.log_type,
        "metadata": request.metadata,
    }
    if len(request.events) == 1:
        [event] = request.events
        parameters["type"] = event.type
        parameters["schema_version"] = event.schema_version
        parameters["data"] = event.data
    else:
        parameters["events"] = _as_json(request.events)
        parameters["count"] = len(request.events)
    parameters["key"] = key = request.idempotency_key
    if key is None:
        parameters["fingerprint"] = None
    else:
        parameters["fingerprint"] = next(request_fingerprints(request.events))
    return parameters


def _values_as_json(values: Sequence[UniqueValue]) -> str:
    return json.dumps([[scope, digest and str(digest)] for scope, digest in values])


def _states_as_json(states: Sequence[LogState]) -> str:
    return json.dumps(
        [
            [str(each.log_id.uuid), each.log_id.log_type, each.version, each.position or None]
            for each in states
        ]
    )


def _locks(log_id: LogId, others: Sequence[LogState]) -> dict[str, Any]:
    return {"log": log_id.uuid, "others": [each.log_id.uuid for each in others]}


def _digests(values: Sequence[UniqueValue]) -> dict[str, list[Any]]:
    """Return the values that are claimed, not those that are released."""
    claimed = [each for each in values if each.digest is not None]
    return {
        "scopes": [each.scope for each in claimed],
        "digests": [each.digest for each in claimed],
    }


def _is_alone(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a statement is a transaction of its own."""
    if in_transaction(connection):
        return False
    # Django does not know of a BEGIN, or of psycopg's transaction().
    pgconn = getattr(raw_connection(connection), "pgconn", None)
    return pgconn is None or pgconn.transaction_status not in OPEN


def _restored_as_json(events: Sequence[ExportedEvent], positions: Iterable[int | None]) -> str:
    # Data and metadata are JSON already.
    return (
        "["
        + ",".join(
            [
                f'["{event.log_type}","{event.log_id.uuid}",{event.index},{json.dumps(event.type)},'
                f"{event.schema_version},{event.data},{event.metadata},"
                f'{json.dumps(event.idempotency_key)},"{event.recorded_at.isoformat()}",'
                f"{json.dumps(digest and digest.hex())},{json.dumps(position)}]"
                for (event, _, _, digest), position in zip(events, positions, strict=False)
            ]
        )
        + "]"
    )


def _as_json(events: Sequence[EncodedEvent]) -> str:
    # Types are letters, digits and _.:- (see events/registry.py): they need no escaping.
    return (
        "["
        + ",".join([f'["{name}",{schema_version},{data}]' for name, schema_version, data in events])
        + "]"
    )
