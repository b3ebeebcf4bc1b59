"""
Sweeps: refresh the cached reductions that are missing or behind, because a message got lost.

A sweep looks at the logs that have had events since the sweep before, or at all logs. It asks
the cache for many entries at once, so that logs whose reductions are up to date cost next to
nothing. A log whose reduction the caching policy declined is marked in the cache with its
version, and not replayed again by the next sweeps (for two days) until it has newer events.
There is no mark where the policy failed, or depends on the time: the next sweep asks it again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import add
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import router

from eventlogs.aggregates import aggregates
from eventlogs.caches.backends import GuardedCache, cache_for
from eventlogs.exceptions import FeedUnavailable, Unreachable
from eventlogs.feed import scans
from eventlogs.feed.reader import Feed
from eventlogs.ids import LogId
from eventlogs.models import Event, EventLog
from eventlogs.reductions.reader import ReductionReader, failed

logger = logging.getLogger("eventlogs.reductions")

EVENTS_AT_ONCE: Final = 5_000
LOGS_AT_ONCE: Final = 500
MARK_TIMEOUT: Final = 30 * 86_400.0  # seconds: after a month without sweeps, all logs are due


class Swept(NamedTuple):
    """The counts of a sweep: logs looked at, reductions refreshed, refreshes that failed."""

    logs: int
    refreshed: int
    failed: int


def sweep(*, using: str | None = None, cache: str | None = None, full: bool = False) -> Swept:
    """
    Refresh the cached reductions that are missing or behind.

    ``using`` is a database alias, by default the one that logs are written to; ``cache`` an
    alias in CACHES, by default that of the EVENTLOGS setting. A sweep starts at the position that
    was settled at the last sweep; ``full`` starts at the first log, as does a sweep that finds no
    mark of another, and one in a database whose feed is unavailable. Memory stays constant.

    Raise Unreachable where the cache cannot be reached; what was refreshed so far stays.
    """
    alias = using or router.db_for_write(EventLog)
    kept = cache_for(cache)
    readers: dict[str, list[ReductionReader[Any]]] = {}
    for cls in aggregates:
        reader = ReductionReader(cls, using=alias, cache=cache)
        if reader.is_caching:
            readers.setdefault(cls.log_type, []).append(reader)
    try:
        settled = Feed(using=alias).settled()
    except FeedUnavailable:
        settled = None
    mark = _mark(kept, alias)
    logs: Iterator[tuple[LogId, int]]
    if full or mark is None or settled is None or settled < mark:
        logs = ((row.log_id, row.version) for page in scans.logs_by_id(alias) for row in page)
    else:
        logs = _logs_since(alias, mark)
    done = Swept(0, 0, 0)
    while batch := list(islice(logs, LOGS_AT_ONCE)):
        done = Swept(*map(add, done, _sweep_batch(batch, readers)))
    if settled is not None:
        kept.replace(_mark_key(alias), b"%d" % settled, timeout=MARK_TIMEOUT)
    return done


def _sweep_batch(
    logs: list[tuple[LogId, int]], readers: dict[str, list[ReductionReader[Any]]]
) -> Swept:
    refreshed = failures = 0
    for log_type in {log_id.log_type for log_id, _ in logs}:
        for reader in readers.get(log_type, ()):
            versions = {log_id: version for log_id, version in logs if log_id.log_type == log_type}
            cached = reader.versions(versions)
            due = {
                log_id: version
                for log_id, version in versions.items()
                if cached.get(log_id) != version
            }
            for log_id in due.keys() - reader.declined(due):
                try:
                    refreshed += reader.refresh(log_id)
                except Unreachable:
                    raise
                except (Exception, SystemExit) as error:  # the other logs are refreshed
                    failed(reader.aggregate, error)
                    failures += 1
    return Swept(len(logs), refreshed, failures)


def _logs_since(alias: str, position: int) -> Iterator[tuple[LogId, int]]:
    """Yield the logs of events after ``position``, and their versions; some of them twice."""
    while True:
        page = list(
            Event.objects.using(alias)
            .filter(position__gt=position)
            .order_by("position")
            .values_list("position", "log_id")[:EVENTS_AT_ONCE]
        )
        yield from _versions(alias, {log for _, log in page})
        if len(page) < EVENTS_AT_ONCE:
            return
        position, _ = page[-1]


def _versions(alias: str, uuids: Iterable[UUID]) -> Iterator[tuple[LogId, int]]:
    ids = iter(uuids)
    while some := list(islice(ids, LOGS_AT_ONCE)):
        rows = EventLog.objects.using(alias).filter(pk__in=some)
        for uuid, log_type, version in rows.values_list("pk", "log_type", "version"):
            yield LogId.stored(log_type, uuid), version


def _mark(cache: GuardedCache, alias: str) -> int | None:
    """Return where the feed was settled at the last sweep, or None."""
    raw = cache.get(_mark_key(alias))
    return int(raw) if raw is not None and raw.isdigit() else None


def _mark_key(alias: str) -> str:
    return f"eventlogs.sweep.{alias}"
