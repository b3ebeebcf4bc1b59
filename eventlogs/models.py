"""
The tables: logs, their events, and the idempotency keys of appends.

Read them like any other Django model. Writing goes through ``EventLog.objects.append()``;
saving, updating or deleting raises AppendOnlyError, and in PostgreSQL triggers refuse it to
everybody else as well.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from django.db import models

from eventlogs.conf import MAX_EVENT_TYPE_LENGTH, MAX_KEY_LENGTH, MAX_LOG_TYPE_LENGTH
from eventlogs.exceptions import AppendOnlyError
from eventlogs.ids import LogId
from eventlogs.managers import EventLogManager, EventQuerySet, IdempotencyKeyQuerySet


class AppendOnlyModel(models.Model):
    """A model whose rows only a store writes."""

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        raise AppendOnlyError(type(self).__name__, "save()")

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        raise AppendOnlyError(type(self).__name__, "delete()")


class EventLog(AppendOnlyModel):
    """A log: one row for each entity. ``version`` is the number of its events."""

    id = models.UUIDField(primary_key=True, editable=False)
    log_type = models.CharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    version = models.IntegerField(editable=False)
    created_at = models.DateTimeField(editable=False)
    updated_at = models.DateTimeField(editable=False)  # recorded_at of the last event

    objects: ClassVar[EventLogManager] = EventLogManager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = "event log"
        verbose_name_plural = "event logs"

    def __str__(self) -> str:
        return str(self.log_id)

    @property
    def log_id(self) -> LogId:
        """The id that goes with a LogManager."""
        return LogId.stored(self.log_type, self.id)


class Event(AppendOnlyModel):
    """An event: ``index`` is its place in its log, ``position`` its place among all events."""

    position = models.BigAutoField(primary_key=True)
    # No database constraint: the append holds the log's row, and a foreign-key trigger for
    # each event would cost measurably. No index of its own: the unique constraint has one.
    log = models.ForeignKey(
        EventLog,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        editable=False,
        related_name="events",
    )
    index = models.IntegerField(editable=False)
    type = models.CharField(max_length=MAX_EVENT_TYPE_LENGTH, editable=False)
    schema_version = models.IntegerField(editable=False)
    data = models.JSONField(editable=False)
    metadata = models.JSONField(editable=False)
    idempotency_key = models.CharField(  # noqa: DJ001 (no key is NULL; "" is never a key)
        max_length=MAX_KEY_LENGTH, null=True, editable=False
    )
    recorded_at = models.DateTimeField(editable=False)

    objects = EventQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"  # also behind related managers, nothing writes
        constraints = [
            # Unique constraints name the log or the position, and nothing else, so that the
            # table can be partitioned or distributed by log.
            models.UniqueConstraint(
                fields=["log", "index"], name="eventlogs_event_one_per_log_and_index"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} ({self.index})"


class IdempotencyKey(AppendOnlyModel):
    """The key of an append, and where that append's events are."""

    id = models.BigAutoField(primary_key=True)
    log_type = models.CharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    key = models.CharField(max_length=MAX_KEY_LENGTH, editable=False)
    log = models.ForeignKey(
        EventLog,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        editable=False,
        related_name="idempotency_keys",
    )
    first_index = models.IntegerField(editable=False)
    count = models.IntegerField(editable=False)
    fingerprint = models.BinaryField(editable=False)
    created_at = models.DateTimeField(editable=False)

    objects = IdempotencyKeyQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"  # also behind related managers, nothing writes
        constraints = [
            models.UniqueConstraint(
                fields=["log_type", "key"], name="eventlogs_idempotencykey_used_once_per_log_type"
            ),
        ]

    def __str__(self) -> str:
        return self.key


class Checkpoint(models.Model):
    """How far a projection is: all events up to ``position`` are in its rows."""

    projection = models.CharField(primary_key=True, max_length=100, editable=False)
    position = models.BigIntegerField(default=0, editable=False)

    def __str__(self) -> str:
        return self.projection
