"""
The differences of MySQL and MariaDB for inline projections.

Their ON DUPLICATE KEY UPDATE names no key: a new row whose other unique value is taken would
overwrite the row that has it. And under REPEATABLE READ a plain read answers from a snapshot that
may be older than the lock on the log, while a write goes to what is committed: what others have
made since would be lost. PostgreSQL raises an error there; this module checks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from django.db import connections, models, transaction
from django.db.models import QuerySet

from eventlogs.exceptions import TransactionMustRetry
from eventlogs.ids import LogId
from eventlogs.models import Event

Q = TypeVar("Q", bound=QuerySet[Any])


def is_mysql(using: str) -> bool:
    """Return whether a database is MySQL or MariaDB."""
    return connections[using].vendor == "mysql"


def latest(rows: Q, using: str) -> Q:
    """Return rows as they are committed, also where the transaction's snapshot is older."""
    on_snapshot = is_mysql(using) and connections[using].in_atomic_block
    return rows.select_for_update() if on_snapshot else rows


def refuse_old_snapshot(log_id: LogId, version: int, using: str) -> None:
    """
    Raise TransactionMustRetry where the transaction's snapshot lacks events of a locked log.

    ``version`` is that of the log before the transaction's own append. Appends to a log are
    committed one after the other, so a snapshot that shows the last event shows all of them.
    """
    if version and is_mysql(using):
        last = Event.objects.using(using).filter(log=log_id.uuid, index=version - 1)
        if not last.exists():
            raise TransactionMustRetry(using=using, sqlstate=None)


def upsert(
    model: type[models.Model], rows: Sequence[Any], fields: Sequence[str], using: str
) -> None:
    """
    Insert rows, or update ``fields`` of those whose primary key is there.

    Another unique constraint refuses a row, as it does in other databases.
    """
    manager = model._base_manager.using(using)
    changed = [field for field in model._meta.concrete_fields if field.name in fields]
    with transaction.atomic(using=using):
        # Not by a locking read: it would lock the gap where a row is not there, and
        # transactions that create logs at the same time would deadlock.
        keys = manager.filter(pk__in=[row.pk for row in rows])
        there = set(keys.values_list("pk", flat=True))
        manager.bulk_create([row for row in rows if row.pk not in there])
        for row in rows:
            if row.pk in there and changed:
                values = {field.attname: field.pre_save(row, add=False) for field in changed}
                manager.filter(pk=row.pk).update(**values)
