"""
What the hot path keeps for a psycopg connection: prepared statements, and a broken statement.

A signal handler may raise at any instruction: Ctrl-C, Celery's soft time limit, a deadline. A
statement that is under way then has to end before the connection can be used again, and Django
has to know that its transaction is broken. So ``is_under_way`` is set before a statement is
sent, and unset once its answer has been read. Whatever is raised in between comes to
``break_off``. Where a second signal interrupts that as well, the next use finds the mark.
"""

from __future__ import annotations

import logging
import select
import selectors
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors, generators, pq

from eventlogs.stores.direct import RawConnection, direct_connection

logger = logging.getLogger("eventlogs.stores")

GOOD: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
ACTIVE: Final = pq.TransactionStatus.ACTIVE
IN_TRANSACTION: Final = pq.TransactionStatus.INTRANS

WAIT: Final = 100  # milliseconds between two looks for signals, as psycopg has it
PATIENCE: Final = 5.0  # seconds that the server has to end a statement that is broken off

# Database aliases whose servers do not keep our prepared statements, until the process ends.
unprepared: set[str] = set()


class Session:
    """What is known of a psycopg connection; it goes when the connection goes."""

    __slots__ = ("_doubtful", "_poll", "is_under_way", "prepared")

    def __init__(self, raw: RawConnection) -> None:
        self.is_under_way = False
        self.prepared: set[bytes] = set()  # the names of statements
        self._doubtful: set[bytes] = set()  # … whose preparation was not seen to end
        self._poll: Callable[[int], Any] | None = None
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(raw.pgconn.socket, select.POLLIN)
            self._poll = poll.poll

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

    def deallocate(self, raw: RawConnection, name: bytes) -> None:
        """Have the server forget a statement, if it knows it."""
        self.prepared.discard(name)
        raw.pgconn.send_query(b"DEALLOCATE " + name)
        with suppress(errors.InvalidSqlStatementName):
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


def session_of(raw: RawConnection) -> Session:
    """Return what is kept for a connection."""
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
    Leave a connection usable, or closed, after an exception has broken into a statement.

    Outside of a transaction the statement has either taken effect or not. A caller's transaction
    is rolled back as a whole: it may lack the statement, and the caller may go on all the same.
    """
    if connection.in_atomic_block:
        connection.needs_rollback = True
    pgconn = getattr(connection.connection, "pgconn", None)
    if pgconn is None:
        return
    is_over = False
    try:
        is_over = pgconn.transaction_status != ACTIVE or _is_cancelled(pgconn)
        is_over = is_over and pgconn.status == pq.ConnStatus.OK
    finally:  # also where another signal handler raises
        if not is_over:
            pgconn.finish()
            with suppress(Exception):
                connection.close()


def break_off_if_broken(connection: BaseDatabaseWrapper) -> None:
    """Do the same after an exception that may have come before or after the statement."""
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
        while True:
            pgconn.flush()  # libpq keeps what the socket did not take at once
            while pgconn.is_busy():
                if time.monotonic() > until:
                    return False
                if selector.select(WAIT / 1000):
                    pgconn.consume_input()
                pgconn.flush()
            if pgconn.get_result() is None:
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
        "Statements that are prepared on database %r get lost or are there already, as behind a "
        "pooler that shares sessions between clients. They go unprepared until this process "
        "ends. To spare the attempts, set EVENTLOGS['PREPARED_STATEMENTS'] = False.",
        alias,
    )
