"""JSON of subcommands: for values that ``json`` does not know, for stored events, for states."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from eventlogs.aggregates import Aggregate
from eventlogs.events.codec import ENCODER, JSON
from eventlogs.ids import LogId
from eventlogs.reductions.timeline import attributes_of, plain_value, properties_of
from eventlogs.utils.times import utc_text
from eventlogs.values import EventRecord


def plain(value: Any) -> Any:
    """
    Return the JSON form of a value that ``json`` does not know; for ``json.dumps(default=…)``.

    A timedelta is its seconds. Raise TypeError for a type that is not listed here: a program
    could not read its ``repr()``.
    """
    if isinstance(value, datetime):
        return utc_text(value, timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, LogId | UUID | Decimal):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    raise TypeError(f"JSON of a command cannot hold a {type(value).__qualname__}.")


def compact(value: Any) -> str:
    """Return JSON on one line, with the characters of all languages unescaped."""
    return json.dumps(value, ensure_ascii=False, default=plain)


def event_as_json(record: EventRecord) -> dict[str, Any]:
    """Return a raw event with the keys of ``EventPage.as_json``."""
    names = record.__struct_fields__
    return {"data" if name == "event" else name: getattr(record, name) for name in names}


def state_of(aggregate: Aggregate) -> dict[str, Any]:
    """
    Return the public fields of an aggregate and their values as JSON.

    A dataclass has its fields, in their order; another class its public attributes.
    """
    return {name: _value(value) for name, value in attributes_of(aggregate) or ()}


def computed_of(aggregate: Aggregate) -> dict[str, Any]:
    """
    Return the public properties of an aggregate and their values as JSON.

    They are computed now and stored nowhere. The value of a property that raises is the name of
    its error, such as ``<ZeroDivisionError>``.
    """
    return {name: _value(value) for name, value in properties_of(aggregate)}


def _value(value: Any) -> Any:
    """Return a value as JSON; one without a JSON form as the admin shows it."""
    try:
        return JSON.decode(ENCODER.encode(value))
    except (TypeError, ValueError, RecursionError):
        return plain_value(value)
