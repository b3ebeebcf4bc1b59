"""
For the tests of projects that use eventlogs: a store in memory, without a database.

    payments = LogManager(Payment, store=MemoryStore())
"""

from __future__ import annotations

from eventlogs.testing.memory import MemoryStore

__all__ = ["MemoryStore"]
