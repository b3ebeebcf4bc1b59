"""
The SQL statements for PostgreSQL: each is sent whole, in one round trip.

There are three ways to send one:

- ``HotStatement.numbers`` hands an append to libpq by psycopg's low-level interface
  (https://www.psycopg.org/psycopg3/docs/api/pq.html), which halves its processor time. The
  statement is prepared: outside of a transaction, a connection that does not know it yet takes one
  round trip more; inside of one, ``_first`` and ``_later`` say what keeps it from breaking the
  caller's transaction.
- ``Statement.read`` hands a page of events to libpq, too, unprepared, and has it send the rows in
  chunks. ``Statement.rows`` takes a psycopg cursor, which binds on the server. A ``HotRead`` is
  prepared, outside of transactions.
- All take Django's own cursor where the backend or a tool has to see the statement:
  ``psycopg_connections.py`` decides that.

Waiting releases the interpreter's lock: a thread that waits for a row must not keep another
one from committing. It lets signal handlers run, too: see ``psycopg_connections.py``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from importlib.resources import files
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeVar, Unpack, cast

import psycopg
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors, pq
from psycopg.adapt import PyFormat, Transformer

from eventlogs import conf
from eventlogs.stores import variants
from eventlogs.stores.columns import SQL
from eventlogs.stores.psycopg_connections import (
    HAS_PIPELINES,
    RawConnection,
    Row,
    Session,
    begin,
    break_off,
    break_off_if_broken,
    raw_connection,
    session_of,
    settled_connection,
    stop_preparing,
    unprepared,
)
from eventlogs.stores.retries import given_up

__all__ = ["HotRead", "HotStatement", "Row", "Statement", "raw_connection"]

PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s")
TYPED_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s::(\w+(?:\[\])?)")
TEXT: Final = 0
BINARY: Final = 1
SMALL: Final = 12  # bits of a position; below, reading the whole table takes a millisecond
FEW: Final = 50  # rows that become objects while the processor has them in its cache
ACTIVE: Final = pq.TransactionStatus.ACTIVE
IDLE: Final = pq.TransactionStatus.IDLE


def _array(type_oid: int, encode: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], bytes]:
    """Return the encoder of arrays of one dimension: a header, and each value with its length."""
    header, length = struct.Struct("!iiIii").pack, struct.Struct("!i").pack

    def encode_all(values: Sequence[Any]) -> bytes:
        if not values:
            return header(0, 0, type_oid, 0, 1)[:12]  # no dimensions
        items = [encode(value) for value in values]
        parts = [length(len(item)) + item for item in items]
        return header(1, 0, type_oid, len(values), 1) + b"".join(parts)

    return encode_all


# How a value is sent, by the name of its PostgreSQL type. The server reads binary values fastest;
# the binary forms of text and JSON are the text.
ENCODERS: Final[dict[str, tuple[Callable[[Any], bytes], int]]] = {
    "uuid": (attrgetter("bytes"), BINARY),
    "bytea": (bytes, BINARY),
    "integer": (struct.Struct("!i").pack, BINARY),
    "bigint": (struct.Struct("!q").pack, BINARY),
    "boolean": (struct.Struct("!?").pack, BINARY),
    "text": (str.encode, TEXT),
    "jsonb": (str.encode, TEXT),
    "text[]": (_array(25, str.encode), BINARY),
    "bigint[]": (_array(20, struct.Struct("!q").pack), BINARY),
}

# Inside of a transaction: the statement is not there, or one of its name is there already.
LOST: Final = (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement)
TRIES: Final = 2  # to run a statement prepared: it is prepared again once

# A caller would hardly choose this name. If one does, nothing breaks: RELEASE and ROLLBACK TO take
# the innermost savepoint of a name.
SAVEPOINT: Final = b"SAVEPOINT eventlogs_append"
RELEASE: Final = b"RELEASE SAVEPOINT eventlogs_append"
BACK: Final = b"ROLLBACK TO SAVEPOINT eventlogs_append"

Binds = list[bytes | None]

# The connection's statements were deallocated (DISCARD ALL, DEALLOCATE), the pooler has assigned
# another session, or the tables were changed so that other types are returned.
PREPARED_IN_VAIN: Final = (errors.InvalidSqlStatementName, errors.FeatureNotSupported)


T = TypeVar("T")


class Statement:
    """
    A statement of ``sql/``, with ``%(name)s`` for each of its parameters.

    ``{log}``, ``{stored}`` and ``{inserted}`` stand for columns of an event: see ``columns.py``.
    With ``chained``, it is the one that chains logs, with ``has_buckets`` that of the layout with
    buckets, and ``filters`` are those that it has: see ``variants.py``.
    """

    def __init__(self, name: str, **variant: Unpack[variants.Variant]) -> None:
        text = (files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")
        text = variants.variant(text, **variant)
        self.sql = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
        for name_of_list, columns in SQL.items():
            self.sql = self.sql.replace(name_of_list, columns)
        self._order: list[str] = []
        numbered = PLACEHOLDER.sub(self._number, self.sql)
        self._numbered = numbered.encode()
        # Behind a pooler, a session may have a statement of another release.
        digest = sha256(self._numbered).hexdigest()[:16]
        self._name = f"eventlogs_{name}_{digest}".encode()

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
        try:
            raw = settled_connection(connection)
            if raw is None:
                with connection.cursor() as cursor:
                    cursor.execute(self.sql, parameters)
                    return cast("list[Row]", cursor.fetchall())
            # Never prepared by psycopg: it answers a ROLLBACK with DEALLOCATE ALL once it has
            # prepared anything, and ours would be gone with its own. Binary results, because a
            # timestamp is four times as cheap to read as its text.
            with psycopg.Cursor(raw) as own:
                own.execute(self.sql, parameters, prepare=False, binary=True)
                return own.fetchall()
        except psycopg.Error:
            with connection.wrap_database_errors:
                raise
        except Error:
            raise
        except BaseException:
            break_off_if_broken(connection)
            raise

    def read(
        self,
        connection: BaseDatabaseWrapper,
        parameters: Mapping[str, Any],
        make: Callable[[list[Row]], Iterable[T]],
    ) -> list[T]:
        """
        Run the statement as ``rows`` does, and return what ``make`` makes of some rows at a time.

        Where libpq can, that happens while the server sends the next rows: a page of 2,000 events
        takes a third less. So ``make`` must not use the connection, nor call code that might.
        """
        raw = settled_connection(connection)
        # psycopg begins a transaction with its first statement: that one takes psycopg's cursor.
        if raw is None or (not raw.autocommit and raw.pgconn.transaction_status == IDLE):
            return list(make(self.rows(connection, parameters)))
        try:
            return self._read(connection, raw, parameters, make)
        except psycopg.Error:
            with connection.wrap_database_errors:
                raise

    def _read(
        self,
        connection: BaseDatabaseWrapper,
        raw: RawConnection,
        parameters: Mapping[str, Any],
        make: Callable[[list[Row]], Iterable[T]],
    ) -> list[T]:
        transformer = Transformer(raw)
        send = self._sender(connection, raw, transformer, parameters)
        made: list[T] = []
        session = session_of(raw)
        # Not the connection's own lock: while objects are made, the garbage collector may close an
        # abandoned server-side cursor, which takes that lock, and would wait for this very thread.
        with session.reading():
            is_sent = False
            try:
                results = send(session)
                is_sent = True
                for result in results:
                    transformer.set_pgresult(result)
                    for first in range(0, result.ntuples, FEW):
                        past = min(first + FEW, result.ntuples)
                        made += make(transformer.load_rows(first, past, tuple))
            except psycopg.Error:
                # The server's answer, or there is no server any more; or psycopg cannot load a
                # value, such as a time of "infinity", with more rows to come.
                if is_sent and raw.pgconn.transaction_status == ACTIVE:
                    break_off(connection)
                session.is_under_way = False
                raise
            except BaseException:
                break_off(connection)
                session.is_under_way = False
                raise
            session.is_under_way = False
        return made

    def _sender(
        self,
        connection: BaseDatabaseWrapper,
        raw: RawConnection,
        transformer: Any,  # a Transformer, which is no type to mypy
        parameters: Mapping[str, Any],
    ) -> Callable[[Session], Iterator[Any]]:
        """Return a function that sends the statement, and returns its results as they come."""
        values = [parameters[name] for name in self._order]
        binds = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))

        def send(session: Session) -> Iterator[Any]:
            raw.pgconn.send_query_params(
                self._numbered, binds, transformer.types, transformer.formats, BINARY
            )
            return session.parts(raw)

        return send


class HotStatement(Statement):
    """
    A statement of the hot path: its parameters are of the types in ENCODERS, or None.

    The encoder of each parameter is chosen once, by the type that the statement names for it.
    """

    def __init__(self, name: str, **variant: Unpack[variants.Variant]) -> None:
        super().__init__(name, **variant)
        types = dict(TYPED_PLACEHOLDER.findall(self.sql))
        # A getter of less than two values would return no tuple.
        self._values = itemgetter(*self._order) if len(self._order) > 1 else self._few
        found = [ENCODERS[types[parameter]] for parameter in self._order]
        self._encoders = [encoder for encoder, _ in found]
        self._formats = [form for _, form in found]  # a list: psycopg 3.1 takes no tuple

    def _few(self, parameters: Mapping[str, Any]) -> list[Any]:
        return [parameters[name] for name in self._order]

    def _encoded(self, parameters: Mapping[str, Any]) -> Binds:
        return [
            None if value is None else encode(value)
            for value, encode in zip(self._values(parameters), self._encoders, strict=True)
        ]

    def numbers(
        self, connection: BaseDatabaseWrapper, parameters: Mapping[str, Any]
    ) -> tuple[int | None, ...] | None:
        """Run the statement and return its only row, of integers, or None where it has none."""
        raw = settled_connection(connection)
        # psycopg begins a transaction with its first statement. Where no pipeline can do that in
        # one round trip, that statement takes psycopg's cursor.
        if raw is not None and (
            raw.autocommit or raw.pgconn.transaction_status != IDLE or HAS_PIPELINES
        ):
            try:
                result = self._in_one_trip(connection, raw, parameters)
            except psycopg.Error:
                with connection.wrap_database_errors:
                    raise
            if not result.ntuples:
                return None
            columns = range(result.nfields)
            return tuple([_number(result.get_value(0, column)) for column in columns])
        found = self.rows(connection, parameters)
        return found[0] if found else None

    def all_numbers(
        self, connection: BaseDatabaseWrapper, parameters: Mapping[str, Any]
    ) -> list[Row]:
        """Run the statement as a transaction of its own; return its rows, of integers or None."""
        raw = settled_connection(connection)
        if raw is None:
            return self.rows(connection, parameters)
        try:
            result = self._in_one_trip(connection, raw, parameters)
        except psycopg.Error:
            with connection.wrap_database_errors:
                raise
        columns = range(result.nfields)
        return [
            tuple([_number(result.get_value(row, column)) for column in columns])
            for row in range(result.ntuples)
        ]

    def _in_one_trip(
        self, connection: BaseDatabaseWrapper, raw: RawConnection, parameters: Mapping[str, Any]
    ) -> Any:
        binds = self._encoded(parameters)
        pgconn, name = raw.pgconn, self._name
        with raw.lock:
            session = session_of(raw)
            session.is_under_way = True
            try:
                is_idle = pgconn.transaction_status == IDLE
                if is_idle and not raw.autocommit:
                    result = self._first(connection, raw, session, binds)
                elif not is_idle:
                    result = self._later(connection, raw, session, binds)
                elif not conf.prepared_statements() or connection.alias in unprepared:
                    result = self._unprepared(raw, session, binds)
                elif name in session.prepared:
                    self._send_prepared(raw, binds)
                    try:
                        result = session.answer(raw)
                    except PREPARED_IN_VAIN as error:
                        result = self._prepared_again(raw, session, binds, connection.alias, error)
                else:
                    result = self._prepared_again(raw, session, binds, connection.alias)
            except psycopg.Error:  # the server's answer, or there is no server any more
                session.is_under_way = False
                raise
            except BaseException:
                break_off(connection)
                session.is_under_way = False
                raise
            session.is_under_way = False
        return result

    def _first(
        self, connection: BaseDatabaseWrapper, raw: RawConnection, session: Session, binds: Binds
    ) -> Any:
        """
        Begin a transaction, as psycopg would, and run the statement, in one round trip.

        A prepared statement that was deallocated, or that the pooler's server never had, costs two
        round trips: the transaction, which has done nothing yet, is rolled back and begun again.
        """
        before, transaction = [_query(raw, begin(raw))], _mark(connection)
        for _ in range(TRIES):
            if not _may_prepare(connection):
                break
            try:
                return self._pipelined(raw, session, binds, before, [], transaction)
            except LOST as error:
                session.command(raw, b"ROLLBACK")
                self._note_loss(session, error, connection.alias)
        return session.pipelined(raw, before, None, [partial(self._send, raw, binds)])

    def _later(
        self, connection: BaseDatabaseWrapper, raw: RawConnection, session: Session, binds: Binds
    ) -> Any:
        """
        Run the statement in a transaction that is open, in one round trip.

        A prepared statement that does not exist must not break the caller's transaction. It is
        known to exist if this very transaction has run it: poolers share sessions between
        transactions and not within them, and PostgreSQL refuses DISCARD ALL in a transaction. (It
        allows DEALLOCATE: see below.) Before its first use in a transaction, the server is asked
        for it, or prepares it, inside of a savepoint, in the same round trip. The savepoint ends
        before the statement runs. It writes nothing, so it has no transaction id of its own, and
        the rows and locks of the append are those of the caller's transaction. The statement is
        not prepared

        - where psycopg prepares by itself (prepare_threshold): it then answers ALTER, DROP and
          ROLLBACK TO with DEALLOCATE ALL
          (https://www.psycopg.org/psycopg3/docs/advanced/prepare.html);
        - where Django has not begun the transaction: we cannot tell it from the one before, so each
          append would need a savepoint.
        """
        transaction, name = _mark(connection), self._name
        if (
            transaction is None
            or raw.prepare_threshold is not None
            or not HAS_PIPELINES
            or not _may_prepare(connection)
        ):
            return self._unprepared(raw, session, binds)
        if session.knows(name, transaction):
            self._send_prepared(raw, binds)
            try:
                return session.answer(raw)
            except errors.InvalidSqlStatementName as error:
                # The caller has sent a DEALLOCATE in this transaction. The next one will notice.
                session.prepared.clear()
                raise given_up(connection.alias) from error
        before, after = [_query(raw, SAVEPOINT)], [_query(raw, RELEASE)]
        ask: Callable[[], None] = partial(raw.pgconn.send_describe_prepared, name)
        for _ in range(TRIES):
            asking = [*before, ask] if name in session.prepared else before
            try:
                return self._pipelined(raw, session, binds, asking, after, transaction)
            except LOST as error:
                session.command(raw, BACK)
                session.command(raw, RELEASE)
                self._note_loss(session, error, connection.alias)
                if not _may_prepare(connection):
                    break
        return self._unprepared(raw, session, binds)

    def _pipelined(
        self,
        raw: RawConnection,
        session: Session,
        binds: Binds,
        before: Sequence[Callable[[], None]],
        after: Sequence[Callable[[], None]],
        transaction: object,
    ) -> Any:
        prepare = None if self._name in session.prepared else (self._name, self._numbered)
        send = partial(self._send_prepared, raw, binds)
        result = session.pipelined(raw, before, prepare, [*after, send])
        session.has_run(self._name, transaction)
        return result

    def _note_loss(self, session: Session, error: psycopg.Error, alias: str) -> None:
        """Forget a statement that is not there; prepare no more if another client has its name."""
        if isinstance(error, errors.InvalidSqlStatementName):
            session.prepared.discard(self._name)
        elif self._name not in session.prepared:  # another client of the same session has it
            stop_preparing(alias)

    def _prepared_again(
        self,
        raw: RawConnection,
        session: Session,
        binds: Binds,
        alias: str,
        error: psycopg.Error | None = None,
    ) -> Any:
        """Prepare the statement, for the first time or after an error, and run it."""
        # Outside of a transaction, an error has stored nothing: the statement can be sent again.
        if isinstance(error, errors.FeatureNotSupported):
            session.deallocate(raw, self._name)
        is_lost = not session.prepare(raw, self._name, self._numbered)
        if not is_lost:
            self._send_prepared(raw, binds)
            try:
                return session.answer(raw)
            except errors.InvalidSqlStatementName:
                is_lost = True
            except errors.FeatureNotSupported:
                session.deallocate(raw, self._name)
        session.prepared.discard(self._name)
        if is_lost:  # to another client of the same session, or it went to another session
            stop_preparing(alias)
        return self._unprepared(raw, session, binds)

    def _unprepared(self, raw: RawConnection, session: Session, binds: Binds) -> Any:
        self._send(raw, binds)
        return session.answer(raw)

    def _send(self, raw: RawConnection, binds: Binds) -> None:
        raw.pgconn.send_query_params(
            self._numbered, binds, param_formats=self._formats, result_format=BINARY
        )

    def _send_prepared(self, raw: RawConnection, binds: Binds) -> None:
        raw.pgconn.send_query_prepared(self._name, binds, self._formats, BINARY)


class HotRead(HotStatement):
    """
    A statement that readers of the feed send all the time: prepared outside of transactions.

    There an error has done nothing, so a statement that is lost is prepared again, or sent
    unprepared, as that of an append is. Inside of a transaction it is sent unprepared.

    From the sixth time on, PostgreSQL may use a plan that it makes once, for all values of the
    parameters, if it expects that to cost no more
    (https://www.postgresql.org/docs/current/sql-prepare.html). Two things keep that plan right:

    - A statement that reads a range of the table has its parameters in sub-queries, such as
      ``(SELECT %(after)s::bigint)``. So the planner knows none of their values, prepared or not.
      There is one plan, an index scan from the lower bound to the upper one, and it is expected to
      cost the same each time.
    - A plan that was made for a small table may read all of it. PostgreSQL makes it anew when the
      table has been analyzed; but a table may grow before, or autovacuum may be off. So such a
      statement has a variant for each size of the feed: see ``upto``.
    """

    def __init__(
        self, name: str, *, bits: int | None = None, filters: Collection[str] = ()
    ) -> None:
        super().__init__(name, filters=filters)
        self.name = name
        self._variants: dict[tuple[int, Collection[str]], HotRead] = {}
        if bits is not None:
            # In the text: some poolers know a prepared statement by that.
            self._numbered += f" /* up to 2^{bits} */".encode()
            self._name += b"_%d" % bits

    def upto(self, position: int, filters: tuple[str, ...] = ()) -> HotRead:
        """
        Return the variant with these filters for a feed with this end.

        Its plan is used until the end has doubled.
        """
        bits = max(position.bit_length(), SMALL)
        found = self._variants.get((bits, filters))
        if found is None:
            found = HotRead(self.name, bits=bits, filters=filters)
            self._variants[bits, filters] = found
        return found

    def _sender(
        self,
        connection: BaseDatabaseWrapper,
        raw: RawConnection,
        transformer: Any,  # a Transformer, which is no type to mypy
        parameters: Mapping[str, Any],
    ) -> Callable[[Session], Iterator[Any]]:
        if raw.pgconn.transaction_status != IDLE or not _may_prepare(connection):
            return super()._sender(connection, raw, transformer, parameters)
        binds, alias = self._encoded(parameters), connection.alias

        def send(session: Session) -> Iterator[Any]:
            if self._name not in session.prepared:
                return iter([self._prepared_again(raw, session, binds, alias)])
            self._send_prepared(raw, binds)
            return self._parts(raw, session, binds, alias)

        return send

    def _parts(
        self, raw: RawConnection, session: Session, binds: Binds, alias: str
    ) -> Iterator[Any]:
        """Yield the results of the prepared statement; if it is lost, those of another attempt."""
        results = session.parts(raw)
        try:
            first = next(results, None)
        except PREPARED_IN_VAIN as error:  # before any row
            yield self._prepared_again(raw, session, binds, alias, error)
            return
        if first is not None:
            yield first
        yield from results


def _query(raw: RawConnection, command: bytes) -> Callable[[], None]:
    """Return a function that sends a command in a pipeline."""
    return partial(raw.pgconn.send_query_params, command, None)


def _may_prepare(connection: BaseDatabaseWrapper) -> bool:
    return conf.prepared_statements() and connection.alias not in unprepared


def _mark(connection: BaseDatabaseWrapper) -> object:
    """
    Return an object that no other transaction has, or None where Django has not begun this one.

    Django makes a new list of hooks for each transaction of its own, and after each rollback to a
    savepoint. The session keeps a reference to it, so Python gives its identity to no other list.
    """
    if connection.in_atomic_block and connection.commit_on_exit:
        return connection.run_on_commit
    return None


def _number(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value, "big", signed=True)
