"""
Retries of what the database has aborted: a deadlock or a serialization failure.

Inside of a caller's transaction only the caller can run everything again, so such an error becomes
TransactionMustRetry. Outside, nothing but the append (or the read) is lost, and it is run again
here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Concatenate, ParamSpec, TypeVar

from django.db import Error, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.exceptions import TransactionMustRetry

T = TypeVar("T")
P = ParamSpec("P")

ATTEMPTS = 6  # outside of a transaction
FIRST_PAUSE = 0.01  # seconds, doubled each time, with full jitter

# https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html
MUST_RETRY_SQLSTATES = frozenset({"40001", "40P01"})
# SQLITE_BUSY, also with an extended code above its low byte (https://sqlite.org/rescode.html),
# and MySQL's deadlock found (1213) and lock wait timeout (1205). MariaDB's 1020 says that a row has
# changed since the snapshot was taken (innodb_snapshot_isolation, on since MariaDB 11.6.2).
SQLITE_BUSY = 5
MYSQL_DEADLOCK = 1213
MYSQL_MUST_RETRY = frozenset({1020, 1205, MYSQL_DEADLOCK})
MYSQL_NO_SAVEPOINT = 1305


def in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a caller's transaction is open (or will be, without autocommit)."""
    return connection.in_atomic_block or not connection.get_autocommit()


def run_again(
    using: str,
    attempt: Callable[Concatenate[BaseDatabaseWrapper, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """
    Call ``attempt`` until the database does not abort it, and return its answer.

    It is called with the connection of ``using`` and the further arguments.

    Raise TransactionMustRetry inside of a caller's transaction, or after six attempts.
    """
    connection = connections[using]
    try:
        return attempt(connection, *args, **kwargs)
    except Error as error:
        return run_after(error, connection, attempt, *args, **kwargs)


def run_after(
    error: Error,
    connection: BaseDatabaseWrapper,
    attempt: Callable[Concatenate[BaseDatabaseWrapper, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """
    Do what ``run_again`` does after its first attempt, which has failed with ``error``.

    Raise ``error`` itself where the database does not say that the transaction should be run again.
    """
    for number in range(ATTEMPTS):
        if not must_retry(error):
            raise error
        inside = in_transaction(connection)
        if inside and connection.in_atomic_block:
            connection.set_rollback(True)
        if inside or number == ATTEMPTS - 1:
            raise TransactionMustRetry(using=connection.alias, sqlstate=_sqlstate(error)) from error
        time.sleep(random.uniform(0, FIRST_PAUSE * 2**number))  # jitter
        try:
            return attempt(connection, *args, **kwargs)
        except Error as further:
            error = further
    raise AssertionError("unreachable: the last attempt returns or raises")


def run_in_transaction(using: str, attempt: Callable[[], T]) -> T:
    """
    Call ``attempt`` in a transaction; run it again, at most six times, if the database aborts it.

    Raise TransactionMustRetry after that, and at once inside of a caller's transaction, in which
    ``attempt`` takes part.
    """

    def whole(connection: BaseDatabaseWrapper) -> T:
        try:
            with transaction.atomic(using=using):
                return attempt()
        except TransactionMustRetry as error:
            if isinstance(error.__cause__, Error):
                # Around the transaction, it can be tried again. No "from": the error keeps its own
                # cause, by which must_retry() judges.
                raise error.__cause__  # noqa: B904
            raise

    return run_again(using, whole)


@contextmanager
def undivided(using: str) -> Iterator[None]:
    """
    Open a transaction, or a savepoint, around code of others that may catch a deadlock's error.

    MariaDB and MySQL have rolled back the whole transaction by then, and the next statement begins
    another one: what came before the deadlock would be missing, and what came after it would be
    committed. (PostgreSQL refuses all further statements.) Right because: a savepoint is gone with
    its transaction, so the end of the block, which releases it, fails. Then nothing is committed,
    and the error is that of a deadlock: ``must_retry`` is true.
    """
    connection = connections[using]
    is_mysql = connection.vendor == "mysql"
    alone = not connection.in_atomic_block
    with transaction.atomic(using=using) if is_mysql and alone else nullcontext():
        try:
            with transaction.atomic(using=using):
                yield
        except Error as error:
            is_gone = error.args[:1] == (MYSQL_NO_SAVEPOINT,) and connection.needs_rollback
            if not (is_mysql and is_gone):
                raise
            text = "Deadlock found, and caught, in this transaction; it was rolled back."
            raise OperationalError(MYSQL_DEADLOCK, text) from error


def given_up(using: str) -> TransactionMustRetry:
    """
    Return the error for a transaction in which an append cannot be decided.

    A caller's transaction is rolled back as a whole, even if the caller catches the error.
    """
    connection = connections[using]
    if connection.in_atomic_block:
        connection.set_rollback(True)
    return TransactionMustRetry(using=using, sqlstate=None)


def must_retry(error: Error) -> bool:
    """Return whether the database says that the transaction should be run again."""
    if _sqlstate(error) in MUST_RETRY_SQLSTATES:
        return True
    code = getattr(error.__cause__, "sqlite_errorcode", None)
    if code is not None:
        return bool(code & 0xFF == SQLITE_BUSY)
    return bool(error.args) and error.args[0] in MYSQL_MUST_RETRY


def _sqlstate(error: Error) -> str | None:
    return getattr(error.__cause__, "sqlstate", None)
