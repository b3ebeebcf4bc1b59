"""
The keys of metadata that have a meaning.

By convention: the actor, the request, the flow, and another system's id of an event. By rule:
the row that an event was adopted from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

NAME: Final = re.compile(r"[\w.:-]{1,100}")
"""A name in metadata that the admin can search for."""

ACTOR_KEYS: Final = ("user", "actor", "by", "user_id", "actor_id")
"""Keys of metadata that name the actor; the first one present counts."""

USER: Final = "user"
"""The key of metadata with the primary key of a user, as text."""

EVENT_ID: Final = "event_id"
"""The key of metadata with the id that another system has given to an event."""

REQUEST: Final = "request_id"
CORRELATION: Final = "correlation_id"  # of a whole flow
CAUSATION: Final = "causation_id"  # of the event that caused this one
TRACEPARENT: Final = "traceparent"

MAX_ID: Final = 512  # characters of an id of another system

ADOPTED: Final = "adopted_from"
"""
The key of metadata with the row that an event was adopted from.

Only an adoption writes it, by a restore. Reactors do not react to events that have it, so an append
with this key is refused: otherwise reactors would ignore an event with copied metadata.
"""

_MARK: Final = f'"{ADOPTED}"'


def is_adopted(metadata: Mapping[str, Any]) -> bool:
    """Return whether an event with these metadata was adopted from a row."""
    return ADOPTED in metadata


def is_stored_adopted(metadata: str) -> bool:
    """Return whether a stored event with this JSON as its metadata was adopted from a row."""
    return _MARK in metadata and ADOPTED in json.loads(metadata)


def actor_of(metadata: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the actor, or None if the metadata name none, and the rest of the metadata."""
    for key in ACTOR_KEYS:
        value = metadata.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value), {name: each for name, each in metadata.items() if name != key}
    return None, dict(metadata)


def id_in(metadata: Mapping[str, Any], key: str) -> str | int | None:
    """Return the id that metadata have under a key, or None where there is none."""
    value = metadata.get(key)
    if isinstance(value, str):
        return value if 1 <= len(value) <= MAX_ID else None
    is_id = isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 64
    return value if is_id else None
