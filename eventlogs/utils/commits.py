"""
Whether what was read or written over a connection is committed, and calls after the commit.

What a process remembers of a database must be committed: a transaction that is rolled back takes
its rows with it, and nothing tells the process. ``on_commit`` alone is no proof either: it does not
know of a savepoint that was made and rolled back by hand. So a call after the commit reads again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextvars import copy_context
from threading import Thread
from typing import Any, Final, TypeVar

from django.db import Error, connections, transaction

from eventlogs.utils.errors import EventLogError

logger = logging.getLogger("eventlogs.privacy")

T = TypeVar("T")

IDLE: Final = 0  # libpq's PQTRANS_IDLE
WAITING: Final = "_eventlogs_after_commit"  # on a connection: its list of calls, and their keys


def is_autocommit(using: str | None) -> bool:
    """Return whether each statement is a transaction of its own; None is no database."""
    if using is None:
        return True
    connection = connections[using]
    if connection.in_atomic_block or not connection.get_autocommit():
        return False
    # Django does not know of a BEGIN that was sent as SQL.
    pgconn = getattr(connection.connection, "pgconn", None)
    return pgconn is None or pgconn.transaction_status == IDLE


def is_in_testcase(using: str) -> bool:
    """Return whether the open transaction is a TestCase's, which rolls all back."""
    blocks: list[Any] = connections[using].atomic_blocks
    return bool(blocks) and getattr(blocks[0], "_from_testcase", False)


def over_another_connection(using: str, call: Callable[[], T]) -> T:
    """
    Call ``call`` in a thread whose connection to ``using`` commits by itself; return its answer.

    For what must stay although the caller's transaction may be rolled back. It does not see what
    that transaction has written, and waits for ever if it needs its locks.
    """
    tenant: Any = getattr(connections[using], "tenant", None)  # of django-tenants
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            connection: Any = connections[using]
            if tenant is not None:
                connection.set_tenant(tenant)
            connection.set_autocommit(True)
            found.append(call())
        except BaseException as error:  # raised below, in the caller's thread
            raised.append(error)
        finally:
            connections.close_all()

    thread = Thread(target=copy_context().run, args=(run,), name="eventlogs-keys")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return found[0]


def after_commit(using: str | None, key: Hashable, call: Callable[[], object]) -> None:
    """
    Call ``call`` after the commit of Django's open transaction, once for each ``key``.

    Do nothing where no commit will be seen: in a TestCase, or with a transaction that is not
    Django's. An error of the database is logged.
    """
    if using is None or not (connection := connections[using]).in_atomic_block:
        return
    if is_in_testcase(using):
        return
    # Django makes a new list when a transaction ends or a savepoint is rolled back: calls that are
    # dropped are wanted again. (An Atomic is no such mark: a decorated function has one for ever.)
    calls, waiting = vars(connection).get(WAITING, (None, set()))
    if calls is not connection.run_on_commit:
        calls, waiting = connection.run_on_commit, set()
        vars(connection)[WAITING] = calls, waiting
    if key in waiting:
        return
    waiting.add(key)

    def run() -> None:
        try:
            call()
        except (Error, EventLogError) as error:
            logger.info("Not remembered after a commit: %s", type(error).__qualname__)

    transaction.on_commit(run, using=using, robust=True)
