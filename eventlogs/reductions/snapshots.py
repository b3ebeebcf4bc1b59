"""
Waypoints: states along a long log, kept for an hour by whoever travelled through it.

The cache holds a log's latest reduction, which is of no use for what was before it. So a fold
that passes version 1,000, 2,000, 4,000, … of a log leaves entries there, and whoever comes
after, or goes on to the next page, folds from the nearest one.

Waypoints are entries like any other, signed and proven by the log (see
``eventlogs.caches.entries``): a wrong one is not used. They are written under the version that
they are of, at multiples of 1,000 times a power of two, so one look at the cache asks for all
that can be near, and for some that are farther: at most 2 keys for each doubling of the log's
length.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, Generic, TypeVar

from eventlogs import conf
from eventlogs.aggregates import Aggregate
from eventlogs.caches.backends import BaseReductionCache, Unreachable
from eventlogs.caches.entries import EntryCodec, Untrusted
from eventlogs.events.codec import EventReader
from eventlogs.ids import LogId
from eventlogs.reductions.reader import Reduced, Reducer
from eventlogs.reductions.timeline import Unavailable, replay
from eventlogs.stores.base import BaseStore
from eventlogs.values import Reduction, StoredEvent

A = TypeVar("A", bound=Aggregate)

GRID: Final = 1_000  # events between two waypoints, at least
MOST: Final = 64  # waypoints that one walk leaves
BYTES: Final = 4 << 20  # of all entries that one walk leaves
TIMEOUT: Final = 3_600.0  # seconds, or EVENTLOGS["CACHE_TIMEOUT"] where that is shorter


class Waypoints(Generic[A]):
    """The ways through the logs of one aggregate class, kept in one database."""

    def __init__(
        self, aggregate: type[A], using: str, *, cache: str | BaseReductionCache | None = None
    ) -> None:
        self._codec = EntryCodec(aggregate, using)
        self._reducer = Reducer(aggregate, EventReader(aggregate.event_types), using, cache=cache)

    def nearest(self, log_id: LogId, store: BaseStore, *, upto: int) -> Reduction[A] | None:
        """
        Return the latest state that is to be had without folding, of at most version ``upto``.

        None where the cache has none, or the log does not prove it. Nothing that happens to
        the cache is an error. Two looks at the cache at most, and two at the database.
        """
        latest = self._reducer.cached(log_id, store, upto=upto)
        if not self._reducer.is_caching or upto < GRID:
            return latest
        nearest = self._nearest(log_id, store, upto)
        if latest is None or (nearest is not None and nearest.version > latest.version):
            return nearest
        return latest

    def walk(
        self, start: Reduction[A], store: BaseStore, *, version: int
    ) -> Reduction[A] | Unavailable:
        """
        Fold a log from ``start``, whose aggregate is used up, to ``version``; leave waypoints.

        Where an event cannot be folded, return Unavailable. Memory is that of one page.
        """
        here = start
        marks = _marks(start.version, version) if self._reducer.is_caching else set()
        left, is_covered = BYTES, True
        for first, end in pairwise(_legs(start.version, version)):
            rows = store.events(start.log_id, start=first, limit=end - first)
            state = replay(here, rows)
            if isinstance(state, Unavailable):
                return state
            here = state
            is_covered = is_covered and self._reducer.covers(rows)
            if end in marks and end == here.version and left > 0 and is_covered:
                left -= self._leave(here, rows[-1])
        return here

    def _nearest(self, log_id: LogId, store: BaseStore, upto: int) -> Reduction[A] | None:
        keys = {self._key(log_id, mark): mark for mark in _candidates(upto)}
        try:
            found = self._reducer.cache.get_many(keys)
        except Unreachable:
            return None
        for key in sorted(found, key=lambda key: -keys[key]):
            try:
                entry = self._codec.decode(found[key], log_id)
            except Untrusted:
                continue
            head = entry.head
            rows = store.since(log_id, start=head.version - 1, limit=1)
            if head.version == keys[key] and entry.is_proven_by(rows[0] if rows else None):
                return Reduction(
                    log_id, head.version, entry.aggregate, head.reduced_at, head.position
                )
        return None

    def _leave(self, here: Reduction[A], last: StoredEvent) -> int:
        """Keep a waypoint, and return its size; all is said to be taken where none can be."""
        entry = self._reducer.entry_of(Reduced(here, last, is_new=True))
        if entry is None:
            return BYTES
        timeout = min(TIMEOUT, conf.cache_timeout() or TIMEOUT)
        try:
            self._reducer.cache.replace(
                self._key(here.log_id, here.version), entry, timeout=timeout
            )
        except Unreachable:
            return BYTES
        return len(entry)

    def _key(self, log_id: LogId, version: int) -> str:
        return f"{self._codec.key(log_id)}@{version}"


def _legs(start: int, version: int) -> Iterator[int]:
    """Yield where the pages of a walk end: each 1,000 events, and at its own ends."""
    yield start
    yield from range(start // GRID * GRID + GRID, version, GRID)
    if version > start:
        yield version


def _marks(start: int, version: int) -> set[int]:
    """Return where a walk leaves waypoints: evenly, and the last one that there can be."""
    step = GRID
    while (version - start) // step > MOST:
        step *= 2
    return {*range(start // step * step + step, version + 1, step), version // GRID * GRID} - {0}


def _candidates(upto: int) -> Iterator[int]:
    """
    Yield the versions at which a waypoint may be near, up to a version.

    The nearest multiple of each step; and, where nobody has been so far yet, each step itself.
    """
    step = GRID
    while step <= upto:
        yield upto // step * step
        yield step
        step *= 2
