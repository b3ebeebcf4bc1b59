"""Logs that are moved, and what can be said of them in each database."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet

from eventlogs import LogId, LogManager
from eventlogs.models import Event, EventLog, IdempotencyKey, LogMove, SubjectLog
from eventlogs.operations import moving
from tests.accounts import Account, Deposited, Opened
from tests.test_shards import Shards

accounts = Account.logs


def account(shards: Shards, *, events: int = 4) -> LogId:
    """Create a log in the first database; its appends have keys."""
    state = accounts.create(Opened("ada"), log_id=shards.new_id(shards.aliases[0]))
    for number in range(1, events):
        state = accounts.append(state, Deposited(number), idempotency_key=f"key {number}")
    return state.log_id


def seen(log_id: LogId) -> list[tuple[Any, ...]]:
    """Return what the log holds, wherever the router says that it is; without positions."""
    return [
        (each.id, each.event, each.metadata, each.idempotency_key, each.recorded_at)
        for each in accounts.stream(log_id)
    ]


def events_in(log_id: LogId, using: str) -> int:
    """Return how many events of a log are stored in a database."""
    return Event.objects.using(using).filter(log_id=log_id.uuid).count()


def is_live(log_id: LogId, using: str) -> bool:
    """Return whether a log takes events in a database."""
    return EventLog.objects.using(using).filter(pk=log_id.uuid).exists()


def marks(log_id: LogId, using: str) -> int:
    """Return whether a database has a row of the log, be it a mark."""
    rows: QuerySet[EventLog] = QuerySet(EventLog, using=using)
    return rows.filter(pk=log_id.uuid).count()


def states(log_id: LogId, using: str) -> list[str]:
    """Return the states of the moves of a log in a database."""
    moves = LogMove.objects.using(using).filter(uuid=log_id.uuid).order_by("pk")
    return list(moves.values_list("state", flat=True))


def keys_in(log_id: LogId, using: str) -> list[tuple[str, int, int, bytes]]:
    """Return the idempotency keys of a log in a database."""
    keys = IdempotencyKey.objects.using(using).filter(log_id=log_id.uuid).order_by("first_index")
    return [
        (key, index, count, bytes(fingerprint))
        for key, index, count, fingerprint in keys.values_list(
            "key", "first_index", "count", "fingerprint"
        )
    ]


def subjects_in(log_id: LogId, using: str) -> int:
    """Return how many links to subjects a log has in a database."""
    return SubjectLog.objects.using(using).filter(log_id=log_id).count()


def moved(log_id: LogId, shards: Shards, **options: Any) -> moving.Moved:
    """Move a log from the first database to the second one."""
    first, second = shards.aliases
    options = {"by": "grace", "timeout": 5.0, **options}
    return moving.move(log_id, source=first, target=second, **options)


def at(alias: str) -> LogManager[Account]:
    """Return the manager of the accounts of one database, as a process with an old router has."""
    return LogManager(Account, using=alias)
