"""What metadata say by custom: who did it, and which event it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

ACTOR_KEYS: Final = ("user", "actor", "by", "user_id", "actor_id")
"""Keys of metadata that name who did it; the first that is there counts."""

EVENT_ID: Final = "event_id"
"""The key of metadata with the id that another system has given to an event."""


def actor_of(metadata: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return who did it, or None where the metadata do not say, and the rest of the metadata."""
    for key in ACTOR_KEYS:
        value = metadata.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value), {name: each for name, each in metadata.items() if name != key}
    return None, dict(metadata)
