"""Connections that are lost, or have to be dropped, while an event is applied."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.db import Error, OperationalError, connections

from eventlogs.projections.base import Failed


def cancel_statement(using: str) -> None:
    """
    Cancel the statement that the database is executing, so that nothing waits for its end.

    MariaDB and MySQL do that from another connection. Drop this one afterwards.
    """
    connection = connections[using]
    raw = connection.connection
    if connection.vendor == "mysql" and raw is not None:
        other = connection.copy()
        try:
            with suppress(Exception), other.cursor() as cursor:
                cursor.execute("KILL QUERY %s", [raw.thread_id()])
        finally:
            other.close()
        return
    cancel = getattr(raw, "cancel_safe", None) or getattr(raw, "cancel", None)
    if cancel is not None:
        with suppress(Exception):
            cancel()


def is_broken(using: str, raw: Any) -> bool:
    """
    Return whether the driver knows that the connection ``raw`` was lost.

    PyMySQL closes one that is lost, while Django still has it; psycopg has a word for it.
    """
    is_closed = not getattr(raw, "open", True)
    return getattr(raw, "broken", False) or (is_closed and connections[using].connection is raw)


def drop(using: str) -> None:
    """Close the connection, unless a caller's transaction is open on it."""
    connection = connections[using]
    if not connection.in_atomic_block:
        connection.close()


def failure_of_loss(using: str, raw: Any, cause: BaseException) -> Failed | None:
    """
    Return a failure that no event has caused, where the connection ``raw`` was lost; or None.

    ``cause`` is the error that was raised. It need not be the database's: a handler may have
    caught the loss, and raised an error of its own. Raise the database's error where there is no
    other connection yet.
    """
    connection = connections[using]
    # Where a ROLLBACK fails, Django has another connection when its atomic() has ended; the driver
    # knows which one is broken.
    is_lost = raw is not None and (
        (connection.connection is not raw and not connection.in_atomic_block)
        or is_broken(using, raw)
    )
    if not is_lost and not isinstance(cause, Error):
        return None
    # PyMySQL answers a ping by connecting again, without what Django sets on a new connection.
    is_usable = not (connection.connection is raw and is_lost) and connection.is_usable()
    if not is_lost and is_usable:
        return None
    error = cause
    if not isinstance(cause, Error):
        error = OperationalError("The connection was lost while an event was applied.")
        error.__cause__ = cause
    if not is_usable:
        drop(using)
        if not is_lost or not _answers(using):
            raise error
    return Failed(None, error, is_lost=True)


def _answers(using: str) -> bool:
    connection = connections[using]
    with suppress(Error):
        connection.ensure_connection()
        return not connection.in_atomic_block and connection.is_usable()
    return False
