"""Event classes, their names and versions, and how they become JSON and return from it."""

from __future__ import annotations

from eventlogs.events.personal import Personal
from eventlogs.events.registry import event, retired_event, upcaster
from eventlogs.events.unique import Unique
from eventlogs.values import EventRecord, RetiredEvent

__all__ = [
    "EventRecord",
    "Personal",
    "RetiredEvent",
    "Unique",
    "event",
    "retired_event",
    "upcaster",
]
