"""
Every error that eventlogs raises, in one tree.

    EventLogError
    ├── RegistrationError            a class, name or upcaster cannot be registered as written
    ├── InvalidLogId                 (ValueError) not a log id, or one of another log type
    ├── InvalidIdempotencyKey        (ValueError) an empty, too long or unstorable key
    ├── InvalidEvent                 (ValueError) data that would not come back as it went in
    ├── UnknownEventType             a stored event's type has no class here
    ├── UndecodableEvent             a stored event's data does not fit its class
    ├── LogNotFound                  (ObjectDoesNotExist) no event of that log is stored
    ├── VersionNotReached            the log is not as long as that yet
    ├── LogCorrupted                 the store answered events with a hole between them
    ├── LogFull                      the log has no index left
    ├── ConcurrentAppend             another writer was faster
    │   └── LogAlreadyExists         … and created the log
    ├── IdempotentReplay             the key's append is done already; here is its answer
    ├── IdempotencyKeyReused         the key's append was another one
    ├── IdempotencyKeyUndecided      the code here cannot read what the key's append stored
    ├── AppendOnlyError              stored events are never changed or deleted
    ├── HistoryDiffers               an import has another event than the database, or lacks one
    ├── InvalidExport                (ValueError) a line of an import cannot be read
    ├── TransactionMustRetry         the database gave the whole transaction up
    ├── FeedUnavailable              reading the feed here could skip events
    ├── ProjectionFailed             a projection could not apply an event, and nothing is stored
    │   └── ConstraintViolated       … because a constraint of the read model refuses the row
    ├── ProjectionTimedOut           a projection's handler did not end in time
    └── ProjectionUnavailable        a projection cannot run, or be rebuilt, as things are

An error carries its facts as attributes, ends its message with what to do next, survives
pickling (so it can cross a Celery result backend or a process pool) and never shows payload
data: events hold what must not end in a log file.

Every one of them leaves the caller's transaction usable, except ``TransactionMustRetry``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ObjectDoesNotExist

if TYPE_CHECKING:
    from eventlogs.ids import LogId
    from eventlogs.values import LogState


def _restore(cls: type[EventLogError], args: tuple[Any, ...], facts: dict[str, Any]) -> Any:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class EventLogError(Exception):
    """The root of the tree: catch this to catch whatever eventlogs raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle as cls(*args), which keyword-only facts do not survive.
        return _restore, (type(self), self.args, self.__dict__.copy())


class RegistrationError(EventLogError):
    """An event, upcaster or aggregate cannot be registered as it is written."""


class InvalidLogId(EventLogError, ValueError):
    """The value is not a log id, or it is one of another log type."""

    def __init__(self, reason: str, *, expected_type: str | None = None) -> None:
        self.expected_type = expected_type
        super().__init__(reason)


class InvalidIdempotencyKey(EventLogError, ValueError):
    """The idempotency key cannot be stored; ``limit`` says why."""

    def __init__(self, limit: str) -> None:
        self.limit = limit
        super().__init__(f"An idempotency key {limit}. Nothing was stored: pass another key.")


class InvalidEvent(EventLogError, ValueError):
    """
    Data that would not come back from the store as it went in; nothing was stored.

    ``path`` is the JSON path of the offending value (``$`` is the event itself, ``$metadata``
    the append's metadata), ``limit`` the rule that it breaks. The value is never shown.
    """

    def __init__(self, limit: str, *, event_type: str | None = None, path: str = "$") -> None:
        self.event_type = event_type
        self.path = path
        self.limit = limit
        where = f"{event_type} at {path}" if event_type else path
        super().__init__(f"{where}: {limit}. Nothing was stored: correct it and append again.")


class UnknownEventType(EventLogError):
    """The store holds an event of a type that no class is registered for."""

    def __init__(
        self, event_type: str, *, log_id: LogId | None = None, index: int | None = None
    ) -> None:
        self.event_type = event_type
        self.log_id = log_id
        self.index = index
        where = "" if log_id is None else f" (event {index} of {log_id})"
        super().__init__(
            f"No event class is registered as {event_type!r}{where}. Register one with "
            f"@event({event_type!r}), name it in the aliases of the class that replaced it, or "
            f"declare retired_event({event_type!r}); load(decode=False) reads the raw event "
            f"meanwhile."
        )


class UndecodableEvent(EventLogError):
    """
    A stored event's data does not fit the class that is registered for its type.

    ``is_newer`` says that it was written by newer code than this process runs.
    """

    def __init__(
        self,
        reason: str,
        *,
        event_type: str,
        schema_version: int,
        is_newer: bool = False,
        log_id: LogId | None = None,
        index: int | None = None,
    ) -> None:
        self.reason = reason
        self.event_type = event_type
        self.schema_version = schema_version
        self.is_newer = is_newer
        self.log_id = log_id
        self.index = index
        where = "" if log_id is None else f"Event {index} of {log_id}, "
        super().__init__(
            f"{where}{event_type} version {schema_version}: {reason}. "
            + ("Deploy that code here" if is_newer else "Add an upcaster or correct the class")
            + "; load(decode=False) reads the raw event."
        )


class LogNotFound(EventLogError, ObjectDoesNotExist):
    """No event of the log is stored (or none was, at the moment asked for)."""

    def __init__(self, log_id: LogId, *, reason: str = "does not exist") -> None:
        self.log_id = log_id
        super().__init__(f"{log_id} {reason}. Check the id and the database, or create it.")


class VersionNotReached(EventLogError):
    """The log exists, but has fewer events than the version asked for."""

    def __init__(self, log_id: LogId, *, version: int, actual_version: int) -> None:
        self.log_id = log_id
        self.version = version
        self.actual_version = actual_version
        super().__init__(
            f"{log_id} is at version {actual_version}, and has not reached version {version}. "
            f"Ask for a version from 1 to {actual_version}."
        )


class LogCorrupted(EventLogError):
    """
    The store answered an event that does not follow the one before it.

    The constraints on the event table rule this out; seen, it means that rows were removed
    behind the database's back. No state is computed from such a log.
    """

    def __init__(self, log_id: LogId, *, expected_index: int, actual_index: int) -> None:
        self.log_id = log_id
        self.expected_index = expected_index
        self.actual_index = actual_index
        super().__init__(
            f"{log_id} has event {actual_index} where event {expected_index} should follow. "
            f"Restore the missing events from a backup before using the log."
        )


class LogFull(EventLogError):
    """The append would take the log past 2**31 - 1 events; nothing was stored."""

    def __init__(self, log_id: LogId, *, actual_version: int, count: int) -> None:
        self.log_id = log_id
        self.actual_version = actual_version
        self.count = count
        super().__init__(
            f"{log_id} is at version {actual_version} and cannot take {count} more. "
            f"Close it with a last event and carry on in a new log."
        )


class ConcurrentAppend(EventLogError):
    """
    Another writer appended to the log after the caller last saw it; nothing was stored.

    Where the versions are the same, the log's history is another one than the caller saw: the
    database was restored, or failed over and lost events. Then ``expected_position`` and
    ``actual_position`` are those of the log's last event; otherwise both are None.
    """

    def __init__(
        self,
        log_id: LogId,
        *,
        expected_version: int,
        actual_version: int,
        expected_position: int | None = None,
        actual_position: int | None = None,
        message: str | None = None,
    ) -> None:
        self.log_id = log_id
        self.expected_version = expected_version
        self.actual_version = actual_version
        self.expected_position = expected_position
        self.actual_position = actual_position
        if message is None and expected_position is not None:
            message = (
                f"{log_id} is at the expected version {expected_version}, but its history is "
                f"another one: its last event is at position {actual_position}, not at "
                f"{expected_position}. The database was restored, or failed over and lost "
                f"events. Reduce it again, then retry if the event still applies."
            )
        super().__init__(
            message
            or f"{log_id} is at version {actual_version}, not at the expected "
            f"{expected_version}. Reduce it again, then retry if the event still applies."
        )


class LogAlreadyExists(ConcurrentAppend):
    """The log to create has events already; nothing was stored."""

    def __init__(self, log_id: LogId, *, actual_version: int) -> None:
        super().__init__(
            log_id,
            expected_version=0,
            actual_version=actual_version,
            message=f"{log_id} exists already, at version {actual_version}. "
            f"Append to it, or create a log with another id.",
        )


class IdempotentReplay(EventLogError):
    """
    The key's append is done already; nothing more was stored.

    ``log_id``, ``index`` (of its first event) and ``state`` are the original append's.
    """

    def __init__(self, idempotency_key: str, *, log_id: LogId, index: int, state: LogState) -> None:
        self.idempotency_key = idempotency_key
        self.log_id = log_id
        self.index = index
        self.state = state
        super().__init__(
            f"The append with this idempotency key was done before, on {log_id} from index "
            f"{index}. Use its state, or get_or_create, get_or_append or execute, "
            f"which answer it."
        )


class IdempotencyKeyReused(EventLogError):
    """
    The key belongs to another append: other events, or another log; nothing was stored.

    ``log_id``, ``index`` (of its first event) and ``count`` say where the key's own append is
    (``count`` is None where the raiser does not know it); ``reason`` is ``"events"`` or
    ``"log"``.
    """

    def __init__(
        self,
        idempotency_key: str,
        *,
        log_id: LogId,
        index: int,
        count: int | None = None,
        reason: str = "events",
    ) -> None:
        self.idempotency_key = idempotency_key
        self.log_id = log_id
        self.index = index
        self.count = count
        self.reason = reason
        super().__init__(
            f"This idempotency key was used for another append, on {log_id} from index "
            f"{index}. Make a new key for a new request."
        )


class IdempotencyKeyUndecided(EventLogError):
    """
    The key is taken, and the code here cannot read the events of its append; nothing was stored.

    So nobody can say here whether this call is a retry of that append or another one. It
    happens while two releases run side by side, where the newer one stored the append, and
    after the class of a stored event was deleted. The ``__cause__`` is the UnknownEventType or
    UndecodableEvent. ``log_id`` and ``index`` say where the key's append is.

    Do not send the request again with a new key: if it was a retry, it would be done twice.
    """

    def __init__(self, idempotency_key: str, *, log_id: LogId, index: int, event_type: str) -> None:
        self.idempotency_key = idempotency_key
        self.log_id = log_id
        self.index = index
        self.event_type = event_type
        super().__init__(
            f"This idempotency key is taken by an append on {log_id} from index {index}, whose "
            f"event {event_type!r} the code here cannot read, so it cannot tell a retry from "
            f"another request. If a deployment is under way, send the request again, with the "
            f"same key, once it is done; otherwise bring the event's class back."
        )


class AppendOnlyError(EventLogError):
    """An ORM call would have changed, deleted or slipped in stored rows; none was touched."""

    def __init__(self, model: str, operation: str) -> None:
        self.model = model
        self.operation = operation
        super().__init__(
            f"{model}.{operation} is refused: history is append-only. Append an event that "
            f"corrects it, through a LogManager or EventLog.objects.append()."
        )


class HistoryDiffers(EventLogError):
    """
    An event to restore is not the one that the log has, or does not follow it.

    Nothing of its batch was stored. ``reason`` says what differs, never the values.
    """

    def __init__(self, log_id: LogId, *, index: int, reason: str) -> None:
        self.log_id = log_id
        self.index = index
        self.reason = reason
        super().__init__(
            f"Event {index} of {log_id} cannot be imported: {reason}. History is not "
            f"rewritten: import into another database, or leave this log out of the export."
        )


class InvalidExport(EventLogError, ValueError):
    """A line of an export cannot be read. What came before it in whole batches is stored."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        self.reason = reason
        super().__init__(
            f"Line {line}: {reason}. Correct the file, or export it again, and import it "
            f"again: what is there already is left as it is."
        )


class TransactionMustRetry(EventLogError):
    """
    The database gave the transaction up (deadlock or serialization failure).

    Nothing of the transaction is stored; the database's error is the ``__cause__``. Inside of
    an ``atomic()`` block the block has to end, and be run again from its start.
    """

    def __init__(self, *, using: str, sqlstate: str | None) -> None:
        self.using = using
        self.sqlstate = sqlstate
        code = f" ({sqlstate})" if sqlstate else ""
        super().__init__(
            f"The transaction on database {using!r} lost against another one{code}. "
            f"Run it again from its start."
        )


class FeedUnavailable(EventLogError):
    """
    Reading the feed here could skip events, so nothing was read.

    ``reason`` is one of:

    - ``"isolation"``: inside of a REPEATABLE READ or SERIALIZABLE transaction
    - ``"replica"``: the database is a replica
    - ``"sequence"``: the sequence of positions is missing, or has another CACHE than 1, a negative
      INCREMENT, CYCLE or a MINVALUE below 1
    - ``"fence"``: the trigger eventlogs_event_fence is missing, or can be switched off
    - ``"distributed"``: the events are on several servers (Citus, YugabyteDB, CockroachDB)
    - ``"subscriber"``: a subscription of logical replication writes the events
    - ``"permission"``: this database role may not read the sequence of positions
    - ``"ahead"``: the position to read after was never given out in this database
    - ``"database"``: neither PostgreSQL nor SQLite
    """

    REASONS = {
        "isolation": (
            "the transaction reads a snapshot that may be older than what is settled by now. "
            "Read outside of it, or under READ COMMITTED"
        ),
        "replica": (
            "it is a replica, which does not know what is still open on its primary. "
            "Read from the primary"
        ),
        "sequence": (
            "the sequence of positions is missing, or does not give out one position after the "
            "other, upwards from 1. Run: ALTER TABLE eventlogs_event ALTER position SET CACHE 1 "
            "SET INCREMENT 1 SET MINVALUE 1 SET NO CYCLE; then restart what is connected"
        ),
        "fence": (
            "the trigger eventlogs_event_fence is missing or not ENABLE ALWAYS. "
            "Run manage.py check --database, which says how to put it back"
        ),
        "distributed": (
            "the events are on several servers, whose locks and sequences nobody sees together. "
            "Keep the tables of eventlogs on one server"
        ),
        "subscriber": (
            "a subscription of logical replication writes its events, in another order than that "
            "of their positions. Read from the publisher, or drop the subscription"
        ),
        "permission": (
            "this database role may not read the sequence of positions. Grant it what "
            "manage.py eventlogs grants ROLE prints"
        ),
        "ahead": (
            "the position to read after was never given out there, so the database was restored "
            "to an earlier moment, or is another one. Rebuild what was made from its feed, or "
            "read after an earlier position"
        ),
        "database": (
            "only on PostgreSQL and SQLite is it known which positions are settled. "
            "Keep the logs in one of them"
        ),
    }

    def __init__(self, reason: str, *, using: str) -> None:
        self.reason = reason
        self.using = using
        super().__init__(f"The feed of database {using!r} cannot be read: {self.REASONS[reason]}.")


class ProjectionFailed(EventLogError):
    """
    A projection could not apply an event; the ``__cause__`` says why.

    Raised by an append with an inline projection (the append is taken back, and the caller's
    transaction stays usable), by a rebuild (the old rows go on serving) and by
    ``catch_up(strict=True)`` (what was applied before the event stays applied).
    """

    def __init__(
        self, projection: str, log_id: LogId, position: int, *, message: str | None = None
    ) -> None:
        self.projection = projection
        self.log_id = log_id
        self.position = position
        super().__init__(
            message
            or f"Projection {projection!r} could not apply the event at position {position} of "
            f"{log_id}. Nothing was stored: mend its handler, then do it again."
        )


class ConstraintViolated(ProjectionFailed):
    """
    A constraint refuses the row that a projection made of an event: a business rule said no.

    ``constraint`` is its name, None where the database does not tell it. ``fields`` are the names
    of the read model's fields that it is on, as far as they are known. The database's error is
    the ``__cause__``; its text may show data.
    """

    def __init__(
        self,
        projection: str,
        log_id: LogId,
        position: int,
        *,
        constraint: str | None,
        fields: tuple[str, ...],
    ) -> None:
        self.constraint = constraint
        self.fields = fields
        named = "A constraint" if constraint is None else f"The constraint {constraint!r}"
        on = f" on {', '.join(fields)}" if fields else ""
        super().__init__(
            projection,
            log_id,
            position,
            message=f"{named}{on} refuses the row that projection {projection!r} makes of the "
            f"event at position {position} of {log_id}. Nothing was stored: refuse the request, "
            f"or do it again with other values.",
        )


class ProjectionTimedOut(EventLogError):
    """A projection's handler did not end in time, and was interrupted."""

    def __init__(self, projection: str, timeout: float) -> None:
        self.projection = projection
        self.timeout = timeout
        super().__init__(
            f"A handler of projection {projection!r} did not end within {timeout:g} seconds. "
            f"Mend it, or raise the projection's timeout."
        )


class ProjectionUnavailable(EventLogError):
    """
    A projection cannot do what was asked; nothing was changed.

    ``reason`` is one of:

    - ``"busy"``: another process is at it
    - ``"mode"``: its rows were kept inline, and are not from a position on
    - ``"newer"``: its rows were made by a newer release than this process runs
    - ``"elsewhere"``: another release that runs handles an event that this one does not
    - ``"unread"``: a log has an event that this process has no class for, or an older one
    - ``"privilege"``: this database role may not make, or replace, its table; ``owner`` may
    - ``"shared rows"``: its rows are not one for each log
    - ``"table"``: its model has no table in the database that was asked for
    """

    REASONS = {
        "busy": "another process is at it. Wait for its end, or stop it",
        "mode": (
            "its rows were kept by Projection.INLINE so far. Stop the processes with the old "
            "code, then rebuild it"
        ),
        "newer": (
            "its rows were made by a newer release, and this process runs an older one: a "
            "deployment is under way, or was rolled back. Restart this process with the newer "
            "release, or take the rows back with: manage.py eventlogs rebuild {name} --downgrade"
        ),
        "elsewhere": (
            "another release that runs beside this one handles an event that this one passes over. "
            "Let that release do it, or wait for 5 minutes after its last process has ended"
        ),
        "unread": (
            "its log has an event that this release has no class for, or an older one: a "
            "deployment is under way, or was rolled back. Restart this process with the newer "
            "release, or declare retired_event() for a class that was deleted for good"
        ),
        "privilege": (
            "a rebuild makes a table beside that of its rows and lets it take its place, which "
            "this database role may not do. Run manage.py eventlogs rebuild as the owner of the "
            "table"
        ),
        "shared rows": "events of several logs change one row. Rebuild all of it",
        "table": (
            "its model has no table in that database. Run manage.py migrate --database, or let a "
            "router allow the model there"
        ),
    }

    def __init__(self, reason: str, *, projection: str, owner: str | None = None) -> None:
        self.reason = reason
        self.projection = projection
        self.owner = owner  # of its table, where that matters
        who = "" if owner is None else f", {owner!r}"
        what_to_do = self.REASONS[reason].replace("{name}", projection)
        super().__init__(f"Projection {projection!r} cannot do this: {what_to_do}{who}.")
