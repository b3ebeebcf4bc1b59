"""A database full of history to export, and its contents, row by row."""

from __future__ import annotations

from typing import Any

from eventlogs import LogManager
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.stores import AppendRequest, store_for
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent

UNKNOWN = EncodedEvent("account.teleported", 3, '{"to":["Mars",null,1.5]}')


def fill(logs: int = 6, using: str = "default") -> None:
    """Make logs whose events are mixed with each other's, with keys, metadata and odd data."""
    accounts, parcels = LogManager(Account, using=using), LogManager(Parcel, using=using)
    states = [
        accounts.create(Opened(owner=f"Ada {n}"), idempotency_key=f"open {n}") for n in range(logs)
    ]
    parcels.create(Sent(to='Rē\u1e33a "quoted" \\ 日本 \U0001f600'), metadata={"user": "grace"})
    for turn in range(3):
        for place, state in enumerate(states):
            states[place] = accounts.append(
                state,
                Deposited(amount=turn),
                Noted(note={"turn": [turn, 0.1, 1e22, 2**70, None, True, "<&>"]}),
                idempotency_key=f'{turn} "{place}"' if turn else None,
                metadata={"user": "grace", "till": {"number": turn}},
            )
    store_for(using).append(AppendRequest(states[0].log_id, [UNKNOWN], None, None, "{}"))
    IdempotencyKey.objects.using(using).filter(key="open 0")._raw_delete(using)  # as if pruned


def held(using: str = "default") -> dict[str, list[Any]]:
    """Return all rows of a database, without the numbers that the database assigns."""
    return {
        "logs": list(EventLog.objects.using(using).order_by("pk").values()),
        "events in order": list(
            Event.objects.using(using)
            .order_by("position")
            .values_list(
                "log_id",
                "index",
                "type",
                "schema_version",
                "data",
                "metadata",
                "idempotency_key",
                "recorded_at",
            )
        ),
        "keys": [
            (log_type, key, log, index, count, bytes(fingerprint), created_at)
            for log_type, key, log, index, count, fingerprint, created_at in (
                IdempotencyKey.objects.using(using)
                .order_by("log_type", "key")
                .values_list(
                    "log_type",
                    "key",
                    "log_id",
                    "first_index",
                    "count",
                    "fingerprint",
                    "created_at",
                )
            )
        ],
    }
