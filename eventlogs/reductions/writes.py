"""The one job that writes reductions to the cache: one entry under one key."""

from __future__ import annotations

from typing import Any, NamedTuple

from eventlogs import conf
from eventlogs.aggregates import Aggregate
from eventlogs.caches.backends import GuardedCache
from eventlogs.caches.counters import UNWRITABLE, counters
from eventlogs.exceptions import Unreachable
from eventlogs.reductions.single_flight import Replay


class CacheWrite(NamedTuple):
    """
    Write one entry: calling the job does it.

    The cache keeps an entry of the same or a higher version, so the job may run twice, late or
    never. Only ``replaces``, an entry that was found to be wrong, gives way whatever its version.
    """

    aggregate: type[Aggregate]
    cache: GuardedCache
    key: str
    entry: bytes
    replaces: bytes | None = None
    longest: float | None = None  # seconds to keep it, where EVENTLOGS["CACHE_TIMEOUT"] is longer
    replay: Replay | None = None  # whose waiters the entry is for

    @property
    def token(self) -> tuple[Any, ...]:
        """The jobs of one token stand for one another: the latest is enough."""
        # A job that ends a replay is not replaced by a newer entry: it has a lock to release.
        return self.key, self.replay

    def __call__(self) -> bool:
        """Write the entry, and return whether it was written. Nothing is raised."""
        timeouts = [each for each in (conf.cache_timeout(), self.longest) if each is not None]
        try:
            is_written = self.cache.set(
                self.key,
                self.entry,
                replaces=self.replaces,
                timeout=min(timeouts, default=None),
            )
        except Unreachable:
            counters.count("error", UNWRITABLE, aggregate=self.aggregate)
            return False
        if is_written:
            counters.count("refresh", aggregate=self.aggregate)
        if self.replay is not None:
            self.replay.finish()
        return is_written
