"""
The names and versions of declared event classes, for values that are below the registry.

``eventlogs.events.registry`` fills it. A record needs it to say what its decoded event is today.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from weakref import WeakKeyDictionary


class DeclaredType(NamedTuple):
    """The current name and schema version of an event class."""

    name: str
    version: int


declared_types: Final[WeakKeyDictionary[type, DeclaredType]] = WeakKeyDictionary()
