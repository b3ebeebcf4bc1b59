"""
Moves of logs between databases, as the rows of LogMove tell of them.

The row of a log that is leaving, has left or is arriving is a mark in EventLog: it has no log type,
so that an append finds no log, as with a log that was erased (see ``erasing.py``). These functions
tell that it is because of a move.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import connections
from django.db.models import QuerySet

from eventlogs.exceptions import LogMoved
from eventlogs.ids import LogId


def newest_move(using: str, log_id: LogId, *, any_type: bool = False) -> Any:
    """
    Return the row of the last move of a log from or to a database, or None. One query.

    With ``any_type``, the log may have had another log type, and the same UUID. On MariaDB and
    MySQL, inside of a transaction, the row is that of now, not of the snapshot.
    """
    moves: QuerySet[Any] = QuerySet(apps.get_model("eventlogs", "LogMove"), using=using)
    moves = moves.filter(uuid=log_id.uuid)
    if not any_type:
        moves = moves.filter(log_type=log_id.log_type)
    connection = connections[using]
    if connection.vendor == "mysql" and connection.in_atomic_block:
        moves = moves.select_for_update()
    return moves.order_by("-pk").first()


def log_moved(using: str, log_id: LogId, *, any_type: bool = False) -> LogMoved | None:
    """Return the error for a log that was moved or is being moved, or None for any other log."""
    move = newest_move(using, log_id, any_type=any_type)
    if move is None or move.state == move.ARRIVED:
        return None
    return error_of(move, log_id, using)


def error_of(move: Any, log_id: LogId, using: str) -> LogMoved:
    """Return the error that tells of a move."""
    to = using if move.state == move.ARRIVING else move.other
    return LogMoved(log_id, using=using, to=to, is_complete=move.state == move.LEFT)
