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

from collections.abc import Iterable

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router

from eventlogs.exceptions import DatabasesDiffer
from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.values import LogState


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
