"""
eventlogs: event sourcing for Django.

A *log* is the history of one entity. It holds immutable *events*; *reducing* it folds them
into an *aggregate*, the entity's current state.

The public names are loaded when they are first used: Django imports this module before
models can be.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventlogs.aggregates import ANY, Aggregate, fold
    from eventlogs.events.registry import RetiredEvent, event, retired_event, upcaster
    from eventlogs.exceptions import (
        AppendOnlyError,
        ConcurrentAppend,
        ConstraintViolated,
        EventLogError,
        FeedUnavailable,
        HistoryDiffers,
        IdempotencyKeyReused,
        IdempotencyKeyUndecided,
        IdempotentReplay,
        InvalidEvent,
        InvalidExport,
        InvalidIdempotencyKey,
        InvalidLogId,
        LogAlreadyExists,
        LogCorrupted,
        LogFull,
        LogNotFound,
        ProjectionFailed,
        ProjectionTimedOut,
        ProjectionUnavailable,
        RegistrationError,
        TransactionMustRetry,
        UndecodableEvent,
        UnknownEventType,
        VersionNotReached,
    )
    from eventlogs.feed.reader import Feed, FeedPage
    from eventlogs.fields import LogIdField
    from eventlogs.ids import LogId
    from eventlogs.logs import LogManager
    from eventlogs.operations.health import Finding, Health, health
    from eventlogs.pages import EventPage
    from eventlogs.policies import (
        AlwaysCache,
        CachingPolicy,
        LogAgePolicy,
        LogLengthPolicy,
        NeverCache,
    )
    from eventlogs.projections import (
        Projection,
        Reactor,
        ReductionProjection,
        handles,
        projection,
    )
    from eventlogs.values import EventRecord, LogState, Reduction

__version__ = "0.1.0"

_HOMES = {
    "eventlogs.aggregates": ("ANY", "Aggregate", "fold"),
    "eventlogs.events": ("RetiredEvent", "event", "retired_event", "upcaster"),
    "eventlogs.exceptions": (
        "AppendOnlyError",
        "ConcurrentAppend",
        "ConstraintViolated",
        "EventLogError",
        "FeedUnavailable",
        "HistoryDiffers",
        "IdempotencyKeyReused",
        "IdempotencyKeyUndecided",
        "IdempotentReplay",
        "InvalidEvent",
        "InvalidExport",
        "InvalidIdempotencyKey",
        "InvalidLogId",
        "LogAlreadyExists",
        "LogCorrupted",
        "LogFull",
        "LogNotFound",
        "ProjectionFailed",
        "ProjectionTimedOut",
        "ProjectionUnavailable",
        "RegistrationError",
        "TransactionMustRetry",
        "UndecodableEvent",
        "UnknownEventType",
        "VersionNotReached",
    ),
    "eventlogs.feed": ("Feed", "FeedPage"),
    "eventlogs.fields": ("LogIdField",),
    "eventlogs.ids": ("LogId",),
    "eventlogs.logs": ("LogManager",),
    "eventlogs.operations.health": ("Finding", "Health", "health"),
    "eventlogs.pages": ("EventPage",),
    "eventlogs.policies": (
        "AlwaysCache",
        "CachingPolicy",
        "LogAgePolicy",
        "LogLengthPolicy",
        "NeverCache",
    ),
    "eventlogs.projections": (
        "Projection",
        "Reactor",
        "ReductionProjection",
        "handles",
        "projection",
    ),
    "eventlogs.values": ("EventRecord", "LogState", "Reduction"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ANY",
    "Aggregate",
    "AlwaysCache",
    "AppendOnlyError",
    "CachingPolicy",
    "ConcurrentAppend",
    "ConstraintViolated",
    "EventLogError",
    "EventPage",
    "EventRecord",
    "Feed",
    "FeedPage",
    "FeedUnavailable",
    "Finding",
    "Health",
    "HistoryDiffers",
    "IdempotencyKeyReused",
    "IdempotencyKeyUndecided",
    "IdempotentReplay",
    "InvalidEvent",
    "InvalidExport",
    "InvalidIdempotencyKey",
    "InvalidLogId",
    "LogAgePolicy",
    "LogAlreadyExists",
    "LogCorrupted",
    "LogFull",
    "LogId",
    "LogIdField",
    "LogLengthPolicy",
    "LogManager",
    "LogNotFound",
    "LogState",
    "NeverCache",
    "Projection",
    "ProjectionFailed",
    "ProjectionTimedOut",
    "ProjectionUnavailable",
    "Reactor",
    "Reduction",
    "ReductionProjection",
    "RegistrationError",
    "RetiredEvent",
    "TransactionMustRetry",
    "UndecodableEvent",
    "UnknownEventType",
    "VersionNotReached",
    "event",
    "fold",
    "handles",
    "health",
    "projection",
    "retired_event",
    "upcaster",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
