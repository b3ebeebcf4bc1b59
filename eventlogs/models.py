"""
The tables: logs, events, idempotency keys, unique values, and the state of projections.

Read logs, events and keys like any other Django model. They are written through
``EventLog.objects.append()``. Saving, updating or deleting them raises AppendOnlyError; in
PostgreSQL, triggers also refuse it to all other clients.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from django.db import models

from eventlogs.conf import (
    MAX_EVENT_TYPE_LENGTH,
    MAX_KEY_LENGTH,
    MAX_LOG_TYPE_LENGTH,
    MAX_PROJECTION_NAME_LENGTH,
    MAX_SCOPE_LENGTH,
    MAX_SUBJECT_LENGTH,
)
from eventlogs.exceptions import AppendOnlyError
from eventlogs.fields import ExactCharField, LogIdField
from eventlogs.ids import LogId
from eventlogs.managers import (
    AppendOnlyQuerySet,
    EventLogManager,
    EventQuerySet,
    IdempotencyKeyQuerySet,
)


class AppendOnlyModel(models.Model):
    """A model whose rows are written by stores only."""

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
    # The digest of the last event, in a log whose history is chained; see events/chain.py.
    head = models.BinaryField(null=True, editable=False)

    objects: ClassVar[EventLogManager] = EventLogManager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = "event log"
        verbose_name_plural = "event logs"
        # These columns never change, so only the first append to a log writes to the indexes. The
        # first one is for reading the logs of one type, the second for lists of the newest logs:
        # ids that are made of keys that a project has already do not sort by time.
        indexes = [
            models.Index(fields=["log_type", "id"], name="eventlogs_eventlog_of_type"),
            models.Index(fields=["created_at", "id"], name="eventlogs_eventlog_by_creation"),
        ]

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
    # A copy of the log's type, which never changes: the feed reads it without a look at the log.
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    index = models.IntegerField(editable=False)
    type = ExactCharField(max_length=MAX_EVENT_TYPE_LENGTH, editable=False)
    schema_version = models.IntegerField(editable=False)
    data = models.JSONField(editable=False)
    metadata = models.JSONField(editable=False)
    # No key is NULL; "" is never a key.
    idempotency_key = ExactCharField(max_length=MAX_KEY_LENGTH, null=True, editable=False)
    recorded_at = models.DateTimeField(editable=False)
    # Of this event and all before it, in a log whose history is chained; see events/chain.py.
    digest = models.BinaryField(null=True, editable=False)

    objects = EventQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"  # so that related managers refuse to write, too
        permissions = [("view_payload", "Can see payloads, metadata and states")]
        constraints = [
            # Unique constraints name the log or the position, and nothing else, so that the
            # table can be partitioned or distributed by log.
            models.UniqueConstraint(
                fields=["log", "index"], name="eventlogs_event_one_per_log_and_index"
            ),
        ]
        # For queries by day. After an import, positions are not in the order of times.
        indexes = [models.Index(fields=["recorded_at", "position"], name="eventlogs_event_by_time")]

    def __str__(self) -> str:
        return f"{self.type} ({self.index})"


class Bucket(models.Model):
    """
    The counter of a bucket of logs, in the layout ``"buckets"``; see ``stores/buckets.py``.

    There are rows only in a database with that layout.
    """

    bucket = models.SmallIntegerField(primary_key=True)
    number = models.BigIntegerField()  # the highest one that was taken

    def __str__(self) -> str:
        return f"{self.bucket}: {self.number}"


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
        base_manager_name = "objects"  # so that related managers refuse to write, too
        constraints = [
            models.UniqueConstraint(
                fields=["log_type", "key"], name="eventlogs_idempotencykey_used_once_per_log_type"
            ),
        ]

    def __str__(self) -> str:
        return str(self.key)


class UniqueValue(AppendOnlyModel):
    """
    A value that belongs to a log, as its digest; see ``eventlogs.Unique``.

    It holds nothing but what the log's events declare; ``manage.py eventlogs claim`` rebuilds it.
    """

    id = models.BigAutoField(primary_key=True)
    scope = ExactCharField(max_length=MAX_SCOPE_LENGTH, editable=False)
    digest = models.UUIDField(editable=False)  # never the value: see events/unique.py
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    log = models.ForeignKey(
        EventLog,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        editable=False,
        related_name="unique_values",
    )

    objects = AppendOnlyQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"  # so that related managers refuse to write, too
        constraints = [
            models.UniqueConstraint(
                fields=["scope", "digest"], name="eventlogs_uniquevalue_one_log_per_value"
            ),
        ]
        # Not unique: a log's new value is inserted before its old one is deleted. The lock of the
        # log's row keeps two appends from doing so at once.
        indexes = [models.Index(fields=["log", "scope"], name="eventlogs_uniquevalue_of_log")]

    def __str__(self) -> str:
        return f"{self.scope} of {LogId.stored(self.log_type, self.log_id)}"


class StoredType(models.Model):
    """
    An event type and schema version that logs of a log type hold, or have held.

    ``manage.py check --deploy`` compares it with the classes; see stores/stored_types.py.
    """

    id = models.BigAutoField(primary_key=True)
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    type = ExactCharField(max_length=MAX_EVENT_TYPE_LENGTH, editable=False)
    schema_version = models.IntegerField(editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["log_type", "type", "schema_version"],
                name="eventlogs_storedtype_noted_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.schema_version}"


class SubjectKey(models.Model):
    """
    The key that encrypts the personal data of one subject; see ``eventlogs.privacy``.

    Without ``wrapped`` it is destroyed: what it has encrypted can never be read again.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    subject = ExactCharField(max_length=MAX_SUBJECT_LENGTH, editable=False)
    wrapped = models.BinaryField(null=True, editable=False)  # encrypted by a key of the settings
    wrapped_by = ExactCharField(max_length=100, editable=False)  # the id of that key
    created_at = models.DateTimeField(editable=False)
    destroyed_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["subject"], name="eventlogs_subjectkey_one_per_subject"
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)


class SubjectLog(models.Model):
    """
    A log that may hold data that a subject's key has encrypted.

    It lies in the log's database, and is written before or together with the log's event.
    """

    id = models.BigAutoField(primary_key=True)
    key_id = models.UUIDField(editable=False)  # of a SubjectKey, perhaps in another database
    log_id = LogIdField(editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["key_id", "log_id"], name="eventlogs_subjectlog_one_per_key_and_log"
            ),
        ]
        indexes = [models.Index(fields=["log_id"], name="eventlogs_subjectlog_of_log")]

    def __str__(self) -> str:
        return str(self.log_id)


class ErasedLog(AppendOnlyModel):
    """What is left of a log that was erased: that it existed, and who erased it, when and why."""

    id = models.UUIDField(primary_key=True, editable=False)  # the log's
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    count = models.IntegerField(editable=False)  # of its events
    digest = models.BinaryField(editable=False)  # of all of its events
    erased_by = ExactCharField(max_length=255, editable=False)
    reason = models.TextField(editable=False)
    erased_at = models.DateTimeField(editable=False)

    objects = AppendOnlyQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"  # so that related managers refuse to write, too

    def __str__(self) -> str:
        return str(self.log_id)

    @property
    def log_id(self) -> LogId:
        """The id that the log had."""
        return LogId.stored(self.log_type, self.id)


class ArchiveFile(models.Model):
    """
    A file with archived logs. It is written before its logs are taken out of the tables.

    ``name`` is that in the storage. Beside it is a manifest, which says the same: the name with
    ``.manifest.json`` behind it.
    """

    WRITING: ClassVar = "writing"  # nothing relies on it: it may be an interrupted attempt
    COMPLETE: ClassVar = "complete"
    REPLACED: ClassVar = "replaced"  # no log is read from it: it is to be deleted, now or later

    id = models.BigAutoField(primary_key=True)
    name = ExactCharField(max_length=255, editable=False)
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    state = ExactCharField(max_length=10, default=WRITING, editable=False)
    logs = models.IntegerField(default=0, editable=False)
    events = models.BigIntegerField(default=0, editable=False)
    size = models.BigIntegerField(default=0, editable=False)  # bytes
    digest = models.BinaryField(null=True, editable=False)  # SHA-256 of the file
    created_at = models.DateTimeField(editable=False)
    # When another file took its place. None for one that is deleted at once: it was never complete.
    replaced_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["name"], name="eventlogs_archivefile_one_per_name"),
        ]

    def __str__(self) -> str:
        return str(self.name)


class ArchivedLog(AppendOnlyModel):
    """
    A log whose events are in an archive. ``version`` is the number of its events.

    A mark stays of its row in EventLog, as of a log that was erased; see stores/erasing.py. So its
    id cannot be used again, and an append to it finds no log.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    version = models.IntegerField(editable=False)
    created_at = models.DateTimeField(editable=False)
    updated_at = models.DateTimeField(editable=False)  # recorded_at of the last event
    # The digest that the log had, if its history is chained, and that of all of its events, which
    # proves what is read from the archive.
    head = models.BinaryField(null=True, editable=False)
    digest = models.BinaryField(editable=False)
    last_position = models.BigIntegerField(editable=False)
    archive = models.ForeignKey(
        ArchiveFile, on_delete=models.PROTECT, editable=False, related_name="archived_logs"
    )
    frames = models.JSONField(editable=False)  # where its events are in the file
    archived_at = models.DateTimeField(editable=False)
    archived_by = ExactCharField(max_length=255, editable=False)

    objects = AppendOnlyQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"  # so that related managers refuse to write, too
        indexes = [models.Index(fields=["log_type", "id"], name="eventlogs_archivedlog_of_type")]

    def __str__(self) -> str:
        return str(self.log_id)

    @property
    def log_id(self) -> LogId:
        """The id that goes with a LogManager."""
        return LogId.stored(self.log_type, self.id)


class ReturnedLog(models.Model):
    """A log that was brought back from an archive, and is not archived again for some days."""

    id = models.UUIDField(primary_key=True, editable=False)
    returned_at = models.DateTimeField(editable=False)

    def __str__(self) -> str:
        return str(self.id)


class LogMove(models.Model):
    """
    A move of a log to another database: a row in each of the two, with the same token.

    Of several moves of a log, the newest row says where the log is. Rows stay when a move has
    ended; see eventlogs/operations/moving.
    """

    LEAVING: ClassVar = "leaving"  # the log is still here, and takes no events
    LEFT: ClassVar = "left"  # it is in the other database
    ARRIVING: ClassVar = "arriving"  # nothing of it is here yet
    ARRIVED: ClassVar = "arrived"  # it is here, or has been: its first events came by this move

    id = models.BigAutoField(primary_key=True)
    token = models.UUIDField(editable=False)
    uuid = models.UUIDField(editable=False)  # the log's
    log_type = ExactCharField(max_length=MAX_LOG_TYPE_LENGTH, editable=False)
    state = ExactCharField(max_length=10, editable=False)
    other = ExactCharField(max_length=255, editable=False)  # the alias of the other database
    version = models.IntegerField(default=0, editable=False)  # the number of events that move
    digest = models.BinaryField(null=True, editable=False)  # of all of these events
    begun_at = models.DateTimeField(editable=False)
    ended_at = models.DateTimeField(null=True, editable=False)
    moved_by = ExactCharField(max_length=255, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["token"], name="eventlogs_logmove_one_per_token"),
        ]
        indexes = [models.Index(fields=["uuid", "id"], name="eventlogs_logmove_of_log")]

    def __str__(self) -> str:
        return f"{self.log_id} {self.state}"

    @property
    def log_id(self) -> LogId:
        """The log's id."""
        return LogId.stored(self.log_type, self.uuid)


class ProjectionState(models.Model):
    """A projection that has run in this database, and the version of it that made its rows."""

    name = ExactCharField(primary_key=True, max_length=MAX_PROJECTION_NAME_LENGTH, editable=False)
    version = models.IntegerField(editable=False)
    mode = ExactCharField(max_length=10, editable=False)
    partitions = models.IntegerField(editable=False)
    rebuilt_at = models.DateTimeField(null=True, editable=False)
    # A rebuild that a worker should start, and the error that ended the last one.
    rebuild_requested_at = models.DateTimeField(null=True, editable=False)
    rebuild_error = models.TextField(default="", editable=False)
    # A rebuild that is running, or was interrupted.
    rebuild_version = models.IntegerField(null=True, editable=False)
    rebuild_started_at = models.DateTimeField(null=True, editable=False)
    # For an inline projection: the log that its rebuild has reached, how many logs of how many are
    # rebuilt, and from how many events.
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
    The position of one partition of a projection, and the lease of the worker that moves it.

    All events up to ``position`` are applied, or wait behind a parked one. ``token`` increases
    with each lease: a worker with an older token can change nothing.
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
    applied = models.BigIntegerField(default=0, editable=False)  # events, shown in the admin
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

    With ``awaits`` the event waits for other code: this release does not know its type, or has an
    older version of it. That is no attempt and not parked; a release that knows the type applies
    it.
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
    # A mark of the process that cannot apply the event; see projections/releases.py.
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
    """An event that an operator made a projection skip or pass over; a rebuild skips it, too."""

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
    An operator's action on a projection: a retry, a skip, a requested rebuild and so on.

    The ends of rebuilds are recorded as well. A row is written in the transaction of its action.
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
    by = ExactCharField(max_length=200, default="", editable=False)  # "" for no name
    at = models.DateTimeField(editable=False)
    # For actions on one log; removed if the log is erased.
    log_id = LogIdField(null=True, editable=False)  # type: ignore[misc]
    index = models.IntegerField(null=True, editable=False)
    count = models.BigIntegerField(null=True, editable=False)  # events, or logs that are retried
    seconds = models.FloatField(null=True, editable=False)  # that a rebuild took
    note = models.TextField(default="", editable=False)  # never payload data

    class Meta:
        indexes = [models.Index(fields=["projection", "id"], name="eventlogs_action_of_projection")]

    def __str__(self) -> str:
        return f"{self.projection}: {self.action}"


class AppliedVersion(models.Model):
    """The version of a log up to which an inline projection has applied the log's events."""

    id = models.BigAutoField(primary_key=True)
    projection = ExactCharField(max_length=MAX_PROJECTION_NAME_LENGTH, editable=False)
    log_id = LogIdField(editable=False)
    version = models.IntegerField(editable=False)
    # The version of the projection that made the row.
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
    A process that runs projections. Others leave it its partitions, and events only it can apply.

    ``projections`` describes what it handles, by their names; see projections/releases.py.
    """

    name = ExactCharField(primary_key=True, max_length=100, editable=False)
    projections = models.JSONField(editable=False)
    seen_until = models.DateTimeField(editable=False)  # after that it counts as dead
    declared_at = models.DateTimeField(null=True, editable=False)  # when it began to run
    ended_at = models.DateTimeField(null=True, editable=False)  # by a regular end

    def __str__(self) -> str:
        return str(self.name)
