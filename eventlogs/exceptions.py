"""
Every error class of eventlogs, in one tree.

::

    EventLogError
    ├── RegistrationError            a class, name or upcaster cannot be registered as written
    ├── InvalidLogId                 (ValueError) not a log id, or one of another log type
    ├── InvalidIdempotencyKey        (ValueError) an empty, too long or unstorable key
    ├── InvalidEvent                 (ValueError) data that would not be read as it was written
    ├── UnknownEventType             a stored event's type has no class here
    ├── UndecodableEvent             a stored event's data does not fit its class
    ├── LogNotFound                  (ObjectDoesNotExist) no event of that log is stored
    │   ├── LogErased                … because the log was erased, for good
    │   ├── LogArchived              … in the tables: the log is in an archive, which can be read
    │   └── LogMoved                 … in this database: the log is, or will be, in another one
    ├── VersionNotReached            the log has fewer events than the version asked for
    ├── LogCorrupted                 the store returned events with a gap between them
    ├── SubjectForgotten             the key of a person's data was destroyed
    ├── SubjectUnknown               no key of the person was ever made
    ├── KeyUnavailable               a key of personal data cannot be had; nothing changed
    ├── LogFull                      the log has no index left
    ├── ConcurrentAppend             another writer appended first
    │   └── LogAlreadyExists         … and created the log
    ├── NameTaken                    a unique value of the append belongs to another log
    ├── DatabasesDiffer              the call would need logs of several databases at once
    ├── IdempotentReplay             the key's append was done before; this is its result
    ├── IdempotencyKeyReused         the key belongs to another append
    ├── IdempotencyKeyUndecided      the code here cannot read what the key's append stored
    ├── AppendOnlyError              stored events are never changed or deleted
    ├── CannotErase                  this database role may not erase logs
    │   └── CannotImportErased       … or store that a log was erased elsewhere
    ├── CannotChangeLayout           the tables cannot be given another layout, as things are
    ├── CannotMove                   a log cannot be moved to another database, as things are
    ├── CannotPartition              the table of events cannot be replaced by a copy now
    ├── LayoutDiffers                the tables have another layout than the settings say
    ├── ArchiveUnavailable           an archive cannot be read or written, as things are
    ├── NotArchived                  the log is in no archive
    ├── HistoryDiffers               the database has other events than the caller has seen
    │   ├── ImportDiffers            … than an import says
    │   ├── ErasedElsewhere          … of logs that were erased, as an import says
    │   └── CheckpointDiffers        … than a checkpoint of the feed says
    ├── AdoptionFailed               a row of a table cannot become a log
    ├── InvalidExport                (ValueError) a line of an import cannot be read
    ├── InvalidLock                  (ValueError) a file of event schemas cannot be read
    ├── InvalidSeal                  (ValueError) a file of seals cannot be read
    ├── SealUnavailable              a seal cannot be made or checked, as things are
    ├── TransactionMustRetry         the database aborted the whole transaction
    ├── FeedUnavailable              reading the feed here could skip events
    ├── Unreachable                  the reduction cache does not answer
    ├── ProjectionFailed             a projection could not apply an event
    │   └── ConstraintViolated       … because a constraint of the read model refused the row
    ├── ProjectionTimedOut           a handler of a projection ran longer than its timeout
    ├── NotAcknowledged              a broker did not store a message
    ├── PublishingFailed             a publisher could not publish a batch; it is tried again
    ├── Unpublishable                (raised by a publisher) records that can never be published
    └── ProjectionUnavailable        a projection cannot run, or be rebuilt, as things are

An error carries its facts as attributes, ends its message with what to do next, survives
pickling (so it can cross a Celery result backend or a process pool) and never shows payload
data: events hold data that must not end in a log file.

Each of them leaves the caller's transaction usable, except ``TransactionMustRetry``.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, field
from datetime import datetime
from typing import ClassVar

from django.core.exceptions import ObjectDoesNotExist

from eventlogs.ids import LogId
from eventlogs.utils.errors import (
    PUBLIC,
    EventLogError,
    InvalidLogId,
    RegistrationError,
    error,
)
from eventlogs.values import EventRecord, LogState

__all__ = [
    "AdoptionFailed",
    "AppendOnlyError",
    "ArchiveUnavailable",
    "CannotChangeLayout",
    "CannotErase",
    "CannotImportErased",
    "CannotMove",
    "CannotPartition",
    "CheckpointDiffers",
    "ConcurrentAppend",
    "ConstraintViolated",
    "DatabasesDiffer",
    "ErasedElsewhere",
    "EventLogError",
    "FeedUnavailable",
    "HistoryDiffers",
    "IdempotencyKeyReused",
    "IdempotencyKeyUndecided",
    "IdempotentReplay",
    "ImportDiffers",
    "InvalidEvent",
    "InvalidExport",
    "InvalidIdempotencyKey",
    "InvalidLock",
    "InvalidLogId",
    "InvalidSeal",
    "KeyUnavailable",
    "LayoutDiffers",
    "LogAlreadyExists",
    "LogArchived",
    "LogCorrupted",
    "LogErased",
    "LogFull",
    "LogMoved",
    "LogNotFound",
    "NameTaken",
    "NotAcknowledged",
    "NotArchived",
    "ProjectionFailed",
    "ProjectionTimedOut",
    "ProjectionUnavailable",
    "PublishingFailed",
    "RegistrationError",
    "SealUnavailable",
    "SubjectForgotten",
    "SubjectUnknown",
    "TransactionMustRetry",
    "UndecodableEvent",
    "UnknownEventType",
    "Unpublishable",
    "Unreachable",
    "VersionNotReached",
]


@error
class InvalidIdempotencyKey(EventLogError, ValueError):
    """The idempotency key cannot be stored; ``limit`` is the rule that it breaks."""

    limit: str
    template = "An idempotency key {limit}. Nothing was stored: pass another key."


@error
class InvalidEvent(EventLogError, ValueError):
    """
    Data that would not be read from the store as it was written; nothing was stored.

    ``path`` is the JSON path of the refused value (``$`` is the event itself, ``$metadata``
    the append's metadata), ``limit`` the rule that it breaks. The value is never shown.
    """

    limit: str
    _: KW_ONLY
    event_type: str | None = None
    path: str = "$"

    def __str__(self) -> str:
        where = f"{self.event_type} at {self.path}" if self.event_type else self.path
        return f"{where}: {self.limit}. Nothing was stored: correct it and append again."


@error
class UnknownEventType(EventLogError):
    """The store holds an event of a type for which no class is registered."""

    event_type: str
    _: KW_ONLY
    log_id: LogId | None = None
    index: int | None = None

    def __str__(self) -> str:
        where = "" if self.log_id is None else f" (event {self.index} of {self.log_id})"
        return (
            f"No event class is registered as {self.event_type!r}{where}. Register one with "
            f"@event({self.event_type!r}), name it in the aliases of the class that replaced it, "
            f"or declare retired_event({self.event_type!r}). Until then, load(decode=False) reads "
            f"the raw event."
        )


@error
class UndecodableEvent(EventLogError):
    """
    A stored event's data does not fit the class that is registered for its type.

    ``is_newer`` is True where newer code than this process runs has written it.
    """

    reason: str
    _: KW_ONLY
    event_type: str
    schema_version: int
    is_newer: bool = False
    log_id: LogId | None = None
    index: int | None = None

    def __str__(self) -> str:
        where = "" if self.log_id is None else f"Event {self.index} of {self.log_id}, "
        advice = (
            "Deploy that code here" if self.is_newer else "Add an upcaster or correct the class"
        )
        return (
            f"{where}{self.event_type} version {self.schema_version}: {self.reason}. {advice}. "
            f"Until then, load(decode=False) reads the raw event."
        )


@error
class LogNotFound(EventLogError, ObjectDoesNotExist):
    """No event of the log is stored (or none was, at the moment asked for)."""

    log_id: LogId
    _: KW_ONLY
    reason: str = "does not exist"
    template = "{log_id} {reason}. Check the id and the database, or create the log."


@error
class LogErased(LogNotFound):
    """
    The log existed, and was erased at ``erased_at``; nothing was stored.

    Its id cannot be used again. ``eventlogs.models.ErasedLog`` says who erased it and why: the
    reason may name a person, so that it is not in this error, which may end in a log file.
    """

    _: KW_ONLY
    erased_at: datetime
    reason: str = field(default="was erased", init=False)
    template = (
        "{log_id} was erased at {erased_at}. That is for good, and its id is not given again: "
        "create a log with another id."
    )


@error
class LogArchived(LogNotFound):
    """
    The log was closed, and its events were moved to an archive; nothing was stored.

    It can be read, and not appended to: ``load``, ``stream`` and ``reduce`` read the archive. Its
    id cannot be used for another log.
    """

    _: KW_ONLY
    archived_at: datetime
    reason: str = field(default="is archived", init=False)
    template = (
        "{log_id} was archived at {archived_at}, and takes no events. Bring it back first "
        "(manage.py eventlogs archive --restore), then append to it."
    )


@error
class LogMoved(LogNotFound):
    """
    The log was moved from the database ``using`` to ``to``, or is being moved; nothing was stored.

    Until the move ``is_complete``, the log can be read where it was, and takes no events.
    """

    _: KW_ONLY
    using: str
    to: str
    is_complete: bool
    reason: str = field(default="was moved", init=False)

    def __str__(self) -> str:
        if self.is_complete:
            return (
                f"{self.log_id} was moved from the database {self.using!r} to {self.to!r}. Nothing "
                f"was stored: let the router send it there, then try again."
            )
        return (
            f"{self.log_id} is being moved to the database {self.to!r}, and takes no events in "
            f"{self.using!r} meanwhile. Nothing was stored: try again in some seconds."
        )


@error
class VersionNotReached(EventLogError):
    """The log exists, but has fewer events than the version asked for."""

    log_id: LogId
    _: KW_ONLY
    version: int
    actual_version: int
    template = (
        "{log_id} is at version {actual_version}, and has not reached version "
        "{version}. Ask for a version from 1 to {actual_version}."
    )


@error
class LogCorrupted(EventLogError):
    """
    The store returned an event that does not follow the one before it.

    The constraints on the event table rule this out. If it happens, rows were removed by other
    means than this app. No state is computed from such a log.
    """

    log_id: LogId
    _: KW_ONLY
    expected_index: int
    actual_index: int
    template = (
        "{log_id} has event {actual_index} where event {expected_index} should "
        "follow. Restore the missing events from a backup before you use the log."
    )


@error
class SubjectForgotten(EventLogError):
    """
    The append has personal data of a subject whose key was destroyed; nothing was stored.

    ``subject`` is not in the message, ``key_id`` is that of the destroyed key. The caller's
    transaction stays usable.
    """

    subject: str
    _: KW_ONLY
    key_id: object
    template = (
        "The subject of key {key_id} was forgotten, and its personal data cannot be stored any "
        "more. Leave the personal data out of the event, or use another subject."
    )


@error
class SubjectUnknown(EventLogError):
    """
    The key store never had a key of this subject; nothing was changed.

    The subject is not in the message: it may be personal itself.
    """

    template = (
        "No personal data of this subject were ever stored: it has no key. Write it as Personal() "
        "makes it, with the prefix, e.g. member:42."
    )


@error
class KeyUnavailable(EventLogError):
    """
    A key that encrypts personal data cannot be used here; nothing was stored or changed.

    It is an error of the configuration: an erased value is never reported like this. ``reason``
    says what is missing.
    """

    reason: str
    template = "{reason}. Nothing was changed: correct that, then do it again."


@error
class LogFull(EventLogError):
    """The append would take the log past 2**31 - 1 events; nothing was stored."""

    log_id: LogId
    _: KW_ONLY
    actual_version: int
    count: int  # of the events that were to be appended
    template = (
        "{log_id} is at version {actual_version} and cannot take {count} more "
        "events: the limit is 2,147,483,647. Close it with a last event and continue in a new "
        "log."
    )


@error
class ConcurrentAppend(EventLogError):
    """
    Another writer appended to the log after the caller read it; nothing was stored.

    ``log_id`` is the log that has moved: the one to append to, or one of ``also_expect``.

    If the versions are the same, the log has other events than the caller read: the database
    was restored, or failed over and lost events. Then ``expected_position`` and
    ``actual_position`` are those of the log's last event; otherwise both are None.
    """

    log_id: LogId
    _: KW_ONLY
    expected_version: int
    actual_version: int
    expected_position: int | None = None
    actual_position: int | None = None

    def __str__(self) -> str:
        if self.expected_position is not None:
            return (
                f"{self.log_id} is at the expected version {self.expected_version}, but its "
                f"history is another one: its last event is at position {self.actual_position}, "
                f"not at {self.expected_position}. The database was restored, or failed over and "
                f"lost events. Reduce it again, then retry if the event still applies."
            )
        return (
            f"{self.log_id} is at version {self.actual_version}, not at the expected "
            f"{self.expected_version}. Reduce it again, then retry if the event still applies."
        )


@error
class LogAlreadyExists(ConcurrentAppend):
    """The log to create has events already; nothing was stored."""

    expected_version: int = field(default=0, init=False)

    def __str__(self) -> str:  # not a template: the base class has a message of its own
        return (
            f"{self.log_id} exists already, at version {self.actual_version}. "
            f"Append to it, or create a log with another id."
        )


@error
class NameTaken(EventLogError):
    """
    A unique value of the append belongs to another log; nothing was stored.

    ``scope`` is that of the ``Unique`` annotation, ``log_id`` the log that the value belongs to.
    The value itself is in no attribute.
    """

    scope: str
    log_id: LogId
    template = (
        "{scope}: this value belongs to {log_id}. Append another value, or release it in that "
        "log first."
    )


@error
class DatabasesDiffer(EventLogError):
    """
    A router spreads logs over databases, and the call would need several of them at once.

    Nothing was stored. ``reason`` is one of the keys of ``REASONS``. ``log_id`` is the log of the
    call, ``using`` its database; ``other`` is the other database. Those that are not known, or of
    which there is none, are None.
    """

    REASONS: ClassVar[dict[str, str]] = {
        "expected": (
            "{log_id} is in the database {using!r}, and a log of also_expect in {other!r}. No lock "
            "spans both. Let a router keep these logs together, or append without also_expect and "
            "check the other log in a reactor"
        ),
        "transaction": (
            "{log_id} is in the database {using!r}, and the open transaction is in {other!r}: the "
            "append would not be a part of it. Open transaction.atomic(using={using!r}), or append "
            "outside of the transaction"
        ),
        "unique": (
            "{log_id} claims a unique value, and logs of its type are in several databases. A "
            "value is unique in one of them only. Make the log's id of the value, with "
            "LogId.from_key(), or keep these logs in one database"
        ),
        "key": (
            "create() has both an idempotency key and the id {log_id}, and logs of its type are in "
            "several databases. A retry with another id would not find the key. Leave log_id out: "
            "the id is made of the key. Or leave the key out: an id that a retry passes again is "
            "created once"
        ),
        "position": (
            "a position counts in one database, and the logs are in several. Pass the LogState or "
            "Reduction instead of its position, or using="
        ),
        "all": (
            "this is about one database, and projection {other!r} runs on several. Pass using="
        ),
    }

    reason: str
    _: KW_ONLY
    log_id: LogId | None = None
    using: str | None = None
    other: str | None = None

    def __str__(self) -> str:
        text = self.REASONS[self.reason].format(
            log_id=self.log_id, using=self.using, other=self.other
        )
        return f"{text[0].upper()}{text[1:]}."


@error
class IdempotentReplay(EventLogError):
    """
    The key's append was done before; nothing more was stored.

    ``log_id``, ``index`` (of its first event) and ``state`` are those of the original append.
    """

    idempotency_key: str
    _: KW_ONLY
    log_id: LogId
    index: int
    state: LogState
    template = (
        "The append with this idempotency key was done before, on {log_id} from index "
        "{index}. Use its state, or call get_or_create, get_or_append or execute, which "
        "return it."
    )


@error
class IdempotencyKeyReused(EventLogError):
    """
    The key belongs to another append: other events, or another log; nothing was stored.

    ``log_id``, ``index`` (of its first event) and ``count`` describe the key's own append
    (``count`` is None where the raiser does not know it); ``reason`` is ``"events"`` or
    ``"log"``.
    """

    idempotency_key: str
    _: KW_ONLY
    log_id: LogId
    index: int
    count: int | None = None
    reason: str = "events"
    template = (
        "This idempotency key was used for another append, on {log_id} from index "
        "{index}. Make a new key for a new request."
    )


@error
class IdempotencyKeyUndecided(EventLogError):
    """
    The key is taken, and the code here cannot read the events of its append; nothing was stored.

    So this process cannot tell whether the call is a retry of that append or another request.
    It happens while two releases run side by side and the newer one stored the append, and
    after the class of a stored event was deleted. The ``__cause__`` is the UnknownEventType or
    UndecodableEvent. ``log_id`` and ``index`` are those of the key's append.

    With the ``reason`` ``"forgotten"``, the request has personal data of a subject that was
    forgotten: what was stored cannot be compared with it, and never will be. The ``__cause__`` is
    the SubjectForgotten, and ``event_type`` is empty.

    Do not send the request again with a new key: if it was a retry, it would be done twice.
    """

    idempotency_key: str
    _: KW_ONLY
    log_id: LogId
    index: int
    event_type: str = ""
    reason: str = "event"

    def __str__(self) -> str:
        taken = (
            f"This idempotency key is taken by an append on {self.log_id} from index {self.index}, "
        )
        if self.reason == "forgotten":
            return (
                f"{taken}and the request has personal data of a subject that was forgotten, so "
                f"nothing tells a retry from another request. Read that log to see what was done."
            )
        return (
            f"{taken}whose event {self.event_type!r} the code here cannot read, so it cannot tell "
            f"a retry from another request. During a deployment, send the request again, with the "
            f"same key, after the deployment; otherwise restore the event's class."
        )


@error
class AppendOnlyError(EventLogError):
    """An ORM call would have written, changed or deleted stored rows; no row was changed."""

    model: str
    operation: str
    template = (
        "{model}.{operation} is refused: history is append-only. Append an event "
        "that corrects it, through a LogManager or EventLog.objects.append()."
    )


@error
class CannotErase(EventLogError):
    """
    The database role ``role`` may not erase or archive logs: ``owner`` owns the events.

    Nothing was erased or moved. ``log_id`` is None where it is about no single log. Only PostgreSQL
    has such roles.
    """

    log_id: LogId | None
    _: KW_ONLY
    using: str
    role: str
    owner: str

    def __str__(self) -> str:
        what = "No event was moved" if self.log_id is None else f"{self.log_id} was not erased"
        return (
            f"{what}: the role {self.role} does not own the table of events in {self.using!r}. Run "
            f"this with a database alias or settings that connect as {self.owner}, the role that "
            f"runs migrate."
        )


@error
class CannotImportErased(CannotErase):
    """
    The database role ``role`` may not store that a log was erased: ``owner`` owns the events.

    An export names logs that were erased, ``log_id`` among them, and that this database does not
    know as erased. Nothing of the batch was stored.
    """

    def __str__(self) -> str:
        return (
            f"The export says that {self.log_id} was erased, and the role {self.role} may not "
            f"store that: it does not own the table of events in {self.using!r}. Import with a "
            f"database alias or settings that connect as {self.owner}, the role that runs migrate."
        )


@error
class CannotMove(EventLogError):
    """
    A log cannot be moved from the database ``using`` to ``to``, as things are.

    The log is where it was, and takes events there, unless the ``reason`` is "elsewhere",
    "overtaken" or "arrived". ``reason`` is one of the keys of ``REASONS``. ``projection`` is the
    one that it is about, "" for none; ``other`` is a third database, or None.
    """

    REASONS: ClassVar[dict[str, str]] = {
        "same": "{to!r} is the database that it is in. Name another one",
        "unknown": (
            "{to!r} is not among the router's log_databases() of its log type. Add the alias "
            "there: projections and commands would not know of the log"
        ),
        "seals": "it holds the seals of {using!r}, over positions there. Leave it in this database",
        "there": (
            "{to!r} has a log of its UUID, or is the same database. Check the aliases. If the log "
            "was imported there, erase one of the two"
        ),
        "erased": "a log of its UUID was erased in {to!r}, for good. Name another database",
        "archived": "a log of its UUID is archived in {to!r}. Bring that one back first",
        "chained": (
            "it is chained, and has left {to!r} before. Seals that were made there would not find "
            "its events. Name another database"
        ),
        "unique": (
            "it holds a unique value, which is unique in {using!r} only. Append an event that "
            "releases the value, or leave the log there"
        ),
        "key": (
            "another log in {to!r} has one of its idempotency keys. Prune the keys there when they "
            "are old enough, or name another database"
        ),
        "held": (
            "the projection {projection} holds it for an event that it cannot apply. Retry or skip "
            "that event (manage.py eventlogs parked), then move the log"
        ),
        "behind": (
            "the projection {projection} has not come to its last event. Start its worker, or wait "
            "for it, then move the log"
        ),
        "unsettled": (
            "an open transaction holds the feed of {using!r} before its last event. Wait until it "
            "has ended, then move the log"
        ),
        "differs": (
            "its copy in {to!r} was not what is in {using!r}, and was taken back. Find out why "
            "(manage.py eventlogs verify)"
        ),
        "elsewhere": (
            "a move to {other!r} was begun. Finish it, or end it with --abandon, then move the log"
        ),
        "overtaken": "another call has taken the move over, or abandoned it. Look where the log is",
        "arrived": (
            "it is complete in {to!r}, and has perhaps new events there. Move it on to the end: "
            "run the move again, without --abandon"
        ),
        "nothing": "no move was begun. There is nothing to abandon",
    }

    log_id: LogId
    _: KW_ONLY
    reason: str
    using: str
    to: str
    projection: str = ""
    other: str | None = None

    def __str__(self) -> str:
        text = self.REASONS[self.reason].format_map(vars(self))
        return f"{self.log_id} was not moved from {self.using!r} to {self.to!r}: {text}."


@error
class CannotPartition(EventLogError):
    """
    The table of events cannot be partitioned, or made one table again, as things are.

    The table is as it was. ``reason`` says what is in the way, ``action`` what to do about it. A
    copy that was begun stays, unless ``action`` says otherwise: the next call goes on with it.
    """

    _: KW_ONLY
    using: str
    reason: str
    action: str
    template = "The table of events in {using!r} was not replaced: {reason}. {action}."


@error
class LayoutDiffers(EventLogError):
    """
    The tables have another layout than EVENTLOGS["LAYOUT"] says; nothing was stored.

    ``layout`` is that of the tables of the database ``using``: ``"fence"`` or ``"buckets"``. A
    process of the other layout would give events positions that readers of the feed have passed,
    so the database refuses its appends. In PostgreSQL a transaction of the caller is broken then,
    as after any error of the database.
    """

    layout: str
    _: KW_ONLY
    using: str

    def __str__(self) -> str:
        return (
            f"The tables of database {self.using!r} have the layout {self.layout!r}, and "
            f'EVENTLOGS["LAYOUT"] is another one. Set it to {self.layout!r} in all processes, or '
            f"change the tables: manage.py eventlogs layout --database {self.using}."
        )


@error
class CannotChangeLayout(EventLogError):
    """
    The tables could not be given another layout as things are; they are as they were.

    ``reason`` says what is in the way, ``action`` what to do about it.
    """

    _: KW_ONLY
    using: str
    reason: str
    action: str
    template = "The tables in {using!r} keep their layout: {reason}. {action}."


@error
class ArchiveUnavailable(EventLogError):
    """
    An archive cannot be read or written, as things are; nothing was changed.

    ``archive`` is the name of its file in the storage, "" where it is about all of them. ``reason``
    says what is wrong.
    """

    archive: str
    _: KW_ONLY
    reason: str

    def __str__(self) -> str:
        which = f"The archive {self.archive!r}" if self.archive else "The archives"
        return f"{which} cannot be used: {self.reason}. Then do it again: nothing was changed."


@error
class NotArchived(EventLogError):
    """The log that was to be brought back is in no archive of this database."""

    log_id: LogId
    template = (
        "{log_id} is in no archive of this database. Check the id and the database: it may be "
        "back already."
    )


@error
class HistoryDiffers(EventLogError):
    """
    The database has another history than an import or a checkpoint says. Nothing was changed.

    ``reason`` says what differs, never the values.
    """

    _: KW_ONLY
    reason: str
    template = (
        "The history differs: {reason}. Find out whether an older backup was restored, or a "
        "failover has lost events."
    )


@error
class ImportDiffers(HistoryDiffers):
    """
    An imported event is not the one that the log has, or does not follow its last one.

    Nothing of its batch was stored.
    """

    log_id: LogId
    _: KW_ONLY
    index: int
    template = (
        "Event {index} of {log_id} cannot be imported: {reason}. History is "
        "not rewritten: import into another database, or leave this log out of the export."
    )


@error
class ErasedElsewhere(HistoryDiffers):
    """
    An export says that logs were erased which are in the database, in its tables or archives.

    ``log_ids`` are these logs, or the first thousand of them. Nothing was erased, and nothing of
    the batch was stored.
    """

    log_ids: tuple[LogId, ...]
    _: KW_ONLY
    reason: str = "a log that was erased in the exported database is here"

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.log_ids[:3]))
        more = f" and {len(self.log_ids) - 3:,} more" if len(self.log_ids) > 3 else ""
        return (
            f"The exported database has erased {shown}{more}, and this one has not. An import "
            f"erases nothing: erase it here (manage.py eventlogs erase LOG), then import again; "
            f"or import all exports in one command into an empty database."
        )


@error
class CheckpointDiffers(HistoryDiffers):
    """
    A checkpoint of the feed is not of the history of the database ``using``; nothing was read.

    ``position`` is that of the checkpoint. Events at or below it may be other ones here than the
    reader has seen.
    """

    position: int
    _: KW_ONLY
    using: str
    template = (
        "The checkpoint at position {position} is not of the history of the database {using!r}: "
        "{reason}. An older backup was restored, a failover has lost events, or it is another "
        "database. Read again from an older checkpoint that is accepted, or from the beginning, "
        "and correct what was made of the lost events."
    )


@error
class AdoptionFailed(EventLogError):
    """
    A row cannot become a log. Nothing of its batch was stored, and all batches before it are.

    ``model`` is the label of the model, ``key`` the row's primary key. ``reason`` says what is
    wrong, never a value of the row; the ``__cause__`` is what the project's own code raised.
    """

    model: str
    key: object
    _: KW_ONLY
    reason: str
    template = (
        "The row {key} of {model} cannot be adopted: {reason}. Correct the row or the adoption, "
        "then run it again: it goes on with the rows that have no log."
    )


@error
class InvalidExport(EventLogError, ValueError):
    """A line of an export cannot be read. All whole batches before it are stored."""

    line: int  # from 1
    reason: str
    template = (
        "Line {line}: {reason}. Correct the file or export it again, then import it "
        "again: events that are stored already are skipped."
    )


@error
class InvalidSeal(EventLogError, ValueError):
    """A line of a file of seals, or of leaves or proofs, cannot be read. Nothing was changed."""

    line: int  # from 1
    reason: str
    template = "Line {line}: {reason}. Pass a file as it was written, or a copy of it."


@error
class SealUnavailable(EventLogError):
    """
    A seal cannot be made or checked. Nothing was stored or written.

    ``reason`` says what is missing, and what to do.
    """

    reason: str
    template = "There is no seal: {reason}."


@error
class InvalidLock(EventLogError, ValueError):
    """A file of event schemas (``events.lock.json``) cannot be read. It was not changed."""

    path: object
    _: KW_ONLY
    reason: str
    template = (
        "{path}: {reason}. Take it from version control, or delete it and run: manage.py "
        "makeevents."
    )


@error
class TransactionMustRetry(EventLogError):
    """
    The database aborted the transaction (deadlock or serialization failure).

    Nothing of the transaction is stored; the database's error is the ``__cause__``. Inside an
    ``atomic()`` block, leave the block and run it again from its start.
    """

    _: KW_ONLY
    using: str
    sqlstate: str | None

    def __str__(self) -> str:
        code = f" ({self.sqlstate})" if self.sqlstate else ""
        return (
            f"Database {self.using!r} aborted the transaction in favour of another one{code}. "
            f"Run it again from its start."
        )


@error
class Unreachable(EventLogError):
    """
    The reduction cache does not answer; the error of its client is the cause.

    ``alias`` is its alias in CACHES, where it is known. No log was changed.
    """

    alias: str | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        cache = "The reduction cache" if self.alias is None else f"CACHES[{self.alias!r}]"
        return f"{cache} does not answer. Check its server, then try again."


@error
class FeedUnavailable(EventLogError):
    """
    Reading the feed here could skip events, so nothing was read.

    ``reason`` is one of:

    - ``"isolation"``: inside a REPEATABLE READ or SERIALIZABLE transaction
    - ``"replica"``: the database is a replica, and has no checkpoint of its primary
    - ``"sequence"``: the sequence of positions is missing, or has another CACHE than 1, a negative
      INCREMENT, CYCLE or a MINVALUE below 1
    - ``"fence"``: the trigger eventlogs_event_fence is missing, or can be switched off
    - ``"distributed"``: the events are on several servers (Citus, YugabyteDB, CockroachDB)
    - ``"subscriber"``: a subscription of logical replication writes the events
    - ``"permission"``: this database role may not read the sequence of positions
    - ``"ahead"``: this database has never assigned the position to read after
    - ``"layout"``: the tables have no counters, and EVENTLOGS["LAYOUT"] is "buckets"
    - ``"database"``: neither PostgreSQL nor SQLite, and EVENTLOGS["LAYOUT"] is "fence"; or no
      SKIP LOCKED
    """

    REASONS: ClassVar = {
        "isolation": (
            "the transaction reads a snapshot that may be older than what is settled now. "
            "Read outside of it, or under READ COMMITTED"
        ),
        "replica": (
            "it is a replica, which does not see the open transactions of its primary. Ask the "
            "primary; or, to read events here, run projections or manage.py eventlogs heartbeat "
            "on the primary"
        ),
        "sequence": (
            "the sequence of positions is missing, or does not assign one position after the "
            "other, upwards from 1. Run: ALTER TABLE eventlogs_event ALTER position SET CACHE 1 "
            "SET INCREMENT 1 SET MINVALUE 1 SET NO CYCLE; then restart all processes that are "
            "connected"
        ),
        "fence": (
            "the trigger eventlogs_event_fence is missing or not ENABLE ALWAYS. "
            "Run manage.py eventlogs triggers as the owner of the table, which creates it again"
        ),
        "distributed": (
            "the events are on several servers, and no query sees the locks and sequences of all "
            "of them together. Keep the tables of eventlogs on one server; on Citus, set "
            'EVENTLOGS["LAYOUT"] = "buckets", and distribute whole schemas'
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
            "it has never assigned the position to read after: the database was restored to an "
            "earlier moment, or is another one. Rebuild what was made from its feed, or read "
            "after an earlier position"
        ),
        "layout": (
            'EVENTLOGS["LAYOUT"] is "buckets", and the tables have another layout. Set it to '
            '"fence", or run manage.py eventlogs layout as the owner of the tables'
        ),
        "database": (
            "positions from its sequence are settled at an unknown time. Keep the logs in "
            'PostgreSQL or SQLite, or set EVENTLOGS["LAYOUT"] = "buckets" (on MariaDB from 10.6 '
            "on, and MySQL 8) and run manage.py eventlogs layout"
        ),
    }

    reason: str
    _: KW_ONLY
    using: str

    def __str__(self) -> str:
        return f"The feed of database {self.using!r} cannot be read: {self.REASONS[self.reason]}."


@error
class ProjectionFailed(EventLogError):
    """
    A projection could not apply an event; the ``__cause__`` is the error of its handler.

    Raised by an append with an inline projection (nothing of the append is stored, and the
    caller's transaction stays usable), by a rebuild (the old rows stay in use) and by
    ``catch_up(strict=True)`` (what was applied before the event stays applied).
    """

    projection: str
    log_id: LogId
    position: int
    _: KW_ONLY
    message: str | None = None  # in the place of the usual one

    def __str__(self) -> str:
        return self.message or (
            f"Projection {self.projection!r} could not apply the event at position "
            f"{self.position} of {self.log_id}. Nothing was stored: correct its handler, then do "
            f"it again."
        )


@error
class ConstraintViolated(ProjectionFailed):
    """
    A constraint of the read model refused the row that a projection made of an event.

    ``constraint`` is its name, None where the database does not tell it. ``fields`` are the names
    of the read model's fields that it covers, as far as they are known. The database's error is
    the ``__cause__``; its text may show data.
    """

    _: KW_ONLY
    constraint: str | None
    fields: tuple[str, ...]

    def __str__(self) -> str:
        named = "A constraint" if self.constraint is None else f"The constraint {self.constraint!r}"
        on = f" on {', '.join(self.fields)}" if self.fields else ""
        return (
            f"{named}{on} refuses the row that projection {self.projection!r} makes of the event "
            f"at position {self.position} of {self.log_id}. Nothing was stored: refuse the "
            f"request, or do it again with other values."
        )


@error
class ProjectionTimedOut(EventLogError):
    """A handler of a projection ran longer than the timeout, and was interrupted."""

    projection: str
    timeout: float  # seconds
    template = (
        "A handler of projection {projection!r} did not end within {timeout:g} "
        "seconds. Correct it, or raise the projection's timeout."
    )


@error
class ProjectionUnavailable(EventLogError):
    """
    A projection cannot do what was asked; nothing was changed.

    ``reason`` is one of:

    - ``"busy"``: another process does it now
    - ``"mode"``: its rows were kept inline, and are not those of one position
    - ``"newer"``: its rows were made by a newer release than this process runs
    - ``"elsewhere"``: another release that runs handles an event that this one does not
    - ``"unread"``: a log has an event that this process has no class for, or only an older version
    - ``"privilege"``: this database role may not create, or replace, its table; ``owner`` may
    - ``"behind"``: it has not come to the last event of the archived log that is to come back
    - ``"archived"``: several logs share its rows, and ``logs`` of them are archived
    - ``"shared rows"``: one of its rows is made of the events of several logs
    - ``"table"``: its model has no table in the database that was asked for
    """

    REASONS: ClassVar = {
        "busy": "another process does it now. Wait until that has ended, or stop it",
        "mode": (
            "its rows were kept by Projection.INLINE so far. Stop the processes with the old "
            "code, then rebuild it"
        ),
        "newer": (
            "its rows were made by a newer release, and this process runs an older one: a "
            "deployment is under way, or was rolled back. Restart this process with the newer "
            "release, or rebuild the rows with: manage.py eventlogs rebuild {name} --downgrade"
        ),
        "elsewhere": (
            "another release that runs beside this one handles an event that this one skips. "
            "Let that release do it, or wait for 5 minutes after its last process has ended"
        ),
        "unread": (
            "its log has an event that this release has no class for, or only an older version "
            "of it: a deployment is under way, or was rolled back. Restart this process with the "
            "newer release, or declare retired_event() for a class that was deleted for good"
        ),
        "privilege": (
            "a rebuild creates a second table and swaps it with that of the rows, which "
            "this database role may not do. Run manage.py eventlogs rebuild as the owner of the "
            "table"
        ),
        "behind": (
            "it has not come to the last event of the log, and could apply a part of its events, "
            "or apply them twice. Let it catch up, or rebuild it, then bring the log back"
        ),
        "archived": (
            "{logs} of the logs that it reads are archived, and rows that several logs share are "
            "made of all events in their order. Bring these logs back with manage.py eventlogs "
            "archive --restore LOG, or rebuild it from the others: manage.py eventlogs rebuild "
            "{name} --without-archived"
        ),
        "shared rows": "events of several logs change one row. Rebuild all of it",
        "database": (
            "its `databases` do not name that database. Pass another `using`, or name it there"
        ),
        "table": (
            "its model has no table in that database. Run manage.py migrate --database, or let a "
            "router allow the model there"
        ),
    }

    reason: str
    _: KW_ONLY
    projection: str
    owner: str | None = None  # the role that owns its table, for "privilege"
    logs: int = 0  # that are archived, for "archived"

    def __str__(self) -> str:
        owner = "" if self.owner is None else f", {self.owner!r}"
        advice = self.REASONS[self.reason].replace("{name}", self.projection)
        advice = advice.replace("{logs}", f"{self.logs:,}")
        return f"Projection {self.projection!r} cannot do this: {advice}{owner}."


@error
class NotAcknowledged(EventLogError):
    """
    A broker did not store a message of a batch; the ``__cause__`` of a PublishingFailed.

    ``reason`` is a sentence, the broker's where it gives one.
    """

    reason: str
    template = "The broker did not acknowledge an event. {reason} The batch is published again."


@error
class PublishingFailed(EventLogError):
    """
    A publisher could not publish a batch; the ``__cause__`` says why, and its text may show data.

    Its checkpoint has not moved. Some of the events may have been published: all of them are
    published again. A worker tries that by itself, later and later; ``catch_up()`` raises this.
    """

    projection: str
    events: int
    template = (
        "Publisher {projection!r} could not publish a batch of {events} events. They are published "
        "again: a worker does that by itself, as soon as the other side takes them. Look there, "
        "or at the cause of this error."
    )


class Unpublishable(EventLogError):
    """
    Raise it in ``Publisher.publish`` for records that can never be published as they are.

    ``ids`` are those of the records. The log of each is held from it on and tried again, at last
    parked, as with a failed event of a reactor. The other records of the batch are published again.
    """

    __module__ = PUBLIC

    def __init__(self, *records: EventRecord, reason: str = "") -> None:
        """Name the records, at least one; ``reason`` is a clause without data of theirs."""
        if not records:
            raise TypeError("Unpublishable() takes the records that cannot be published.")
        self.ids = tuple(record.id for record in records)
        self.reason = reason
        others = f" and {len(records) - 1} more" if len(records) > 1 else ""
        super().__init__(
            f"The event {self.ids[0]}{others} cannot be published{reason and f': {reason}'}. "
            f"Correct the publisher or the other side, then retry the parked events."
        )
