"""
Single flight: of the readers that miss one log at once, one leads, and the others wait for it.

The leader replays the log. Inside a process, the waiters take its entry from memory. Between
processes, for long logs, the leader holds a lock with a time limit in the cache, and the
waiters look for its entry there.

No answer depends on this, only how often a log is replayed: a waiter proves the entry by the
log as it does any entry, and replays the log itself where the leader takes too long, fails, or
makes an entry that cannot be used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from threading import Event, Lock
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from eventlogs.caches.backends import GuardedCache
from eventlogs.exceptions import Unreachable

T = TypeVar("T")

LOCK: Final = 10.0  # seconds that a lock lasts, unless it is renewed
RENEWAL: Final = 2.0  # seconds after which a leader renews its lock
WRITING: Final = 1.0  # seconds that a lock lasts after the replay, until the entry is written
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1  # seconds between two looks for another process' entry

# The values of a lock.
HELD: Final = b"held"
DECLINED: Final = b"declined"  # nobody holds it, and no entry will come: do not wait


class Replay:
    """A replay of one log by a leader in this process."""

    def __init__(self) -> None:
        self.done = Event()
        self.entry: bytes | None = None  # what the leader made, once it is done
        self.lock: ReplayLock | None = None  # if the leader holds one

    def finish(self) -> None:
        """Release the lock, once the entry is in the cache: its waiters find it there."""
        if self.lock is not None:
            self.lock.release()


class Replays:
    """
    The replays of this process, by the key of their entry.

    A replay is kept for as long as its leader, a waiter, or the job that writes its entry
    refers to it. So a reader who misses after the replay and before the write finds the entry
    here; and where the job is lost (a rollback, a full queue), nothing is left behind.
    """

    def __init__(self) -> None:
        self._reset()
        # A fork has no copy of the leaders' threads, nor of a thread that holds the lock.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = Lock()
        self._replays: WeakValueDictionary[str, Replay] = WeakValueDictionary()

    def join(self, key: str) -> tuple[Replay, bool]:
        """Return the replay under ``key``, and whether the caller leads it."""
        with self._lock:
            replay = self._replays.get(key)
            if replay is not None:
                return replay, False
            replay = self._replays[key] = Replay()
            return replay, True

    def remove(self, key: str, replay: Replay) -> None:
        """Let the next reader lead: ``replay`` has no entry that others can use."""
        with self._lock:
            if self._replays.get(key) is replay:
                del self._replays[key]


replays: Final = Replays()


class ReplayLock:
    """
    The lock in the cache whose holder replays a log for all processes.

    It has a time limit, so that no reader waits for a process that was killed. A holder that is
    slower than the limit may lose it to another one, which costs a further replay. Nothing is
    raised: while the cache cannot be reached, no reader gets the lock.
    """

    limit = LOCK

    def __init__(self, cache: GuardedCache, key: str) -> None:
        self._cache = cache
        self._entry_key = key
        self._key = lock_key(key)
        self.is_held = False

    def acquire(self, *, wrong: bytes | None, timeout: float) -> bytes | None:
        """
        Take the lock, or wait for the entry that its holder writes and return that.

        ``wrong`` is an entry that cannot be used. None: the lock is held by the caller now
        (``is_held``), or no entry came within ``timeout`` seconds, or none will come.
        """
        until = time.monotonic() + timeout
        pause = FIRST_PAUSE
        with suppress(Unreachable):
            while True:
                self.is_held = self._cache.add(self._key, HELD, timeout=self.limit)
                # Read it after add(): a holder writes its entry before it releases the lock.
                entry = self._cache.get(self._entry_key)
                if entry is not None and entry != wrong:
                    if self.is_held:
                        self.release()
                    return entry
                if self.is_held or self._cache.get(self._key) == DECLINED:
                    break
                if time.monotonic() >= until:
                    break
                time.sleep(pause)
                pause = min(pause * 1.5, LONGEST_PAUSE)
        return None

    def renewing(self, pages: Iterator[T]) -> Iterator[T]:
        """Yield ``pages``, and renew the lock meanwhile."""
        renewed = time.monotonic()
        for page in pages:
            yield page
            if time.monotonic() - renewed > RENEWAL:
                renewed = time.monotonic()
                self._set(HELD, self.limit)

    def expect_write(self) -> None:
        """Hold the lock for one more second: the entry is made, and its write may be lost."""
        self._set(HELD, WRITING)

    def decline(self) -> None:
        """Release the lock, and let no reader wait for this log for 10 s: no entry will come."""
        self._set(DECLINED, LOCK)

    def release(self) -> None:
        """Release the lock."""
        self.is_held = False
        with suppress(Unreachable):  # it runs out by itself
            self._cache.delete(self._key)

    def _set(self, value: bytes, timeout: float) -> None:
        with suppress(Unreachable):
            self._cache.replace(self._key, value, timeout=timeout)


def lock_key(key: str) -> str:
    """Return the key of the lock that belongs to the key of an entry."""
    return f"{key}.lock"
