"""
Snapshots: entries of earlier versions of a long log, cached for an hour.

The cache holds a log's latest reduction, which is of no use for an earlier version. So a fold
that passes version 1,000, 2,000, 4,000, … of a log returns a snapshot of each to write, and a
later fold, of the next page say, begins at the nearest one.

Snapshots are entries like any other: signed, proven by the log (``eventlogs.caches.entries``),
and written by the same job (``eventlogs.reductions.writes``), which the caller submits to a
refresher. A wrong one is not used. Their keys end with the version, a multiple of 1,000 times
a power of two. So one look at the cache asks for all that can be near, and for some that are
earlier: at most 2 keys for each doubling of the log's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, Generic, TypeVar
from uuid import UUID

from eventlogs.aggregates import Aggregate
from eventlogs.caches.backends import BaseReductionCache
from eventlogs.events import used_keys
from eventlogs.exceptions import Unreachable
from eventlogs.ids import LogId
from eventlogs.reductions.reader import Folded, ReductionReader
from eventlogs.reductions.timeline import Unavailable, replay
from eventlogs.reductions.writes import CacheWrite
from eventlogs.stores.base import BaseStore
from eventlogs.values import Reduction

A = TypeVar("A", bound=Aggregate)

INTERVAL: Final = 1_000  # events between two snapshots, at least
MOST: Final = 64  # snapshots of one fold
BYTES: Final = 4 << 20  # of all snapshots of one fold
TIMEOUT: Final = 3_600.0  # seconds, or EVENTLOGS["CACHE_TIMEOUT"] where that is shorter


class Snapshots(Generic[A]):
    """The snapshots of the logs of one aggregate class, kept in one database."""

    def __init__(
        self,
        aggregate: type[A],
        using: str,
        *,
        store: BaseStore | None = None,
        cache: str | BaseReductionCache | None = None,
    ) -> None:
        self._reader = ReductionReader(aggregate, using=using, store=store, cache=cache)
        self._wrong: dict[str, bytes] = {}  # what was found in the place of a snapshot
        self._keys: dict[LogId, set[UUID]] = {}  # that were used for what was found

    def nearest(self, log_id: LogId, store: BaseStore, *, upto: int) -> Reduction[A] | None:
        """
        Return the latest reduction that is cached, of at most version ``upto``.

        None where the cache has none, or the log does not prove it. Nothing is folded, and
        nothing that happens to the cache is an error. That takes two looks at the cache at
        most, and two at the database.
        """
        with used_keys.Noting() as used:
            latest = self._reader.cached(log_id, store, upto=upto)
            is_short = not self._reader.is_caching or upto < INTERVAL
            nearest = None if is_short else self._nearest(log_id, store, upto)
        if used:
            self._keys.setdefault(log_id, set()).update(used)
        if latest is None or (nearest is not None and nearest.version > latest.version):
            return nearest
        return latest

    def fold(
        self, start: Reduction[A], store: BaseStore, *, version: int
    ) -> tuple[Reduction[A] | Unavailable, list[CacheWrite]]:
        """
        Fold a log from ``start`` to ``version``; return the state, and the snapshots to write.

        ``start.aggregate`` is mutated in place. Where an event cannot be folded, the state is
        Unavailable. Memory is that of one page, and of at most 4 MiB of snapshots and one more.
        """
        here, writes = start, list[CacheWrite]()
        versions = _versions(start.version, version) if self._reader.is_caching else set()
        left, is_covered = BYTES, True
        keys = set(self._keys.get(start.log_id, ()))
        for first, end in pairwise(_page_ends(start.version, version)):
            rows = store.events(start.log_id, start=first, limit=end - first)
            with used_keys.Noting() as used:
                state = replay(here, rows)
            keys |= used
            if isinstance(state, Unavailable):
                return state, writes
            here = state
            is_covered = is_covered and self._reader.codec.covers(rows)
            if end in versions and end == here.version and left > 0 and is_covered:
                entry = self._reader.entry_of(Folded(here, rows[-1], keys=frozenset(keys)))
                left -= BYTES if entry is None else len(entry)
                if entry is not None:
                    writes.append(self._write(here, entry, frozenset(keys)))
        return here, writes

    def _nearest(self, log_id: LogId, store: BaseStore, upto: int) -> Reduction[A] | None:
        keys = {self._key(log_id, version): version for version in _candidates(upto)}
        try:
            found = self._reader.cache.get_many(keys)
        except Unreachable:
            return None
        for key in sorted(found, key=lambda key: -keys[key]):
            reduction = self._reader.proven(found[key], log_id, store, upto=keys[key])
            if reduction is not None and reduction.version == keys[key]:
                return reduction
            self._wrong[key] = found[key]
        return None

    def _write(self, here: Reduction[A], entry: bytes, keys: frozenset[UUID]) -> CacheWrite:
        reader, key = self._reader, self._key(here.log_id, here.version)
        return CacheWrite(
            reader.aggregate,
            reader.cache,
            key,
            entry,
            self._wrong.get(key),
            longest=TIMEOUT,
            keys=keys,
        )

    def _key(self, log_id: LogId, version: int) -> str:
        return f"{self._reader.key(log_id)}@{version}"


def _page_ends(start: int, version: int) -> Iterator[int]:
    """Yield where the pages of a fold end: each 1,000 events, and at its own ends."""
    yield start
    yield from range(start // INTERVAL * INTERVAL + INTERVAL, version, INTERVAL)
    if version > start:
        yield version


def _versions(start: int, version: int) -> set[int]:
    """Return the versions of the snapshots of a fold: evenly, and the last one possible."""
    step = INTERVAL
    while (version - start) // step > MOST:
        step *= 2
    last = version // INTERVAL * INTERVAL
    return {*range(start // step * step + step, version + 1, step), last} - {0}


def _candidates(upto: int) -> Iterator[int]:
    """
    Yield the versions at which a snapshot may be near, up to a version.

    They are the nearest multiple of each step; and each step itself, in case that no fold has
    come as far as the nearest multiple.
    """
    step = INTERVAL
    while step <= upto:
        yield upto // step * step
        yield step
        step *= 2
