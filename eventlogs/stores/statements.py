"""
SQL statements on their way to PostgreSQL: whole, prepared, in one round trip each.

There are two ways there. ``Statement.rows`` takes a psycopg cursor, which binds on the server;
where somebody watches (query logging, ``execute_wrappers``, a debug toolbar) it takes Django's
own cursor, so that the statement is seen. ``HotStatement.numbers`` hands the statement to libpq
by psycopg's low-level interface (https://www.psycopg.org/psycopg3/docs/api/pq.html), which
halves the processor time of an append. A statement that a connection does not know yet takes one
round trip more, to prepare it.

Waiting lets go of the interpreter's lock: a thread that waits for a row must not keep another
one from committing. It lets signal handlers run, too: see ``_Session.answer``.
"""

from __future__ import annotations

import re
import select
import struct
from asyncio import _get_running_loop as get_running_loop
from collections.abc import Callable, Mapping
from importlib.resources import files
from operator import attrgetter, itemgetter
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors, generators, pq

from eventlogs import conf

Row = tuple[Any, ...]
RawConnection = psycopg.Connection[Row]

PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s")
TYPED_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s::(\w+)")
TEXT: Final = 0
BINARY: Final = 1
IDLE: Final = pq.TransactionStatus.IDLE
GOOD: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)

# By the name of a PostgreSQL type, how a value travels as it; binary is what the server reads
# fastest, except for text and JSON, whose binary forms are the text.
ENCODERS: Final[dict[str, tuple[Callable[[Any], bytes], int]]] = {
    "uuid": (attrgetter("bytes"), BINARY),
    "bytea": (bytes, BINARY),
    "integer": (struct.Struct("!i").pack, BINARY),
    "bigint": (struct.Struct("!q").pack, BINARY),
    "boolean": (struct.Struct("!?").pack, BINARY),
    "text": (str.encode, TEXT),
    "jsonb": (str.encode, TEXT),
}

# Somebody has thrown the connection's statements away (DISCARD ALL, DEALLOCATE), or changed
# the tables under them. Prepared again, they work.
PREPARED_IN_VAIN: Final = (errors.InvalidSqlStatementName, errors.FeatureNotSupported)

WAIT: Final = 100  # milliseconds between two looks for signals, as psycopg has it


class Statement:
    """A statement of ``sql/``, with ``%(name)s`` for each of its parameters."""

    def __init__(self, name: str) -> None:
        text = (files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")
        self.sql = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
        self._order: list[str] = []
        numbered = PLACEHOLDER.sub(self._number, self.sql)
        self._numbered = numbered.encode()
        self._name = f"eventlogs_{name}".encode()

    def _number(self, placeholder: re.Match[str]) -> str:
        if placeholder[1] not in self._order:
            self._order.append(placeholder[1])
        return f"${self._order.index(placeholder[1]) + 1}"

    def rows(self, connection: BaseDatabaseWrapper, parameters: Mapping[str, Any]) -> list[Row]:
        """
        Run the statement and return its rows.

        It joins a caller's transaction; without one it is a transaction of its own. Database
        errors are raised as Django's.
        """
        if is_watched(connection):
            with connection.cursor() as cursor:
                cursor.execute(self.sql, parameters)
                return cast("list[Row]", cursor.fetchall())
        raw = raw_connection(connection)
        try:
            # Never prepared by psycopg: it answers a ROLLBACK with DEALLOCATE ALL once it has
            # prepared anything, and ours would be gone with its own. Binary results, because a
            # timestamp is four times as cheap to read as its text.
            with psycopg.Cursor(raw) as own:
                own.execute(self.sql, parameters, prepare=False, binary=True)
                return own.fetchall()
        except psycopg.Error:
            with connection.wrap_database_errors:
                raise


class HotStatement(Statement):
    """
    A statement of the hot path: its parameters are of the types in ENCODERS, or None.

    How each of them is encoded is settled once, by the type that the statement names for it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        types = dict(TYPED_PLACEHOLDER.findall(self.sql))
        self._values = itemgetter(*self._order)
        found = [ENCODERS[types[parameter]] for parameter in self._order]
        self._encoders = [encoder for encoder, _ in found]
        self._formats = [form for _, form in found]  # a list: psycopg 3.1 takes no tuple

    def numbers(
        self, connection: BaseDatabaseWrapper, parameters: Mapping[str, Any]
    ) -> tuple[int | None, ...] | None:
        """Run the statement and return its only row, of integers, or None where it has none."""
        if not is_watched(connection):
            raw = raw_connection(connection)
            # psycopg begins a transaction with its first statement: that one takes its cursor.
            if raw.autocommit or raw.pgconn.transaction_status != IDLE:
                try:
                    return self._in_one_trip(raw, parameters)
                except psycopg.Error:
                    with connection.wrap_database_errors:
                        raise
        found = self.rows(connection, parameters)
        return found[0] if found else None

    def _in_one_trip(
        self, raw: RawConnection, parameters: Mapping[str, Any]
    ) -> tuple[int | None, ...] | None:
        binds = [
            None if value is None else encode(value)
            for value, encode in zip(self._values(parameters), self._encoders, strict=True)
        ]
        with raw.lock:
            session = _sessions.get(raw) or _sessions.setdefault(raw, _Session(raw))
            # Inside of a transaction, a prepared statement that somebody has thrown away (see
            # ``rows``) would break the transaction: there, it goes parsed and bound in one.
            if raw.pgconn.transaction_status != IDLE or not conf.prepared_statements():
                raw.pgconn.send_query_params(
                    self._numbered, binds, param_formats=self._formats, result_format=BINARY
                )
                return _numbers(session.answer(raw))
            if self._name not in session.prepared:
                session.prepare(raw, self._name, self._numbered)
            raw.pgconn.send_query_prepared(self._name, binds, self._formats, BINARY)
            try:
                return _numbers(session.answer(raw))
            except PREPARED_IN_VAIN:
                session.prepare(raw, self._name, self._numbered)
                raw.pgconn.send_query_prepared(self._name, binds, self._formats, BINARY)
                return _numbers(session.answer(raw))


class _Session:
    """What the hot path keeps for a psycopg connection; it goes when the connection goes."""

    __slots__ = ("_poll", "prepared")

    def __init__(self, raw: RawConnection) -> None:
        self.prepared: set[bytes] = set()  # the names of statements
        self._poll: Callable[[int], Any] | None = None
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(raw.pgconn.socket, select.POLLIN)
            self._poll = poll.poll

    def prepare(self, raw: RawConnection, name: bytes, statement: bytes) -> None:
        self.prepared.discard(name)
        raw.pgconn.send_prepare(name, statement)
        self.answer(raw)
        self.prepared.add(name)

    def answer(self, raw: RawConnection) -> Any:
        """
        Wait for all of the answer to the statement that was sent, and return the last of it.

        It may be an error of the COMMIT, after a row. This is what psycopg's ``wait`` does, for
        the only case that there is here, in a fraction of its instructions: poll() lets go of
        the interpreter's lock, and comes back for signal handlers to run, at once (PEP 475) or,
        where the signal came just before, after WAIT.
        """
        pgconn = raw.pgconn
        if self._poll is None or pgconn.flush():  # no poll here, or not all could be sent
            result = raw.wait(generators.execute(pgconn))[-1]
        else:
            result = None
            try:
                while True:
                    while pgconn.is_busy():
                        if self._poll(WAIT):
                            pgconn.consume_input()
                    if (further := pgconn.get_result()) is None:
                        break
                    result = further
            except KeyboardInterrupt:
                # As psycopg does: otherwise the connection would stay busy with the statement.
                raw.cancel()
                raw.wait(generators.execute(pgconn))
                raise
        if result.status not in GOOD:
            if pgconn.status != pq.ConnStatus.OK:
                raise psycopg.OperationalError("the connection to the server was lost")
            raise errors.error_from_result(result, raw.info.encoding)
        return result


_sessions: WeakKeyDictionary[RawConnection, _Session] = WeakKeyDictionary()


def is_watched(connection: BaseDatabaseWrapper) -> bool:
    """Return whether somebody wants to see the statements that go through Django's cursor."""
    return bool(
        connection.queries_logged or connection.execute_wrappers or "cursor" in vars(connection)
    )


def raw_connection(connection: BaseDatabaseWrapper) -> RawConnection:
    """Return the psycopg connection, made ready as Django's own ``cursor()`` does."""
    connection.close_if_health_check_failed()
    # Django's check for async code, which ensure_connection() has, costs an exception each time.
    if connection.connection is None or get_running_loop() is not None:
        connection.ensure_connection()
    connection.validate_thread_sharing()
    if connection.needs_rollback:
        connection.validate_no_broken_transaction()
    return cast("RawConnection", connection.connection)


def _numbers(result: Any) -> tuple[int | None, ...] | None:
    if not result.ntuples:
        return None
    values = [result.get_value(0, column) for column in range(result.nfields)]
    return tuple(
        [None if value is None else int.from_bytes(value, "big", signed=True) for value in values]
    )
