"""
The rows of unique values, through the ORM: for the portable store, imports and ``claim``.

Right because: the rows of a log are changed only under the lock of the log's row, which every
caller here holds. The unique constraint on scope and digest gives a value to one log only. A row is
inserted unless one with its value is there (``claims.py``), and then read again, so a lost race is
no database error.

On MySQL and MariaDB under REPEATABLE READ, only a locking read is sure to see what is committed.
``portable.py`` says where it may be used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.apps import apps
from django.db import connections
from django.db.models import Q, QuerySet

from eventlogs.events.unique import UniqueValue
from eventlogs.ids import LogId
from eventlogs.stores.claims import insert_missing

FEW: Final = 200  # values or logs that are named in one statement


class Taken(NamedTuple):
    """A value that the events of a log declare, and that belongs to another log."""

    log_id: LogId
    scope: str
    owner: LogId


class Settled(NamedTuple):
    """What ``settle`` did: the logs whose rows have changed, and the values that it left."""

    changed: set[LogId]
    taken: list[Taken]


def of_logs(
    using: str, log_ids: Collection[LogId], *, locking: bool = False
) -> dict[LogId, dict[str, set[UUID]]]:
    """Return the digests that belong to logs, by scope: one, or several that are wrong."""
    found: dict[LogId, dict[str, set[UUID]]] = {log_id: {} for log_id in log_ids}
    by_uuid = {log_id.uuid: log_id for log_id in log_ids}
    for some in _few(by_uuid):
        kept = _rows(using, locking).filter(log_id__in=some)
        for log, scope, digest in kept.values_list("log_id", "scope", "digest"):
            found[by_uuid[log]].setdefault(scope, set()).add(digest)
    return found


def owners(
    using: str, values: Iterable[UniqueValue], *, locking: bool = False
) -> dict[UniqueValue, LogId]:
    """Return the logs that values belong to; a value that is free is left out."""
    found: dict[UniqueValue, LogId] = {}
    for some in _few(values):
        kept = _rows(using, locking).filter(_any_of(some))
        for scope, digest, log_type, log in kept.values_list("scope", "digest", "log_type", "log"):
            found[UniqueValue(scope, digest)] = LogId.stored(log_type, log)
    return found


def insert(using: str, values: Mapping[UniqueValue, LogId]) -> None:
    """Insert the values that are free, none of them None, in an order that all callers share."""
    model: Any = apps.get_model("eventlogs", "UniqueValue")
    insert_missing(
        using,
        [
            model(scope=scope, digest=digest, log_type=log_id.log_type, log_id=log_id.uuid)
            for (scope, digest), log_id in sorted(values.items(), key=itemgetter(0))
        ],
    )


def delete(using: str, log_id: LogId, values: Sequence[UniqueValue]) -> None:
    """Delete values of a log."""
    for some in _few(values):
        # The public delete() is refused here, and would load the rows first.
        _rows(using).filter(_any_of(some), log_id=log_id.uuid)._raw_delete(using)


def delete_all(using: str, log_id: LogId) -> None:
    """Delete all values of a log that is erased."""
    _rows(using).filter(log_id=log_id.uuid, log_type=log_id.log_type)._raw_delete(using)


def settle(using: str, wanted: Mapping[LogId, Mapping[str, UUID | None]]) -> Settled:
    """
    Give logs, which are locked, the values in ``wanted``; values of other scopes do not change.

    A value that belongs to another log is left there.
    """
    own = of_logs(using, wanted, locking=True)
    new: dict[UniqueValue, LogId] = {}
    taken: list[Taken] = []
    changed: set[LogId] = set()
    for log_id, values in wanted.items():
        stale: list[UniqueValue] = []
        for scope, digest in values.items():
            there = own[log_id].get(scope, set())
            stale += [UniqueValue(scope, each) for each in there if each != digest]
            if digest is None or digest in there:
                continue
            first = new.setdefault(UniqueValue(scope, digest), log_id)
            if first != log_id:
                taken.append(Taken(log_id, scope, first))
        if stale:
            delete(using, log_id, stale)
            changed.add(log_id)
    while new:
        insert(using, new)
        for value, owner in owners(using, new, locking=True).items():
            log_id = new.pop(value)
            if owner == log_id:
                changed.add(owner)
            else:
                taken.append(Taken(log_id, value.scope, owner))
        # What is left belonged to another log, which released it before it could be read.
    return Settled(changed, taken)


def _any_of(values: Iterable[UniqueValue]) -> Q:
    found = Q()
    for scope, digest in values:
        found |= Q(scope=scope, digest=digest)
    return found


def _few(items: Iterable[Any]) -> Iterable[list[Any]]:
    iterator = iter(items)
    while some := list(islice(iterator, FEW)):
        yield some


def _rows(using: str, locking: bool = False) -> QuerySet[Any]:
    # A plain queryset: that of the model refuses to write. By name: models import stores.
    rows: QuerySet[Any] = QuerySet(apps.get_model("eventlogs", "UniqueValue"), using=using)
    is_needed = locking and connections[using].vendor == "mysql"
    return rows.select_for_update() if is_needed else rows
