"""
``eventsourcing`` on PostgreSQL: its application recorder alone, and a whole application.

https://eventsourcing.readthedocs.io/en/stable/topics/persistence.html
Functions in the database (``POSTGRES_ENABLE_DB_FUNCTIONS``) made it fastest in trial runs.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from functools import cache
from typing import Any

from eventsourcing.application import Application  # type: ignore[import-not-found]
from eventsourcing.domain import Aggregate, event  # type: ignore[import-not-found]
from eventsourcing.persistence import StoredEvent  # type: ignore[import-not-found]

from benchmarks.peers.payload import AMOUNT, BATCH, REFERENCE, TYPE


def environment(*, create: bool = False) -> dict[str, str]:
    """Return the settings of an application."""
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": os.environ["PGDATABASE"],
        "POSTGRES_HOST": os.environ["PGHOST"],
        "POSTGRES_PORT": os.environ["PGPORT"],
        "POSTGRES_USER": os.environ["PGUSER"],
        "POSTGRES_PASSWORD": os.environ["PGPASSWORD"],
        "POSTGRES_POOL_SIZE": "1",
        "POSTGRES_ENABLE_DB_FUNCTIONS": os.environ.get("DB_FUNCTIONS", "y"),
        "CREATE_TABLE": "y" if create else "n",
    }


class Payment(Aggregate):  # type: ignore[misc]
    """The domain of benchmarks/domain.py, as an aggregate of this package."""

    @event("Requested")  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        self.captured = 0

    @event("Captured")  # type: ignore[untyped-decorator]
    def capture(self, amount: int, reference: str) -> None:
        """Capture an amount."""
        self.captured += amount


class Payments(Application):  # type: ignore[misc]
    """The application."""


def create_tables() -> None:
    """Create the tables, as an application does that is started."""
    Payments(env=environment(create=True)).close()


@cache
def payments() -> Any:
    """Return the application of this process, which has one connection."""
    return Payments(env=environment())


def recorded(size: int) -> Callable[[], Any]:
    """Insert so many events at once through the recorder; their state is bytes already."""
    insert = payments().recorder.insert_events
    log, version = uuid.uuid4(), 0
    state = json.dumps({"amount": AMOUNT, "reference": REFERENCE}).encode()

    def call() -> None:
        nonlocal version
        insert([StoredEvent(log, version + number, TYPE, state) for number in range(size)])
        version += size

    return call


def applied(size: int) -> Callable[[], Any]:
    """Trigger and save so many events of an aggregate that is at hand."""
    application = payments()
    payment = Payment()
    application.save(payment)

    def call() -> None:
        for _ in range(size):
            payment.capture(amount=AMOUNT, reference=REFERENCE)
        application.save(payment)

    return call


def recorder_single() -> Callable[[], Any]:
    """Insert single events through the recorder."""
    return recorded(1)


def recorder_batches() -> Callable[[], Any]:
    """Insert 100 events at once through the recorder."""
    return recorded(BATCH)


def application_single() -> Callable[[], Any]:
    """Save single events of an aggregate."""
    return applied(1)


def application_batches() -> Callable[[], Any]:
    """Save 100 events of an aggregate at once."""
    return applied(BATCH)
