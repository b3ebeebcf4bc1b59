"""
The tables: logs, their events, the idempotency keys of appends, and how far projections are.

Read logs, events and keys like any other Django model. They are written through
``EventLog.objects.append()``;
saving, updating or deleting raises AppendOnlyError, and in PostgreSQL triggers refuse it to
everybody else as well.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from django.db import models

from eventlogs.conf import (
    MAX_EVENT_TYPE_LENGTH,
    MAX_KEY_LENGTH,
    MAX_LOG_TYPE_LENGTH,
    MAX_PROJECTION_NAME_LENGTH,
)
from eventlogs.exceptions import AppendOnlyError
from eventlogs.fields import ExactCharField, LogIdField
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
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    version = models.IntegerField(editable=False)
    created_at = models.DateTimeField(editable=False)
    updated_at = models.DateTimeField(editable=False)  # recorded_at of the last event

    objects: ClassVar[EventLogManager] = EventLogManager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = "event log"
        verbose_name_plural = "event logs"
        # For lists of one type. Neither column changes, so appends do not touch it.
        indexes = [models.Index(fields=["log_type", "id"], name="eventlogs_eventlog_of_type")]

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
    # That of the log, which never changes: readers of the feed need no look at the log for it.
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    index = models.IntegerField(editable=False)
    type = ExactCharField(max_length=MAX_EVENT_TYPE_LENGTH, editable=False)
    schema_version = models.IntegerField(editable=False)
    data = models.JSONField(editable=False)
    metadata = models.JSONField(editable=False)
    # No key is NULL; "" is never a key.
    idempotency_key = ExactCharField(max_length=MAX_KEY_LENGTH, null=True, editable=False)
    recorded_at = models.DateTimeField(editable=False)

    objects = EventQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"  # also behind related managers, nothing writes
        permissions = [("view_payload", "Can see payloads, metadata and states")]
        constraints = [
            # Unique constraints name the log or the position, and nothing else, so that the
            # table can be partitioned or distributed by log.
            models.UniqueConstraint(
                fields=["log", "index"], name="eventlogs_event_one_per_log_and_index"
            ),
        ]
        # For the days that people ask for. Positions are not in the order of times after an
        # import or a restore.
        indexes = [models.Index(fields=["recorded_at", "position"], name="eventlogs_event_by_time")]

    def __str__(self) -> str:
        return f"{self.type} ({self.index})"


class IdempotencyKey(AppendOnlyModel):
    """The key of an append, and where that append's events are."""

    id = models.BigAutoField(primary_key=True)
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    key = ExactCharField(max_length=MAX_KEY_LENGTH, editable=False)
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
        return str(self.key)


class ProjectionState(models.Model):
    """A projection that has run here: which version of it made the rows that are served."""

    name = ExactCharField(primary_key=True, max_length=MAX_PROJECTION_NAME_LENGTH, editable=False)
    version = models.IntegerField(editable=False)
    mode = ExactCharField(max_length=10, editable=False)
    partitions = models.IntegerField(editable=False)
    rebuilt_at = models.DateTimeField(null=True, editable=False)
    # A rebuild that a worker is to begin, and why the last one ended early.
    rebuild_requested_at = models.DateTimeField(null=True, editable=False)
    rebuild_error = models.TextField(default="", editable=False)
    # A rebuild that is under way, or was given up in the middle.
    rebuild_version = models.IntegerField(null=True, editable=False)
    rebuild_started_at = models.DateTimeField(null=True, editable=False)
    # Of a projection that is inline: the log that its rebuild has reached, how many it has done
    # of how many, and of how many events.
    rebuild_reached = models.UUIDField(null=True, editable=False)
    rebuild_done = models.BigIntegerField(default=0, editable=False)
    rebuild_total = models.BigIntegerField(default=0, editable=False)
    rebuild_applied = models.BigIntegerField(default=0, editable=False)

    class Meta:
        verbose_name = "projection"
        permissions = [("operate_projections", "Can retry, skip and rebuild in projections")]

    def __str__(self) -> str:
        return str(self.name)


class Checkpoint(models.Model):
    """
    How far one partition of a projection is, and who may move it.

    All events up to ``position`` are in its rows, or behind a parked one. ``token`` is raised
    with each lease: whoever holds an older one changes nothing any more.
    """

    id = models.BigAutoField(primary_key=True)
    projection = ExactCharField(max_length=MAX_PROJECTION_NAME_LENGTH, editable=False)
    is_rebuild = models.BooleanField(default=False, editable=False)  # of the shadow table
    partition = models.IntegerField(editable=False)
    partitions = models.IntegerField(editable=False)  # how many there are
    position = models.BigIntegerField(default=0, editable=False)
    token = models.BigIntegerField(default=0, editable=False)
    owner = ExactCharField(max_length=100, default="", editable=False)
    leased_until = models.DateTimeField(null=True, editable=False)
    applied = models.BigIntegerField(default=0, editable=False)  # events, for the eye
    rate = models.FloatField(default=0, editable=False)  # events/s of the last batch, likewise
    moved_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["projection", "is_rebuild", "partition"],
                name="eventlogs_checkpoint_one_per_partition",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.projection} {self.partition} of {self.partitions}"


class ParkedEvent(models.Model):
    """
    An event that a projection could not apply; the later ones of its log wait behind it.

    With a ``retry_at`` it is tried again then, without one it is parked for a person. A row is
    written before an attempt is made, so that attempts that end in a crash count as well.

    With ``awaits`` the event is left to other code: this release does not know its type, or has
    an older version of it. It is no attempt, and not parked; code that knows it takes it up.
    """

    id = models.BigAutoField(primary_key=True)
    projection = ExactCharField(max_length=MAX_PROJECTION_NAME_LENGTH, editable=False)
    is_rebuild = models.BooleanField(default=False, editable=False)  # of the shadow table
    log_id = LogIdField(editable=False)
    index = models.IntegerField(editable=False)
    position = models.BigIntegerField(editable=False)
    type = ExactCharField(max_length=MAX_EVENT_TYPE_LENGTH, editable=False)
    schema_version = models.IntegerField(default=1, editable=False)
    attempts = models.IntegerField(default=0, editable=False)
    retry_at = models.DateTimeField(null=True, editable=False)
    # A mark of the process that has left the event to other code; see projections/releases.py.
    awaits = ExactCharField(max_length=32, default="", editable=False)
    # The class of the last error, and its text with where it was raised, which may show data.
    error = ExactCharField(max_length=200, default="", editable=False)
    # The function of the project's own code that raised it, e.g. "captured"; "" where unknown.
    handler = ExactCharField(max_length=200, default="", editable=False)
    details = models.TextField(default="", editable=False)
    first_failed_at = models.DateTimeField(editable=False)
    failed_at = models.DateTimeField(editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["projection", "is_rebuild", "log_id"],
                name="eventlogs_parkedevent_one_per_log",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} ({self.index})"

    @property
    def is_parked(self) -> bool:
        """Whether it waits for a person."""
        return self.retry_at is None and not self.awaits

    @property
    def awaits_release(self) -> bool:
        """Whether it waits for a process of a release that can apply it."""
        return bool(self.awaits)


class SkippedEvent(models.Model):
    """An event that a person told a projection to pass over; a rebuild does so, too."""

    id = models.BigAutoField(primary_key=True)
    projection = ExactCharField(max_length=MAX_PROJECTION_NAME_LENGTH, editable=False)
    log_id = LogIdField(editable=False)
    index = models.IntegerField(editable=False)
    position = models.BigIntegerField(editable=False)
    type = ExactCharField(max_length=MAX_EVENT_TYPE_LENGTH, editable=False)
    error = ExactCharField(max_length=200, default="", editable=False)
    skipped_at = models.DateTimeField(editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["projection", "position"], name="eventlogs_skippedevent_skipped_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} ({self.index})"


class ProjectionAction(models.Model):
    """
    What somebody did with a projection: retried, skipped, passed over, asked for a rebuild.

    The ends of rebuilds are here, too. A row is written in the transaction of what it tells of.
    """

    RETRIED = "retried"
    SKIPPED = "skipped"
    PASSED_OVER = "passed over"
    REBUILD_REQUESTED = "rebuild requested"
    REBUILT = "rebuilt"
    REBUILD_FAILED = "rebuild failed"

    id = models.BigAutoField(primary_key=True)
    projection = ExactCharField(max_length=MAX_PROJECTION_NAME_LENGTH, editable=False)
    action = ExactCharField(max_length=20, editable=False)
    by = ExactCharField(max_length=200, default="", editable=False)  # "" where nobody was named
    at = models.DateTimeField(editable=False)
    # Of what concerns one log; removed where the log is erased.
    log_id = LogIdField(null=True, editable=False)  # type: ignore[misc]
    index = models.IntegerField(null=True, editable=False)
    count = models.BigIntegerField(null=True, editable=False)  # events, or logs that are retried
    seconds = models.FloatField(null=True, editable=False)  # that a rebuild has taken
    note = models.TextField(default="", editable=False)  # never payload data

    class Meta:
        indexes = [models.Index(fields=["projection", "id"], name="eventlogs_action_of_projection")]

    def __str__(self) -> str:
        return f"{self.projection}: {self.action}"


class AppliedVersion(models.Model):
    """The version of a log that is in the row of a projection that is inline."""

    id = models.BigAutoField(primary_key=True)
    projection = ExactCharField(max_length=MAX_PROJECTION_NAME_LENGTH, editable=False)
    log_id = LogIdField(editable=False)
    version = models.IntegerField(editable=False)
    # Which version of the projection has made the row.
    made_by = models.IntegerField(default=1, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["projection", "log_id"], name="eventlogs_appliedversion_one_per_log"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.log_id} {self.version}"


class ProjectionWorker(models.Model):
    """
    A process that runs projections: the others leave it its share, and what only it can apply.

    ``projections`` says what it handles, by their names; see projections/releases.py.
    """

    name = ExactCharField(primary_key=True, max_length=100, editable=False)
    projections = models.JSONField(editable=False)
    seen_until = models.DateTimeField(editable=False)  # then it is taken for dead
    declared_at = models.DateTimeField(null=True, editable=False)  # first: since when it runs
    ended_at = models.DateTimeField(null=True, editable=False)  # in good order

    def __str__(self) -> str:
        return str(self.name)
