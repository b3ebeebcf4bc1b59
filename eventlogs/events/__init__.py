"""Event classes, their names and versions, and how they become JSON and return from it."""

from __future__ import annotations

from eventlogs.events.registry import RetiredEvent, event, retired_event, upcaster
from eventlogs.events.unique import Unique
from eventlogs.values import EventRecord

__all__ = ["EventRecord", "RetiredEvent", "Unique", "event", "retired_event", "upcaster"]
