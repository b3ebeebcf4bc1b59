"""
The psycopg connection below Django's: when statements use it directly, and how it stays usable.

``connection.cursor()`` is where a database backend acts on statements: django-tenants sets
``search_path`` there, django-prometheus counts. A statement that goes around it is stored in
the wrong schema or is not counted. So a connection is used directly only where Django's cursor
would do nothing else with the statement:

- no query logging and no ``execute_wrappers`` are active;
- the wrapper's class is Django's own, or adds only what HARMLESS lists. Any other attribute sends
  statements through Django, also one whose meaning is not known here;
- no method on the way was replaced at run time, on the wrapper (a debug toolbar), on its class
  (pytest-django) or on Django's cursors (Sentry);
- the psycopg connection and its cursors are of psycopg's or Django's own classes. Pools and
  tracers put proxies and subclasses there;
- the caller has no pipeline open (``connection.connection.pipeline()``), in which only psycopg
  knows when the server has to be asked for its answers.

A Session keeps, for one connection, the names of its prepared statements and the mark of a
statement under way. A signal handler may raise at any instruction: Ctrl-C, Celery's soft time
limit, a deadline. A statement that is under way then has to end before the connection can be used
again, and Django has to know that its transaction is broken. So ``is_under_way`` is set before a
statement is sent, and unset once its answer has been read. An exception in between goes to
``break_off``. Where a second signal interrupts that as well, the next use finds the mark.

A forked process cannot use a connection of its parent: see ``_leave_parents_connections``.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import time

# Documented for event loops to use; the public get_running_loop() raises an error for each append
# of sync code, which costs more than the rest of the check.
from asyncio import _get_running_loop as get_running_loop
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from operator import attrgetter
from threading import RLock, get_ident
from typing import Any, Final, NamedTuple, NoReturn, cast

import psycopg
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import Cursor as DjangoCursor
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.postgresql.base import ServerBindingCursor as DjangoServerCursor
from django.db.backends.utils import CursorWrapper
from psycopg import errors, generators, pq

logger = logging.getLogger("eventlogs.stores")

Row = tuple[Any, ...]
RawConnection = psycopg.Connection[Row]

# The methods that a statement goes through: those of the wrapper, of Django's cursor, of psycopg.
METHODS: Final = (
    *("cursor", "_cursor", "_prepare_cursor", "create_cursor", "make_cursor"),
    "ensure_connection",
)
SHADOWS: Final = frozenset(METHODS)
methods_of: Final[Callable[[Any], tuple[Any, ...]]] = attrgetter(*METHODS)
executes_of: Final[Callable[[Any], tuple[Any, ...]]] = attrgetter(
    "execute", "_execute_with_wrappers", "_execute"
)

DJANGOS_WRAPPERS: Final = frozenset(
    {
        "builtins.object",
        "django.db.backends.base.base.BaseDatabaseWrapper",
        "django.db.backends.postgresql.base.DatabaseWrapper",
        # It registers with each new connection how geometries are read and written. Statements
        # here have none. By name: importing it loads the libraries GEOS and GDAL.
        "django.contrib.gis.db.backends.postgis.base.DatabaseWrapper",
    }
)
# What a subclass may define without any effect on a statement: how the schema is described and
# changed, and how to log in. (A cursor class among the parameters is seen on the connection.)
HARMLESS: Final = frozenset(
    {
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__init__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__firstlineno__", "__static_attributes__", "__str__", "__repr__"),
        *("display_name", "data_types", "data_types_suffix", "data_type_check_constraints"),
        *("operators", "pattern_esc", "pattern_ops"),
        *("SchemaEditorClass", "client_class", "creation_class", "features_class"),
        *("introspection_class", "ops_class", "validation_class"),
        *("prepare_database", "get_database_version", "get_connection_params"),
    }
)
PLAIN_CURSORS: Final = frozenset(
    {DjangoCursor, DjangoServerCursor, psycopg.Cursor, psycopg.ClientCursor}
)


class Way(NamedTuple):
    """The methods that statements of a wrapper class go through."""

    methods: tuple[Any, ...]  # of the class
    executes: tuple[Any, ...]  # of Django's cursor
    make_cursor: Any  # of psycopg, as is the next
    execute: Any
    is_plain: bool  # whether all of it is code of Django and psycopg


_ways: dict[type, Way] = {}  # by wrapper class


def direct_connection(connection: BaseDatabaseWrapper) -> RawConnection | None:
    """
    Return the psycopg connection, ready as Django's own ``cursor()`` makes it.

    None where statements have to go through Django's cursor.
    """
    if (
        connection.queries_logged
        or connection.execute_wrappers
        or not vars(connection).keys().isdisjoint(SHADOWS)
    ):
        return None
    wrapper = type(connection)
    way = _ways.get(wrapper)
    # Compared each time: methods of classes are replaced, and put back, while a process runs.
    if (
        way is None
        or way.methods != methods_of(wrapper)
        or way.executes != executes_of(CursorWrapper)
        or way.make_cursor is not psycopg.Connection.cursor
        or way.execute is not psycopg.Cursor.execute
    ):
        way = _ways[wrapper] = _way_of(wrapper)
    if not way.is_plain:
        return None
    raw = raw_connection(connection)
    if (
        type(raw) is psycopg.Connection
        and raw.cursor_factory in PLAIN_CURSORS
        and "cursor" not in vars(raw)
        and (not raw.pgconn.pipeline_status or _is_pipeline_ours(raw))
    ):
        return raw
    return None


def _is_pipeline_ours(raw: RawConnection) -> bool:
    session: Session | None = vars(raw).get("_eventlogs_session")
    return session is not None and session.is_under_way


def _way_of(wrapper: type) -> Way:
    methods, executes = methods_of(wrapper), executes_of(CursorWrapper)
    below = psycopg.Connection.cursor, psycopg.Cursor.execute
    is_plain = all(
        f"{each.__module__}.{each.__qualname__}" in DJANGOS_WRAPPERS
        or vars(each).keys() <= HARMLESS
        for each in wrapper.__mro__
    )
    are_known = all(map(_is_known, (*methods, *executes, *below)))
    return Way(methods, executes, *below, is_plain and are_known)


def _is_known(function: Any) -> bool:
    """Return whether a function, and all that it wraps, is code of Django or psycopg."""
    while function is not None:
        # Not __module__: whatever wraps a function takes that over from it.
        module = getattr(function, "__globals__", {}).get("__name__", "")
        if module.split(".")[0] not in ("django", "psycopg"):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def raw_connection(connection: BaseDatabaseWrapper) -> RawConnection:
    """Return the psycopg connection, made ready as Django's own ``cursor()`` does."""
    if connection.health_check_enabled:  # type: ignore[attr-defined]
        connection.close_if_health_check_failed()
    # Django's check for async code, which ensure_connection() has, costs an exception each time.
    if connection.connection is None or get_running_loop() is not None:
        connection.ensure_connection()
    # The public validate_thread_sharing() takes a lock each time: it is called only where it could
    # refuse. (The stubs of Django lack the attribute.)
    if connection._thread_ident != get_ident():  # type: ignore[attr-defined]
        connection.validate_thread_sharing()
    if connection.needs_rollback:
        connection.validate_no_broken_transaction()
    return cast("RawConnection", connection.connection)


GOOD: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
ACTIVE: Final = pq.TransactionStatus.ACTIVE
IN_TRANSACTION: Final = pq.TransactionStatus.INTRANS
HAS_PIPELINES: Final = psycopg.Pipeline.is_supported() and hasattr(select, "poll")
DUPLICATE: Final = b"42P05"  # SQLSTATE of a statement that is prepared already

# psycopg 3.2 with libpq 17, which its binary package has.
HAS_CHUNKS: Final = hasattr(psycopg, "capabilities") and psycopg.capabilities.has_stream_chunked()
CHUNK: Final = 200  # rows
TUPLES_CHUNK: Final = getattr(pq.ExecStatus, "TUPLES_CHUNK", None)

WAIT: Final = 100  # milliseconds between two looks for signals, as psycopg has it
PATIENCE: Final = 5.0  # seconds that the server has to end a statement that is broken off

# Database aliases whose servers do not keep our prepared statements, until the process ends.
unprepared: set[str] = set()


class Session:
    """The state that is kept for a psycopg connection, as long as the connection exists."""

    __slots__ = (
        *("_doubtful", "_known", "_known_in", "_poll", "_reader", "_turn"),
        *("is_under_way", "prepared"),
    )

    def __init__(self, raw: RawConnection) -> None:
        self.is_under_way = False
        self._reader: int | None = None  # the thread that reads a page
        self._turn = RLock()  # held while it does
        self.prepared: set[bytes] = set()  # the names of statements
        self._doubtful: set[bytes] = set()  # … whose preparation was not seen to end
        self._known: set[bytes] = set()  # … that this transaction has run
        self._known_in: object = None  # the mark of that transaction
        self._poll: Callable[[int], Any] | None = None
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(raw.pgconn.socket, select.POLLIN)
            self._poll = poll.poll

    @contextmanager
    def reading(self) -> Iterator[None]:
        """
        Let this thread read a page, with a statement under way until the block unsets that.

        Threads that share a connection, which Django allows on request only, wait here and in
        ``settled_connection``. A statement of theirs that is not ours meets libpq's error "another
        command is already in progress".
        """
        with self._turn:
            self._reader = get_ident()
            self.is_under_way = True
            try:
                yield
            finally:
                self._reader = None

    def wait_for_reader(self) -> None:
        """Wait while another thread reads a page."""
        if self._reader not in (None, get_ident()):
            with self._turn:
                pass

    def knows(self, name: bytes, transaction: object) -> bool:
        """Return whether the transaction with this mark has run a statement."""
        return transaction is self._known_in and name in self._known

    def has_run(self, name: bytes, transaction: object) -> None:
        """Note that the transaction with this mark has run a statement."""
        if transaction is None:
            return
        if transaction is not self._known_in:
            self._known_in = transaction
            self._known.clear()
        self._known.add(name)

    def prepare(self, raw: RawConnection, name: bytes, statement: bytes) -> bool:
        """Prepare a statement; return False where one of that name is not ours."""
        self.prepared.discard(name)
        is_doubtful = name in self._doubtful
        self._doubtful.add(name)
        try:
            raw.pgconn.send_prepare(name, statement)
            self.answer(raw)
        except errors.DuplicatePreparedStatement:
            if not is_doubtful:
                self._doubtful.discard(name)
                return False
        except psycopg.Error:
            self._doubtful.discard(name)
            raise
        self.prepared.add(name)
        self._doubtful.discard(name)
        return True

    def pipelined(
        self,
        raw: RawConnection,
        before: Sequence[Callable[[], None]],
        prepare: tuple[bytes, bytes] | None,
        after: Sequence[Callable[[], None]],
    ) -> Any:
        """
        Send what is called ``before``, a preparation, and ``after`` it, in one round trip.

        Return the result of the last one. After a failure the server skips the rest; that failure
        is raised, and the connection has left the pipeline mode.
        """
        pgconn = raw.pgconn
        pgconn.enter_pipeline_mode()
        for send in before:
            send()
        if prepare is not None:
            name, statement = prepare
            is_doubtful = name in self._doubtful
            self._doubtful.add(name)
            pgconn.send_prepare(name, statement)
        for send in after:
            send()
        pgconn.pipeline_sync()
        results = self._answers(raw)
        if prepare is not None:
            answer = next(islice(results, len(before), None))
            if answer.status != pq.ExecStatus.PIPELINE_ABORTED:  # else nothing was learnt
                is_there = answer.error_field(pq.DiagnosticField.SQLSTATE) == DUPLICATE
                if answer.status in GOOD or (is_doubtful and is_there):
                    self.prepared.add(name)
                self._doubtful.discard(name)
        for result in results:
            if result.status not in GOOD:
                raise errors.error_from_result(result, raw.info.encoding)
        *_, last = results
        return last

    def _answers(self, raw: RawConnection) -> list[Any]:
        """Return the results of a pipeline, one for each statement, and leave the pipeline mode."""
        pgconn, poll = raw.pgconn, cast("Callable[[int], Any]", self._poll)
        if pgconn.flush():  # not all could be sent
            _send_all(pgconn)
        results: list[Any] = []
        while True:
            while pgconn.is_busy():
                if poll(WAIT):
                    pgconn.consume_input()
            result = pgconn.get_result()
            if pgconn.status != pq.ConnStatus.OK:
                raise psycopg.OperationalError("the connection to the server was lost")
            if result is None:  # the end of one statement's answer
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                pgconn.exit_pipeline_mode()
                return results
            results.append(result)

    def parts(self, raw: RawConnection) -> Iterator[Any]:
        """
        Yield the rows of the statement that was sent, as they come: results of up to 200 rows.

        Without libpq 17 and psycopg 3.2, or without poll(), all rows are in one result. Raise the
        server's error after the rows that were sent before it.
        """
        pgconn, poll = raw.pgconn, self._poll
        if poll is None or not HAS_CHUNKS:
            yield self.answer(raw)
            return
        pgconn.set_chunked_rows_mode(CHUNK)
        if pgconn.flush():  # not all could be sent
            _send_all(pgconn)
        failed = None
        while True:
            while pgconn.is_busy():
                if poll(WAIT):
                    pgconn.consume_input()
            if (result := pgconn.get_result()) is None:
                break
            if result.status == TUPLES_CHUNK:
                yield result
            elif result.status not in GOOD:
                failed = result
        if pgconn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError("the connection to the server was lost")
        if failed is not None:
            raise errors.error_from_result(failed, raw.info.encoding)

    def deallocate(self, raw: RawConnection, name: bytes) -> None:
        """Have the server forget a statement, if it knows it."""
        self.prepared.discard(name)
        raw.pgconn.send_query(b"DEALLOCATE " + name)
        with suppress(errors.InvalidSqlStatementName):
            self.answer(raw)

    def command(self, raw: RawConnection, command: bytes) -> None:
        """Run a command without parameters."""
        raw.pgconn.send_query(command)
        self.answer(raw)

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
            while True:
                while pgconn.is_busy():
                    if self._poll(WAIT):
                        pgconn.consume_input()
                if (further := pgconn.get_result()) is None:
                    break
                result = further
        if result.status not in GOOD:
            if pgconn.status != pq.ConnStatus.OK:
                raise psycopg.OperationalError("the connection to the server was lost")
            raise errors.error_from_result(result, raw.info.encoding)
        return result


def _send_all(pgconn: Any) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while pgconn.flush():
            for _, ready in selector.select(WAIT / 1000):
                if ready & selectors.EVENT_READ:
                    pgconn.consume_input()


def begin(raw: RawConnection) -> bytes:
    """Return the BEGIN with which psycopg would open a transaction on this connection."""
    words = ["BEGIN"]
    if raw.isolation_level is not None:
        name = psycopg.IsolationLevel(raw.isolation_level).name
        words.append(f"ISOLATION LEVEL {name.replace('_', ' ')}")
    if raw.read_only is not None:
        words.append("READ ONLY" if raw.read_only else "READ WRITE")
    if raw.deferrable is not None:
        words.append("DEFERRABLE" if raw.deferrable else "NOT DEFERRABLE")
    return " ".join(words).encode()


def session_of(raw: RawConnection) -> Session:
    """Return the session of a connection."""
    # On the connection itself: a WeakKeyDictionary costs as much as all other checks together.
    kept = vars(raw)
    session: Session | None = kept.get("_eventlogs_session")
    if session is None:
        session = kept["_eventlogs_session"] = Session(raw)
    return session


def settled_connection(connection: BaseDatabaseWrapper) -> RawConnection | None:
    """Return what ``direct_connection`` does, with no broken statement under way on it."""
    raw = direct_connection(connection)
    if raw is None:
        return None
    session: Session | None = vars(raw).get("_eventlogs_session")
    if session is None or not session.is_under_way:
        return raw
    session.wait_for_reader()
    if raw.lock.acquire(blocking=False):  # else another thread waits for its own answer
        try:
            if session.is_under_way:  # still: a thread may have got its answer meanwhile
                session.is_under_way = False
                break_off(connection)
        finally:
            raw.lock.release()
    return direct_connection(connection)


def break_off(connection: BaseDatabaseWrapper) -> None:
    """
    Make a connection usable, or close it, after an exception has interrupted a statement.

    Outside of a transaction the statement has either taken effect or not. A caller's transaction
    is rolled back as a whole: it may lack the statement, and the caller may catch the exception
    and continue.
    """
    if connection.in_atomic_block:
        connection.needs_rollback = True
    pgconn = getattr(connection.connection, "pgconn", None)
    if pgconn is None:
        return
    is_over = False
    try:
        is_under_way = pgconn.transaction_status == ACTIVE or pgconn.pipeline_status
        is_over = not is_under_way or _is_cancelled(pgconn)
        is_over = is_over and pgconn.status == pq.ConnStatus.OK
    finally:  # also where another signal handler raises
        if not is_over:
            pgconn.finish()
            with suppress(Exception):
                connection.close()


def break_off_if_broken(connection: BaseDatabaseWrapper) -> None:
    """Call ``break_off`` unless the exception came before or after the statement."""
    pgconn = getattr(connection.connection, "pgconn", None)
    if pgconn is None:
        return
    is_idle = pgconn.transaction_status == pq.TransactionStatus.IDLE
    if not is_idle and pgconn.transaction_status != IN_TRANSACTION:
        break_off(connection)


def _is_cancelled(pgconn: Any) -> bool:
    """Cancel the statement under way; return whether it has ended in time."""
    _cancel(pgconn)
    until = time.monotonic() + PATIENCE
    with suppress(psycopg.Error), selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ)
        if pgconn.pipeline_status:
            pgconn.pipeline_sync()  # without a Sync, the server need not send its answers
        while pgconn.status == pq.ConnStatus.OK:
            pgconn.flush()  # libpq keeps what the socket did not take at once
            while pgconn.is_busy():
                if time.monotonic() > until:
                    return False
                if selector.select(WAIT / 1000):
                    pgconn.consume_input()
                pgconn.flush()
            if pgconn.get_result() is None:
                if not pgconn.pipeline_status:
                    return True
                with suppress(psycopg.Error):  # there are more answers to read
                    pgconn.exit_pipeline_mode()
                    return True
    return False


def _cancel(pgconn: Any) -> None:
    with suppress(psycopg.Error):
        pgconn.get_cancel().cancel()


def stop_preparing(alias: str) -> None:
    """Send the statements of a database unprepared from now on, and say so once."""
    if alias in unprepared:
        return
    unprepared.add(alias)
    logger.warning(
        "Prepared statements on database %r get lost or exist already, as behind a pooler that "
        "shares sessions between clients. Statements are sent unprepared until this process "
        "ends. To avoid the attempts, set EVENTLOGS['PREPARED_STATEMENTS'] = False.",
        alias,
    )


# Connections and pools of the process that this one was forked from. References are kept: closing
# or freeing them here could end the parent's sessions.
_of_parent: list[Any] = []


class _OfParent:
    """A placeholder for a connection of the parent, which must be neither used nor closed."""

    @property
    def _pool(self) -> _OfParent:
        return self

    def putconn(self, connection: Any) -> None:
        """Keep it from a pool."""

    def close(self) -> None:
        """Do nothing."""

    def cursor(self, *arguments: Any, **named: Any) -> NoReturn:
        raise psycopg.OperationalError("this connection is of the process that was forked")


def _leave_parents_connections() -> None:
    """
    In a forked process, make Django connect again, without its parent's connections and pools.

    Two processes that use one connection read each other's answers, and the threads of a pool are
    in the parent alone. A transaction that the parent is in counts as broken here: statements in
    it raise TransactionManagementError.
    """
    pools: dict[str, Any] = vars(DatabaseWrapper).get("_connection_pools", {})
    _of_parent.extend(pools.values())
    pools.clear()
    for each in connections.all(initialized_only=True):
        if each.connection is not None and each.vendor == DatabaseWrapper.vendor:
            _of_parent.append(each.connection)
            each.connection = _OfParent()
            each.close()  # wrappers reset here what they know of their connection


os.register_at_fork(after_in_child=_leave_parents_connections)
