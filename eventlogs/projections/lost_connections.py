"""Connections that are lost, or have to be dropped, while an event is applied."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.db import Error, OperationalError, connections

from eventlogs.projections.base import Failed


def cancel_statement(using: str) -> None:
    """Cancel the statement that the database is executing, so that nothing waits for its end."""
    raw = connections[using].connection
    cancel = getattr(raw, "cancel_safe", None) or getattr(raw, "cancel", None)
    if cancel is not None:
        with suppress(Exception):
            cancel()


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
    # Where a ROLLBACK fails, Django has another connection when its atomic() has ended; psycopg
    # knows which one is broken.
    is_lost = raw is not None and (
        (connection.connection is not raw and not connection.in_atomic_block)
        or getattr(raw, "broken", False)
    )
    if not is_lost and not isinstance(cause, Error):
        return None
    is_usable = connection.is_usable()
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
