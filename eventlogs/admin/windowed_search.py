"""
Windowed search: find events that may be rare, one window of all events after another.

No index leads to the events of a type, or to those with a value in their metadata, so all events
have to be searched for them. One statement searches one window, which has a limited number of
events. Further windows follow until the page is full, all events are searched, or the time limit
is reached. The page then shows which events were searched, and links to a search of the rest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from django.db.models import QuerySet

from eventlogs.admin.sort_orders import Key, SortOrder
from eventlogs.models import Event


@dataclass(frozen=True, slots=True)
class SearchStart:
    """The start of a search: before, after or around a key, or at the oldest or newest event."""

    before: Key | None = None
    after: Key | None = None
    around: Key | None = None
    oldest: bool = False


@dataclass(slots=True)
class SearchResult:
    """
    The result of a search: events, newest first, and the keys from which to continue.

    Newer events may exist after the key ``newer``, older ones before ``older``; None: there are
    none. ``stopped_newer`` and ``stopped_older`` are True if the time limit ended the search in
    that direction before the page was full. All events from ``low`` to ``high`` were searched;
    None stands for the oldest or the newest of all.
    """

    events: list[Event] = field(default_factory=list)
    newer: Key | None = None
    older: Key | None = None
    stopped_newer: bool = False
    stopped_older: bool = False
    low: Key | None = None
    high: Key | None = None


def search_windows(
    every: QuerySet[Any],
    wanted: QuerySet[Any] | None,
    order: SortOrder,
    start: SearchStart,
    *,
    size: int,
    span: int,
    seconds: float,
) -> SearchResult:
    """
    Return a page of the events that are wanted.

    ``every`` are the events that an index leads to, ``wanted`` those of them to find, which may be
    rare (None: all). ``size`` is the number of events of the page. One statement searches ``span``
    events, and no further statement begins after ``seconds``.
    """
    found = SearchResult()
    search = _Search(every, wanted, order, span, seconds)
    if start.around is not None:
        # Each side has half of the time, and at least one window.
        search.seconds = seconds / 2
        newer, upto, upto_stopped = search.run(start.around, size // 2, up=True)
        older, downto, stopped = search.run(start.around.next(up=True), size - len(newer), up=False)
        found.events = newer[::-1] + older
        found.newer, found.stopped_newer, found.high = upto, upto_stopped, upto
        found.older, found.stopped_older, found.low = downto, stopped, downto
    elif start.after is not None or start.oldest:
        events, upto, stopped = search.run(start.after, size, up=True)
        found.events = events[::-1]
        found.newer, found.stopped_newer, found.high = upto, stopped, upto
        if start.after is not None:
            found.low = start.after.next(up=True)
            found.older = order.key_of(events[0]) if events else found.low
    else:
        events, downto, stopped = search.run(start.before, size, up=False)
        found.events = events
        found.older, found.stopped_older, found.low = downto, stopped, downto
        if start.before is not None:
            found.high = start.before.next(up=False)
            found.newer = order.key_of(events[0]) if events else found.high
    return found


class _Search:
    """A search in one direction, with the arguments of ``search_windows``."""

    def __init__(
        self,
        every: QuerySet[Any],
        wanted: QuerySet[Any] | None,
        order: SortOrder,
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
        Return events in search order, the key to continue from, and whether time ran out.

        That key belongs to the last event, or to the end of the windows that were searched.
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
            rows = self._beyond(rows, edge.next(up=up), not up)
        return list(self._order.sorted(rows, up=up)[:limit])

    def _beyond(self, rows: QuerySet[Any], start: Key | None, up: bool) -> QuerySet[Any]:
        return rows if start is None else self._order.beyond(rows, start, up=up)
