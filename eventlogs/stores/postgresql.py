"""
The store for PostgreSQL: an append is one prepared statement and one round trip.

The statements stand in ``sql/``, each with the argument why it is right. A refused append is
no database error but a statement that wrote nothing; a second query, only then, finds out
why, and where it finds nothing wrong (the other writer has rolled back meanwhile) the append
is tried again.

Statements go through a psycopg cursor of their own, which binds on the server and prepares.
Where somebody watches (query logging, ``execute_wrappers``, a debug toolbar), the same
statements go through Django's cursor, so that they are seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, cast
from weakref import WeakKeyDictionary

import psycopg
from django.db import DataError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs import conf
from eventlogs.aggregates import LogState
from eventlogs.codec import EncodedEvent, StoredEvent, fingerprints
from eventlogs.exceptions import EventLogError, TransactionMustRetry
from eventlogs.ids import LogId
from eventlogs.stores.base import AppendRequest, BaseStore, Claim, claim_of, refusal
from eventlogs.stores.transactions import in_transaction, run_append

Row = tuple[Any, ...]

# A refusal is looked into at most so often before somebody else has to try again: each look
# that finds nothing wrong means that another writer came and went in between.
LOOKS = 20


def _statement(name: str) -> str:
    text = (files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))


APPEND_ONE = _statement("append_one")
APPEND = _statement("append")
CREATE = _statement("create")
WHY_REFUSED = _statement("why_refused")
LOCK_LOG = _statement("lock_log")
GIVE_KEY_BACK = _statement("give_key_back")
EVENTS_FORWARDS = _statement("events_forwards")
EVENTS_BACKWARDS = _statement("events_backwards")
VERSION = _statement("version")


class PostgreSQLStore(BaseStore):
    """Logs in PostgreSQL."""

    def __init__(self, using: str) -> None:
        self.using = using

    def append(self, request: AppendRequest) -> LogState:
        answer = run_append(self.using, lambda connection: self._append(connection, request))
        if isinstance(answer, EventLogError):
            raise answer
        return answer

    def _append(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | EventLogError:
        for _ in range(LOOKS):
            if request.expected_version == 0:
                state = self._create(connection, request)
            else:
                state = self._append_to(connection, request)
            if state is not None:
                return state
            refused = self._why_refused(connection, request)
            if refused is not None:
                return refused
        raise TransactionMustRetry(using=self.using, sqlstate=None)

    def _append_to(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | None:
        count = len(request.events)
        parameters: dict[str, Any] = {
            "log": request.log_id.uuid,
            "log_type": request.log_id.log_type,
            "expected": request.expected_version,
            "metadata": request.metadata,
        }
        if count == 1 and request.idempotency_key is None:
            event = request.events[0]
            parameters["type"] = event.type
            parameters["schema_version"] = event.schema_version
            parameters["data"] = event.data
            rows = execute(connection, APPEND_ONE, parameters)
            if not rows:
                return None
            position, version = rows[0]
        else:
            self._add_batch(parameters, request)
            position, first_index = execute(connection, APPEND, parameters)[0]
            if position is None:
                return None
            version = first_index + count
        return LogState(request.log_id, version, position)

    def _create(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> LogState | None:
        alone = not in_transaction(connection)
        parameters: dict[str, Any] = {
            "log": request.log_id.uuid,
            "log_type": request.log_id.log_type,
            "metadata": request.metadata,
            "alone": alone,
        }
        self._add_batch(parameters, request)
        try:
            position, orphan = execute(connection, CREATE, parameters)[0]
        except DataError as error:
            if alone and isinstance(error.__cause__, psycopg.errors.DivisionByZero):
                return None  # the key was free but the log exists; nothing of it is stored
            raise
        if orphan:
            execute(connection, GIVE_KEY_BACK, parameters)
        if position is None:
            return None
        return LogState(request.log_id, len(request.events), position)

    def _add_batch(self, parameters: dict[str, Any], request: AppendRequest) -> None:
        key = request.idempotency_key
        parameters["events"] = _as_json(request.events)
        parameters["count"] = len(request.events)
        parameters["key"] = key
        parameters["fingerprint"] = None if key is None else next(fingerprints(request.events))

    def _why_refused(
        self, connection: BaseDatabaseWrapper, request: AppendRequest
    ) -> EventLogError | None:
        parameters = {
            "log": request.log_id.uuid,
            "log_type": request.log_id.log_type,
            "key": request.idempotency_key,
        }
        *key, log_type, version, isolation = execute(connection, WHY_REFUSED, parameters)[0]
        claim = claim_of(request.log_id.log_type, cast("Any", key)) if key[0] else None
        if log_type != request.log_id.log_type and request.expected_version != 0:
            version = None  # the UUID is another type's: this log does not exist
        refused = refusal(request, claim, version or 0)
        if claim is None and version and isolation != "read committed":
            # The snapshot may be older than the log: then the whole transaction must retry.
            execute(connection, LOCK_LOG, parameters)
        return refused

    def claim(self, log_type: str, idempotency_key: str) -> Claim | None:
        parameters = {"log": None, "log_type": log_type, "key": idempotency_key}
        *key, _, _, _ = execute(connections[self.using], WHY_REFUSED, parameters)[0]
        return claim_of(log_type, cast("Any", key)) if key[0] else None

    def version(self, log_id: LogId) -> int:
        parameters = {"log": log_id.uuid, "log_type": log_id.log_type}
        rows = execute(connections[self.using], VERSION, parameters)
        return rows[0][0] if rows else 0

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
        return cast(
            "Sequence[StoredEvent]", execute(connections[self.using], statement, parameters)
        )


def _as_json(events: Sequence[EncodedEvent]) -> str:
    # Types are letters, digits and _.:- (see events.py): they need no escaping.
    return "[%s]" % ",".join(
        '{"t":"%s","v":%d,"d":%s}' % (event.type, event.schema_version, event.data)
        for event in events
    )


# The cursor that is kept open for each psycopg connection; it goes when the connection does.
_cursors: WeakKeyDictionary[Any, psycopg.Cursor[Row]] = WeakKeyDictionary()


def execute(
    connection: BaseDatabaseWrapper, statement: str, parameters: Mapping[str, Any]
) -> list[Row]:
    """
    Run one statement in one round trip and return its rows.

    Database errors are raised as Django's. A caller's transaction is joined; without one, the
    statement is a transaction of its own.
    """
    if connection.queries_logged or connection.execute_wrappers or "cursor" in vars(connection):
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cast("list[Row]", cursor.fetchall())

    # What Django's own cursor() does before it runs anything.
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    if connection.in_atomic_block and connection.needs_rollback:
        connection.validate_no_broken_transaction()
    raw: psycopg.Connection[Row] = connection.connection
    kept = _cursors.get(raw)
    if kept is None:
        kept = _cursors[raw] = psycopg.Cursor(raw)
    prepare = conf.prepared_statements()
    # Django turns preparing off for its connections (prepare_threshold None), and psycopg
    # then ignores prepare=True; it is turned on for this one statement.
    threshold = raw.prepare_threshold
    try:
        if prepare:
            raw.prepare_threshold = 0
        # Binary results: a timestamp is four times as cheap to read as its text.
        kept.execute(statement, parameters, prepare=prepare, binary=True)
        return kept.fetchall()
    except psycopg.Error:
        with connection.wrap_database_errors:
            raise
    finally:
        raw.prepare_threshold = threshold
