"""An aggregate as JSON values, whatever its class is."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from eventlogs.aggregates import Aggregate
from eventlogs.codec import ENCODER, JSON


def state_of(aggregate: Aggregate) -> dict[str, Any]:
    """
    Return the public fields of an aggregate and their values, as JSON has them.

    A dataclass has its fields, in their order; another class its public attributes. A value
    that JSON cannot hold is there as its ``repr()``.
    """
    state: Any = aggregate
    names = [each.name for each in fields(state)] if is_dataclass(state) else list(vars(state))
    return {name: json_value(getattr(state, name)) for name in names if not name.startswith("_")}


def json_value(value: Any) -> Any:
    """Return ``value`` as JSON has it, or its ``repr()``."""
    try:
        return JSON.decode(ENCODER.encode(value))
    except (TypeError, ValueError, RecursionError):
        return repr(value)
