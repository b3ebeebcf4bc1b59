"""
Plain Django, as a team would write an event log by hand: two models and a transaction.

The log's row is locked, its version is compared, the events are inserted by ``bulk_create``, and
the version is raised. There is no idempotency key, no feed, and no codec.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import django
from django.conf import settings
from django.db import models, transaction

from benchmarks.peers.payload import AMOUNT, BATCH, REFERENCE, TYPE

if not settings.configured:
    settings.configure(
        USE_TZ=True,
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


class Log(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    log_type = models.CharField(max_length=50)
    version = models.IntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        app_label = "by_hand"

    def __str__(self) -> str:
        return str(self.id)


class Event(models.Model):
    id = models.BigAutoField(primary_key=True)
    log = models.ForeignKey(Log, on_delete=models.PROTECT, db_constraint=False, db_index=False)
    index = models.IntegerField()
    type = models.CharField(max_length=100)
    data = models.JSONField()
    metadata = models.JSONField(default=dict)
    recorded_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        app_label = "by_hand"
        constraints = [models.UniqueConstraint(fields=["log", "index"], name="by_hand_log_index")]

    def __str__(self) -> str:
        return f"{self.log}:{self.index}"


class Conflict(Exception):
    """Another writer has appended."""


def create_tables() -> None:
    """Create both tables."""
    from django.db import connection

    with connection.schema_editor() as editor:
        editor.create_model(Log)
        editor.create_model(Event)


def append(log_id: uuid.UUID, expected: int, payloads: list[dict[str, Any]]) -> int:
    """Append events to a log that is at the expected version; return its new version."""
    with transaction.atomic():
        log = Log.objects.select_for_update().get(pk=log_id)
        if log.version != expected:
            raise Conflict(log_id)
        Event.objects.bulk_create(
            Event(log=log, index=log.version + number, type=TYPE, data=data)
            for number, data in enumerate(payloads)
        )
        log.version += len(payloads)
        log.save(update_fields=["version", "updated_at"])
    return log.version


def appends(size: int) -> Callable[[], Any]:
    """Append so many events at once to a log of this process' own."""
    log = Log.objects.create(log_type="benchmark")
    version = 0

    def call() -> None:
        nonlocal version
        data = [{"amount": AMOUNT, "reference": REFERENCE} for _ in range(size)]
        version = append(log.id, version, data)

    return call


def single() -> Callable[[], Any]:
    """Append single events."""
    return appends(1)


def batches() -> Callable[[], Any]:
    """Append 100 events at once."""
    return appends(BATCH)


def create() -> Callable[[], Any]:
    """Create logs of one event."""

    def call() -> None:
        with transaction.atomic():
            log = Log.objects.create(log_type="benchmark", version=1)
            data = {"amount": AMOUNT, "reference": REFERENCE}
            Event.objects.create(log=log, index=0, type=TYPE, data=data)

    return call
