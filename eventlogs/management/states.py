"""An aggregate as JSON values, whatever its class is."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from eventlogs.aggregates import Aggregate
from eventlogs.events.codec import ENCODER, JSON
from eventlogs.reductions.timeline import plain_value, properties_of


def state_of(aggregate: Aggregate) -> dict[str, Any]:
    """
    Return the public fields of an aggregate and their values, as JSON has them.

    A dataclass has its fields, in their order; another class its public attributes.
    """
    state: Any = aggregate
    names = [each.name for each in fields(state)] if is_dataclass(state) else list(vars(state))
    return {name: json_value(getattr(state, name)) for name in names if not name.startswith("_")}


def computed_of(aggregate: Aggregate) -> dict[str, Any]:
    """
    Return the public properties of an aggregate and their values, as JSON has them.

    They are computed here and now from the fields, and stored nowhere. One that raises has the
    name of its error, such as ``<ZeroDivisionError>``.
    """
    return {name: json_value(value) for name, value in properties_of(aggregate)}


def json_value(value: Any) -> Any:
    """Return ``value`` as JSON has it; what that has no form for, as the admin shows it."""
    try:
        return JSON.decode(ENCODER.encode(value))
    except (TypeError, ValueError, RecursionError):
        return plain_value(value)
