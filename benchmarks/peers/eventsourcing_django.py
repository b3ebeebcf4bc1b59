"""
``eventsourcing-django``: an application whose events are rows of Django's ORM.

https://github.com/pyeventsourcing/eventsourcing-django
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import django
from django.conf import settings

from benchmarks.peers.payload import AMOUNT, BATCH, REFERENCE

if not settings.configured:
    settings.configure(
        USE_TZ=True,
        INSTALLED_APPS=["eventsourcing_django"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": os.environ["PGHOST"],
                "PORT": os.environ["PGPORT"],
                "USER": os.environ["PGUSER"],
                "PASSWORD": os.environ["PGPASSWORD"],
                "NAME": os.environ["PGDATABASE"],
            }
        },
    )
    django.setup()

from eventsourcing.application import Application  # type: ignore[import-not-found]
from eventsourcing.domain import Aggregate, event  # type: ignore[import-not-found]


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
    """Create the tables, by the package's migrations."""
    from django.core.management import call_command

    call_command("migrate", "eventsourcing_django", verbosity=0)


def applied(size: int) -> Callable[[], Any]:
    """Trigger and save so many events of an aggregate that is at hand."""
    application = Payments(env={"PERSISTENCE_MODULE": "eventsourcing_django"})
    payment = Payment()
    application.save(payment)

    def call() -> None:
        for _ in range(size):
            payment.capture(amount=AMOUNT, reference=REFERENCE)
        application.save(payment)

    return call


def single() -> Callable[[], Any]:
    """Save single events."""
    return applied(1)


def batches() -> Callable[[], Any]:
    """Save 100 events at once."""
    return applied(BATCH)
