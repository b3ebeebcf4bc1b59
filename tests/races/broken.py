"""
Deliberately broken versions of stores: each has one defect, which races and checker must find.

Most are the real store with one line of its SQL taken out, so that they also show what that
line is there for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any, ClassVar

from django.db import connection, transaction

from eventlogs import ConcurrentAppend, IdempotencyKeyReused, IdempotentReplay, LogId, LogState
from eventlogs.events.codec import request_fingerprints
from eventlogs.stores import AppendRequest
from eventlogs.stores.postgresql import PostgreSQLStore


class Mutant(PostgreSQLStore):
    """The real store, with ``part`` of its ``statements`` replaced on their way to the server."""

    statements: ClassVar[tuple[str, ...]]  # files of eventlogs/stores/sql
    part: ClassVar[str]  # a regular expression
    instead: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        for name in cls.statements:
            text = (files("eventlogs.stores") / "sql" / name).read_text(encoding="utf-8")
            assert re.search(cls.part, text, re.DOTALL), f"{name} has nothing for {cls} to break"

    def append(self, request: AppendRequest) -> LogState:
        with connection.execute_wrapper(self._change):
            return super().append(request)

    def _change(self, execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        return execute(re.sub(self.part, self.instead, sql, flags=re.DOTALL), *arguments)


class NoVersionComparison(Mutant):
    """Appends at any version."""

    statements = ("append_one.sql", "append_many.sql", "append_with_key.sql")
    part = r"AND version = coalesce\(%\(expected\)s::integer, version\)"


class NoLock(PostgreSQLStore):
    """Reads the last index, and then inserts the next ones without a lock."""

    def append(self, request: AppendRequest) -> LogState:
        if request.expected_version == 0:
            return super().append(request)
        log, count = request.log_id.uuid, len(request.events)
        with connection.cursor() as cursor:
            cursor.execute("SELECT max(index) + 1 FROM eventlogs_event WHERE log_id = %s", [log])
            (version,) = cursor.fetchone()
            if request.expected_version not in (None, version):
                raise ConcurrentAppend(
                    request.log_id,
                    expected_version=request.expected_version,
                    actual_version=version,
                )
            position = _insert(cursor, request, version)
            cursor.execute(
                "UPDATE eventlogs_eventlog SET version = %s WHERE id = %s", [version + count, log]
            )
        return LogState(request.log_id, version + count, position)


class KeyLookedUpButNotClaimed(Mutant):
    """Checks whether an event carries the key, and does not claim it."""

    statements = ("append_with_key.sql",)
    part = r"INSERT INTO eventlogs_idempotencykey.*?RETURNING first_index"
    instead = "SELECT version AS first_index FROM locked WHERE %(key)s::text IS NOT NULL"

    def append(self, request: AppendRequest) -> LogState:
        key = request.idempotency_key
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT index, position FROM eventlogs_event WHERE idempotency_key = %s LIMIT 1",
                [key],
            )
            row = cursor.fetchone()
        if key and row:
            index, position = row
            state = LogState(request.log_id, index + len(request.events), position)
            raise IdempotentReplay(key, log_id=request.log_id, index=index, state=state)
        return super().append(request)


class KeyClaimedAfterwards(PostgreSQLStore):
    """Claims the key after the events are committed."""

    def append(self, request: AppendRequest) -> LogState:
        key = request.idempotency_key
        if key and (claim := self.claim(request.log_id.log_type, key)):
            raise claim.replay(key)
        state = super().append(request._replace(idempotency_key=None))
        if key:
            _claim(request, state.version - len(request.events))
        return state


class KeyClaimedBefore(PostgreSQLStore):
    """Commits the claim before the append has succeeded."""

    def append(self, request: AppendRequest) -> LogState:
        key = request.idempotency_key
        if not key or request.expected_version == 0:
            return super().append(request)
        if claim := self.claim(request.log_id.log_type, key):
            raise claim.replay(key)
        _claim(request, request.expected_version or 0)
        return super().append(request._replace(idempotency_key=None))


class CreateLeavesItsKey(Mutant):
    """Its create raises LogAlreadyExists, and leaves the key that it has claimed."""

    statements = ("create.sql",)
    part = r"CASE WHEN %\(alone\)s.*? END"
    instead = "0"


class CreateFailsInTheDatabase(Mutant):
    """Its create releases the key by an error, inside of a caller's transaction as well."""

    statements = ("create.sql",)
    part = r"CASE WHEN %\(alone\)s::boolean"
    instead = "CASE WHEN TRUE"


class BatchInTwo(PostgreSQLStore):
    """Stores the events of an append by several statements, each with its own commit."""

    def append(self, request: AppendRequest) -> LogState:
        half = len(request.events) // 2
        if half and request.expected_version != 0:
            super().append(request._replace(events=request.events[:half], idempotency_key=None))
            rest = request._replace(events=request.events[half:], expected_version=None)
            return super().append(rest._replace(idempotency_key=None))
        return super().append(request)


class BatchBackwards(Mutant):
    """Gives the last event of an append the first position."""

    statements = ("append_many.sql", "append_with_key.sql")
    part = "ORDER BY number"
    instead = "ORDER BY number DESC"


class NoGreatest(Mutant):
    """Uses the clock as it is."""

    statements = ("append_one.sql", "append_many.sql", "append_with_key.sql")
    part = r"greatest\(clock_timestamp\(\), updated_at\)"
    instead = "clock_timestamp()"


class IndexFromASequence(PostgreSQLStore):
    """Takes the indexes of one log from the sequence race_index, which does not roll back."""

    def append(self, request: AppendRequest) -> LogState:
        if request.expected_version == 0:
            return super().append(request)
        log, count = request.log_id.uuid, len(request.events)
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE eventlogs_eventlog SET version = version + %s WHERE id = %s", [count, log]
            )
            cursor.execute("SELECT nextval('race_index') FROM generate_series(1, %s)", [count])
            first = cursor.fetchone()[0]
            position = _insert(cursor, request, first)
        return LogState(request.log_id, first + count, position)


class AnyEventsAreAReplay(PostgreSQLStore):
    """Does not compare the events of a key."""

    def append(self, request: AppendRequest) -> LogState:
        try:
            return super().append(request)
        except IdempotencyKeyReused as error:
            claim = self.claim(request.log_id.log_type, error.idempotency_key)
            assert claim is not None
            raise claim.replay(error.idempotency_key) from None


class ForgetsKeys(PostgreSQLStore):
    """Ignores keys: a retry is a new append."""

    def append(self, request: AppendRequest) -> LogState:
        return super().append(request._replace(idempotency_key=None))


class AcknowledgesBeforeCommit(PostgreSQLStore):
    """Answers at once, and commits with the tenth append."""

    uncommitted = 0

    def append(self, request: AppendRequest) -> LogState:
        kind = type(self)
        if connection.connection is None or connection.get_autocommit():
            connection.set_autocommit(False)
            kind.uncommitted = 0
        state = super().append(request)
        kind.uncommitted += 1
        if kind.uncommitted == 10:
            connection.commit()
            kind.uncommitted = 0
        return state


class TakesNoTurns(PostgreSQLStore):
    """Does not lock a log after a conflict."""

    def in_turn(
        self, log_id: LogId, call: Callable[[], Any], *, conflicts: int, others: Any = ()
    ) -> Any:
        return call()


class GivesItsTurnAway(PostgreSQLStore):
    """Waits for the log, and then decides without its lock."""

    def in_turn(
        self, log_id: LogId, call: Callable[[], Any], *, conflicts: int, others: Any = ()
    ) -> Any:
        super().in_turn(log_id, lambda: None, conflicts=conflicts)
        return call()


class DecidesBeforeItsTurn(PostgreSQLStore):
    """Its transaction has a snapshot from before the lock."""

    def in_turn(
        self, log_id: LogId, call: Callable[[], Any], *, conflicts: int, others: Any = ()
    ) -> Any:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self.version(log_id)
            return super().in_turn(log_id, call, conflicts=conflicts)


def _insert(cursor: Any, request: AppendRequest, version: int) -> int:
    position = 0
    for number, event in enumerate(request.events):
        cursor.execute(
            "INSERT INTO eventlogs_event (log_type, log_id, index, type, schema_version, data,"
            " metadata, recorded_at)"
            " VALUES (%s, %s, %s, %s, %s, %s::jsonb, '{}', clock_timestamp())"
            " RETURNING position",
            [
                request.log_id.log_type,
                request.log_id.uuid,
                version + number,
                event.type,
                event.schema_version,
                event.data,
            ],
        )
        (position,) = cursor.fetchone()
    return position


def _claim(request: AppendRequest, first_index: int) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO eventlogs_idempotencykey"
            " (log_type, key, log_id, first_index, count, fingerprint, created_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, clock_timestamp()) ON CONFLICT DO NOTHING",
            [
                request.log_id.log_type,
                request.idempotency_key,
                request.log_id.uuid,
                first_index,
                len(request.events),
                next(request_fingerprints(request.events)),
            ],
        )


class LooksAtValuesOnly(Mutant):
    """It looks whether a unique value is taken, and does not claim it."""

    statements = ("append_under_rules.sql",)
    part = (
        r"INSERT INTO eventlogs_uniquevalue \(scope, digest, log_type, log_id\).*?"
        r"ON CONFLICT \(scope, digest\) DO NOTHING\s+RETURNING id"
    )
    instead = "SELECT number AS id FROM missing"


class BelievesItsSnapshot(Mutant):
    """It takes the log's values from its snapshot, whatever was appended since."""

    statements = ("append_under_rules.sql",)
    part = r"AND seen\.ctid = own\.place"


class KeepsClaimsOfARefusedAppend(PostgreSQLStore):
    """In a caller's transaction, it keeps the values that a refused append has claimed."""

    def append(self, request: AppendRequest) -> LogState:
        def change(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
            return execute(sql.replace("value.id >=", "value.id >"), *arguments)

        with connection.execute_wrapper(change):
            return super().append(request)


class DoesNotLockOtherLogs(Mutant):
    """It compares the states of other logs, and does not lock them."""

    statements = ("append_under_rules.sql",)
    part = r"FOR SHARE"


class IgnoresOtherLogs(Mutant):
    """It locks other logs, and does not compare their states."""

    statements = ("append_under_rules.sql",)
    part = r"WHERE \(SELECT number FROM unmoved\) = \(SELECT count\(\*\) FROM other\)"
    instead = "WHERE TRUE"


class LocksItsOwnLogFirst(PostgreSQLStore):
    """It locks its own log, and then the others."""

    def append(self, request: AppendRequest) -> LogState:
        if request.rules is not None and connection.in_atomic_block:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT FROM eventlogs_eventlog WHERE id = %s FOR NO KEY UPDATE",
                    [request.log_id.uuid],
                )
        return super().append(request)
