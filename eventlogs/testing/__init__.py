"""
For the tests of projects that use eventlogs: a store and a cache in memory, without servers.

    payments = LogManager(Payment, store=MemoryStore(), cache=RecordingCache())
"""

from __future__ import annotations

from eventlogs.testing.memory import MemoryStore
from eventlogs.testing.recording import RecordingCache

__all__ = ["MemoryStore", "RecordingCache"]
