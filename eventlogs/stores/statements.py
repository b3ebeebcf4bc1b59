"""
SQL statements on their way to PostgreSQL: whole, prepared, in one round trip each.

There are two ways there. ``Statement.rows`` takes a psycopg cursor, which binds on the server;
where somebody watches (query logging, ``execute_wrappers``, a debug toolbar) it takes Django's
own cursor, so that the statement is seen. ``Statement.numbers`` is for the hot path: it hands
the statement to libpq by psycopg's low-level interface
(https://www.psycopg.org/psycopg3/docs/api/pq.html), which halves the processor time of an
append. A statement that a connection does not know yet takes one round trip more, to prepare
it.

Waiting goes through psycopg's own waiting, which lets go of the interpreter's lock: a thread
that waits for a row must not keep another one from committing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final, cast
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors, generators, pq

from eventlogs import conf

Row = tuple[Any, ...]
RawConnection = psycopg.Connection[Row]

PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s")
TEXT: Final = 0
BINARY: Final = 1

# Somebody has thrown the connection's statements away (DISCARD ALL, DEALLOCATE), or changed
# the tables under them. Prepared again, they work.
PREPARED_IN_VAIN: Final = (errors.InvalidSqlStatementName, errors.FeatureNotSupported)

# The statements that each psycopg connection has prepared; they go when it goes.
_prepared: WeakKeyDictionary[RawConnection, set[bytes]] = WeakKeyDictionary()


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

    def numbers(
        self, connection: BaseDatabaseWrapper, parameters: Mapping[str, Any]
    ) -> tuple[int | None, ...] | None:
        """
        Run the statement and return its only row, of integers, or None where it has none.

        Parameters are str, int, bool, UUID, bytes or None. For the rest see ``rows``.
        """
        if not is_watched(connection):
            raw = raw_connection(connection)
            # psycopg begins a transaction with its first statement: that one takes its cursor.
            if raw.autocommit or raw.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                try:
                    return self._fast_numbers(raw, parameters)
                except psycopg.Error:
                    with connection.wrap_database_errors:
                        raise
        found = self.rows(connection, parameters)
        return found[0] if found else None

    def _fast_numbers(
        self, raw: RawConnection, parameters: Mapping[str, Any]
    ) -> tuple[int | None, ...] | None:
        values = [parameters[name] for name in self._order]
        formats = [
            BINARY if type(value) is UUID or type(value) is bytes else TEXT for value in values
        ]
        binds = [None if value is None else _ENCODE[type(value)](value) for value in values]
        pgconn = raw.pgconn
        with raw.lock:
            # Inside of a transaction, a prepared statement that somebody has thrown away (see
            # ``rows``) would break the transaction: there, it goes parsed and bound in one.
            alone = pgconn.transaction_status == pq.TransactionStatus.IDLE
            if not (alone and conf.prepared_statements()):
                pgconn.send_query_params(
                    self._numbered, binds, param_formats=formats, result_format=BINARY
                )
                return _numbers(raw.wait(generators.execute(pgconn))[-1], raw)
            known = _prepared.setdefault(raw, set())
            if self._name not in known:
                self._prepare(raw, known)
            try:
                return self._run_prepared(raw, binds, formats)
            except PREPARED_IN_VAIN:
                known.discard(self._name)
                self._prepare(raw, known)
                return self._run_prepared(raw, binds, formats)

    def _run_prepared(
        self, raw: RawConnection, binds: list[bytes | None], formats: list[int]
    ) -> tuple[int | None, ...] | None:
        raw.pgconn.send_query_prepared(self._name, binds, formats, BINARY)
        return _numbers(raw.wait(generators.execute(raw.pgconn))[-1], raw)

    def _prepare(self, raw: RawConnection, known: set[bytes]) -> None:
        raw.pgconn.send_prepare(self._name, self._numbered)
        _check(raw.wait(generators.execute(raw.pgconn))[-1], raw)
        known.add(self._name)


def is_watched(connection: BaseDatabaseWrapper) -> bool:
    """Return whether somebody wants to see the statements that go through Django's cursor."""
    return bool(
        connection.queries_logged or connection.execute_wrappers or "cursor" in vars(connection)
    )


def raw_connection(connection: BaseDatabaseWrapper) -> RawConnection:
    """Return the psycopg connection, made ready as Django's own ``cursor()`` does."""
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    connection.validate_thread_sharing()
    if connection.needs_rollback:
        connection.validate_no_broken_transaction()
    return cast("RawConnection", connection.connection)


def _check(result: Any, raw: RawConnection) -> None:
    if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        if raw.pgconn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError("the connection to the server was lost")
        raise errors.error_from_result(result, raw.info.encoding)


def _numbers(result: Any, raw: RawConnection) -> tuple[int | None, ...] | None:
    _check(result, raw)
    if not result.ntuples:
        return None
    values = [result.get_value(0, column) for column in range(result.nfields)]
    return tuple(
        [None if value is None else int.from_bytes(value, "big", signed=True) for value in values]
    )


def _of_int(value: int) -> bytes:
    return b"%d" % value


_ENCODE: Final[dict[type, Any]] = {
    str: str.encode,
    int: _of_int,
    bool: lambda value: b"true" if value else b"false",
    bytes: bytes,
    UUID: lambda value: value.bytes,
}
