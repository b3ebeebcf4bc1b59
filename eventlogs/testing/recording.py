"""
A reduction cache in memory that remembers what it was asked, for unit tests.

It keeps what a shared cache would keep, under the same contract, without a server.
"""

from __future__ import annotations

import time
from threading import RLock

from eventlogs.caches.backends import BaseReductionCache
from eventlogs.caches.entries import version_in


class RecordingCache(BaseReductionCache):
    """
    Entries in this object's memory; safe to use from several threads.

    ``calls`` are the names and keys of the calls so far. While ``is_down`` is True, every
    call raises ConnectionError, as a cache does that cannot be reached.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.is_down = False
        self._lock = RLock()
        self._values: dict[str, tuple[bytes, float | None]] = {}

    def get(self, key: str) -> bytes | None:
        with self._lock:
            self._record("get", key)
            return self._there(key)

    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        with self._lock:
            self._record("set", key)
            there = self._there(key)
            if there is not None and there != replaces and version_in(there) >= version_in(entry):
                return False
            self._keep(key, entry, timeout)
            return True

    def add(self, key: str, value: bytes, *, timeout: float) -> bool:
        with self._lock:
            self._record("add", key)
            if self._there(key) is not None:
                return False
            self._keep(key, value, timeout)
            return True

    def replace(self, key: str, value: bytes, *, timeout: float) -> None:
        with self._lock:
            self._record("replace", key)
            self._keep(key, value, timeout)

    def delete(self, key: str) -> None:
        with self._lock:
            self._record("delete", key)
            self._values.pop(key, None)

    def clear(self) -> None:
        """Forget all that is kept, but not what was asked."""
        with self._lock:
            self._values.clear()

    def _record(self, name: str, key: str) -> None:
        self.calls.append((name, key))
        if self.is_down:
            raise ConnectionError("this RecordingCache is down")

    def _keep(self, key: str, value: bytes, timeout: float | None) -> None:
        self._values[key] = value, None if timeout is None else time.monotonic() + timeout

    def _there(self, key: str) -> bytes | None:
        value, until = self._values.get(key, (None, None))
        return None if until is not None and until <= time.monotonic() else value
