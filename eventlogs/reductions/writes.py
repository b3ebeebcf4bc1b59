"""The one job that writes reductions to the cache: one entry under one key."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, NamedTuple
from uuid import UUID

from eventlogs import conf
from eventlogs.aggregates import Aggregate
from eventlogs.caches.backends import GuardedCache
from eventlogs.caches.counters import UNWRITABLE, counters
from eventlogs.exceptions import Unreachable
from eventlogs.reductions import key_proofs
from eventlogs.reductions.single_flight import Replay

logger = logging.getLogger("eventlogs.reductions")


class CacheWrite(NamedTuple):
    """
    Write one entry: calling the job does it.

    The cache keeps an entry of the same or a higher version, so the job may run twice, late or
    never. Only ``replaces``, an entry that was found to be wrong, gives way whatever its version.

    An entry of personal data is deleted again if one of its keys was destroyed. It is written
    before the keys are looked up, and ``forget`` destroys a key before it deletes entries: so
    one of the two deletes it.
    """

    aggregate: type[Aggregate]
    cache: GuardedCache
    key: str
    entry: bytes
    replaces: bytes | None = None
    longest: float | None = None  # seconds to keep it, where EVENTLOGS["CACHE_TIMEOUT"] is longer
    replay: Replay | None = None  # whose waiters the entry is for
    keys: Collection[UUID] = ()  # of the subjects whose personal data the entry has

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
        if is_written and self.keys and not self._has_its_keys():
            return self._take_back()
        if is_written:
            counters.count("refresh", aggregate=self.aggregate)
        if self.replay is not None:
            self.replay.finish()
        return is_written

    def _has_its_keys(self) -> bool:
        try:
            return key_proofs.are_there(self.keys)
        except Exception as error:  # of a database, or a key store of the project's own
            logger.warning("An entry was taken back, no key was found: %s", type(error).__name__)
            return False

    def _take_back(self) -> bool:
        if self.replay is not None:
            self.replay.finish()
        try:
            self.cache.delete(self.key)
        except Unreachable:
            counters.count("error", UNWRITABLE, aggregate=self.aggregate)
        return False
