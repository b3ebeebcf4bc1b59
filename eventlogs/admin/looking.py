"""
Looking for events that may be rare, a window at a time, until a page is full.

No index has the events of a type or those with a value in their metadata, so they are looked
for among all. One statement looks through a window, so many events at most; further windows
follow until the page is full, the events are at an end, or time is over. Then the page says how
far it got, and offers to look on from there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from django.db.models import QuerySet

from eventlogs.admin.orders import Key, Order
from eventlogs.models import Event


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin: before a place, after one, around one, at the oldest, or at the newest."""

    before: Key | None = None
    after: Key | None = None
    around: Key | None = None
    oldest: bool = False


@dataclass(slots=True)
class Found:
    """
    Events, the newest first, and where there may be more of them.

    ``newer`` is a place to look behind, ``older`` one to look before; None where nothing is
    left. ``stopped_newer`` and ``stopped_older`` say that time was over there before the page
    was full. ``low`` and ``high`` are the ends of what was looked through, None for an end of
    all events.
    """

    events: list[Event] = field(default_factory=list)
    newer: Key | None = None
    older: Key | None = None
    stopped_newer: bool = False
    stopped_older: bool = False
    low: Key | None = None
    high: Key | None = None


def look(
    every: QuerySet[Any],
    wanted: QuerySet[Any] | None,
    order: Order,
    start: Start,
    *,
    size: int,
    span: int,
    seconds: float,
) -> Found:
    """
    Return a page of the events that are wanted.

    ``every`` are the events that an index leads to. ``wanted`` are those among them that may be
    rare; None: all of them. One statement looks through ``span`` events, and after ``seconds``
    no further one is begun.
    """
    found = Found()
    search = _Search(every, wanted, order, span, seconds)
    if start.around is not None:
        # At least one window on either side, and half of the time for each.
        search.seconds = seconds / 2
        newer, upto, upto_stopped = search.run(start.around, size // 2, up=True)
        older, downto, stopped = search.run(start.around.just_above(), size - len(newer), up=False)
        found.events = newer[::-1] + older
        found.newer, found.stopped_newer, found.high = upto, upto_stopped, upto
        found.older, found.stopped_older, found.low = downto, stopped, downto
    elif start.after is not None or start.oldest:
        events, upto, stopped = search.run(start.after, size, up=True)
        found.events = events[::-1]
        found.newer, found.stopped_newer, found.high = upto, stopped, upto
        if start.after is not None:
            found.low = start.after.just_above()
            found.older = order.key_of(events[0]) if events else found.low
    else:
        events, downto, stopped = search.run(start.before, size, up=False)
        found.events = events
        found.older, found.stopped_older, found.low = downto, stopped, downto
        if start.before is not None:
            found.high = start.before.just_below()
            found.newer = order.key_of(events[0]) if events else found.high
    return found


class _Search:
    """What ``look`` was told, and the search in one direction."""

    def __init__(
        self,
        every: QuerySet[Any],
        wanted: QuerySet[Any] | None,
        order: Order,
        span: int,
        seconds: float,
    ) -> None:
        self._every = every
        self._wanted = wanted
        self._order = order
        self._span = span
        self.seconds = seconds

    def run(
        self, start: Key | None, size: int, *, up: bool
    ) -> tuple[list[Event], Key | None, bool]:
        """
        Return events in the order of the search, where to go on, and whether time was over.

        The place to go on from is that of the last event, or the end of what was looked through.
        """
        if self._wanted is None:
            events = self._some(self._every, start, None, size + 1, up)
            return self._cut(events, start, size)
        until = time.monotonic() + self.seconds
        events = []
        while True:
            edge = self._order.edge(self._beyond(self._every, start, up), self._span, up=up)
            events += self._some(self._wanted, start, edge, size + 1 - len(events), up)
            if len(events) > size:
                return self._cut(events, start, size)
            if edge is None:
                return events, None, False
            if time.monotonic() >= until:
                return events, edge, len(events) < size
            start = edge

    def _cut(
        self, events: list[Event], start: Key | None, size: int
    ) -> tuple[list[Event], Key | None, bool]:
        if len(events) <= size:
            return events, None, False
        return events[:size], self._order.key_of(events[size - 1]) if size else start, False

    def _some(
        self, rows: QuerySet[Any], start: Key | None, edge: Key | None, limit: int, up: bool
    ) -> list[Event]:
        rows = self._beyond(rows, start, up)
        if edge is not None:
            end = edge.just_above() if up else edge.just_below()
            rows = self._beyond(rows, end, not up)
        return list(self._order.sorted(rows, up=up)[:limit])

    def _beyond(self, rows: QuerySet[Any], start: Key | None, up: bool) -> QuerySet[Any]:
        if start is None:
            return rows
        return self._order.above(rows, start) if up else self._order.below(rows, start)
