"""
The database of a log, as Django's routers choose it.

Routers are asked with the hint ``log_id`` where the log is known, so that they can spread logs over
several databases. A router that does so has a method ``log_databases(log_type)``: it returns the
aliases that logs of this type can be in, or, for None, those of all logs. Nothing here reads a
database.

Right because: ``databases_of`` is asked for what must not differ between databases (a key, a
unique value, a transaction), and a router's answer that is not among them is refused. So no log is
written to a database that projections and commands do not know.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from threading import Lock
from typing import Final, NamedTuple
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import DatabaseError, InterfaceError, connections, router, transaction
from django.utils.connection import ConnectionDoesNotExist

from eventlogs.exceptions import DatabasesDiffer
from eventlogs.ids import LogId
from eventlogs.models import EventLog, LogMove
from eventlogs.values import LogState

__all__ = ["MovedLogs"]

MOST_MOVES: Final = 100  # of one log, that are followed from database to database


def write_alias(log_id: LogId | None = None) -> str:
    """Return the alias that a log is written to; without an id, that of rows without a log."""
    if log_id is None:
        return router.db_for_write(EventLog)
    return router.db_for_write(EventLog, log_id=log_id)


def read_alias(log_id: LogId | None = None) -> str:
    """Return the alias that a log is read from; in a transaction, the one that it is written to."""
    writes = write_alias(log_id)
    if connections[writes].in_atomic_block:
        return writes
    if log_id is None:
        return router.db_for_read(EventLog)
    return router.db_for_read(EventLog, log_id=log_id)


def databases_of(log_type: str | None = None) -> tuple[str, ...]:
    """
    Return the aliases among which the routers choose for logs of a type, None: of any type.

    It is empty where no router says so; then all logs are where ``write_alias()`` says.
    """
    for each in router.routers:
        method = getattr(each, "log_databases", None)
        found = None if method is None else method(log_type)
        if found is not None:
            return tuple(dict.fromkeys(found))
    return ()


def are_spread(log_type: str) -> bool:
    """Return whether logs of a type are in several databases, by their ids."""
    return bool(router.routers) and len(databases_of(log_type)) > 1


def alias_to_append(log_id: LogId, others: Iterable[LogState] = ()) -> str:
    """
    Return the alias that an append to a log goes to; ``others`` are states that it expects.

    Raise DatabasesDiffer if one of these is of another database, or if a transaction is open in
    another database of these logs and none in this one: the caller would take the append for a
    part of it. Raise ImproperlyConfigured if a router answers with an alias that is not among
    its ``log_databases``.
    """
    alias = write_alias(log_id)
    for other in others:
        if (its := write_alias(other.log_id)) != alias:
            raise DatabasesDiffer("expected", log_id=log_id, using=alias, other=its)
    databases = databases_of(log_id.log_type)
    if databases and alias not in databases:
        raise ImproperlyConfigured(
            f"A router sends {log_id} to {alias!r}, which is not among its log_databases("
            f"{log_id.log_type!r}). Add the alias there: projections and commands would not know "
            f"of the log."
        )
    if not connections[alias].in_atomic_block:
        for each in databases:
            if each != alias and connections[each].in_atomic_block:
                raise DatabasesDiffer("transaction", log_id=log_id, using=alias, other=each)
    return alias


class _Known(NamedTuple):
    """Where logs went that have left a database, as of a time of the monotonic clock."""

    logs: dict[UUID, str]
    time: float


class MovedLogs:
    """
    Where logs are that ``manage.py eventlogs move`` has moved: a help for routers.

    It reads the moves of a database at most every ``seconds``, and keeps them in memory, about 200
    bytes each. Reading never fails an append: if a database does not answer, what was known of it
    before is used.

    Right because: an answer that is out of date sends an append to a database that the log has
    left. There the log takes no events, and the append raises LogMoved.
    """

    def __init__(self, *, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._known: dict[str, _Known] = {}
        self._lock = Lock()

    def database_of(self, log_id: LogId, home: str) -> str:
        """Return the alias where a log is, whose first database is ``home``."""
        alias = home
        for _ in range(MOST_MOVES):  # answers of different times may lead in a circle
            later = self._left(alias).get(log_id.uuid)
            if later is None:
                break
            alias = later
        return alias

    def forget(self) -> None:
        """Read all moves again at the next question, as after a LogMoved."""
        self._known = {}

    def _left(self, alias: str) -> dict[UUID, str]:
        known = self._known.get(alias)
        if known is not None and time.monotonic() - known.time < self._seconds:
            return known.logs
        if known is not None and not self._lock.acquire(blocking=False):
            return known.logs  # another thread reads them
        try:
            if known is None:
                self._lock.acquire()
            logs = _read(alias, {} if known is None else known.logs)
            self._known = {**self._known, alias: _Known(logs, time.monotonic())}
            return logs
        finally:
            self._lock.release()


def _read(alias: str, before: dict[UUID, str]) -> dict[UUID, str]:
    try:
        connection = connections[alias]
    except ConnectionDoesNotExist:  # whoever uses the alias gets the error
        return before
    if not apps.ready or connection.needs_rollback:
        return before
    logs: dict[UUID, str] = {}
    try:
        # A savepoint, so that a failure leaves the caller's transaction usable. Outside of one,
        # none is begun: on SQLite it would take the lock of writers.
        with transaction.atomic(using=alias) if connection.in_atomic_block else nullcontext():
            moves = LogMove.objects.using(alias).exclude(state=LogMove.ARRIVING).order_by("pk")
            for uuid, state, other in moves.values_list("uuid", "state", "other"):
                logs.pop(uuid, None)
                if state == LogMove.LEFT:
                    logs[uuid] = other
    except (DatabaseError, InterfaceError):  # it does not answer, or is not migrated
        return before
    except SynchronousOnlyOperation:  # in an event loop; a thread asks next
        return before
    return logs
