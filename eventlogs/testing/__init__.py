"""
Tools for the tests of projects: a store and a cache in memory, which need no server.

    payments = LogManager(Payment, store=MemoryStore(), cache=RecordingCache())
"""

from __future__ import annotations

from eventlogs.testing.memory import MemoryStore
from eventlogs.testing.recording import RecordingCache

__all__ = ["MemoryStore", "RecordingCache"]
