"""
The feed: the events of all logs of a database, in the order of their positions.

It skips nothing: what it hands out is *settled*, which means that no event at or below that
position can still appear. How that is known is the business of ``feed/sources.py``.

Store the position of the last event you have read, best in the transaction that stores what you
made of it, and pass it as ``after`` the next time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from threading import Event as Flag
from typing import Final, NamedTuple, overload

from asgiref.sync import sync_to_async
from django.db import router

from eventlogs import conf
from eventlogs.conf import MAX_PAGE_SIZE
from eventlogs.events.codec import EventReader
from eventlogs.events.registry import registry
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.sources import (
    MAX_PARTITIONS,
    FeedHolder,
    FeedQuery,
    FeedSource,
    UnknownTypes,
    feed_source_for,
)
from eventlogs.models import Event
from eventlogs.values import EventRecord, StoredEvent

FOLLOW_PAGE: Final = 1_000  # events that are read at once by follow()
SHORTEST_PAUSE: Final = 0.02  # seconds between two looks at a feed that has just moved
LONGEST_PAUSE: Final = 1.0  # seconds, at a feed that has not moved for a while
PATIENCE: Final = 1.25  # times as long, each time that nothing has come
NAP: Final = 0.1  # seconds between two questions to a function whether to stop

Stop = Flag | Callable[[], bool]


class FeedRows(NamedTuple):
    """What ``Feed.read_rows`` answers: stored events, and where to go on."""

    rows: list[StoredEvent]
    next_after: int
    more: bool
    settled: int


class Pace:
    """How long to wait between two looks at the feed."""

    def __init__(self) -> None:
        self._next = SHORTEST_PAUSE

    def pause(self, found: FeedRows, after: int) -> float:
        """Return the seconds to wait after a read from ``after`` on; 0 where there is more."""
        if found.next_after > after:
            self._next = SHORTEST_PAUSE
        if found.more:
            return 0
        pause, self._next = self._next, min(self._next * PATIENCE, LONGEST_PAUSE)
        return pause


class FeedPage(Sequence[EventRecord]):
    """
    One page of the feed: a sequence of records.

    ``next_after`` is what to pass as ``after`` for the page behind this one. It is always the
    position of an event (or the ``after`` of this page): the last one here, or, where there is
    no more, the last settled one of any type. ``more`` says whether there was something settled
    behind this page when it was read; ``settled`` how far that goes.
    """

    __slots__ = ("_records", "more", "next_after", "settled")

    def __init__(
        self, records: Iterable[EventRecord], *, next_after: int, more: bool, settled: int
    ) -> None:
        self._records = tuple(records)
        self.next_after = next_after
        self.more = more
        self.settled = settled

    @overload
    def __getitem__(self, at: int) -> EventRecord: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[EventRecord]: ...
    def __getitem__(self, at: int | slice) -> EventRecord | Sequence[EventRecord]:
        return self._records[at]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[EventRecord]:
        return iter(self._records)

    def __repr__(self) -> str:
        return f"<FeedPage: {len(self)} events, next_after={self.next_after}, more={self.more}>"


class Feed:
    """The events of all logs of one database, in the order of their positions."""

    def __init__(self, using: str | None = None) -> None:
        """
        Read the feed of the database alias ``using``, by default the one events are written to.

        It has to be the primary: a replica does not know what is settled.
        """
        self._using = using
        self._reader = EventReader()

    @property
    def using(self) -> str:
        """The database alias that is read."""
        return self._using or router.db_for_write(Event)

    def read(
        self,
        after: int = 0,
        limit: int | None = None,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        decode: bool = True,
    ) -> FeedPage:
        """
        Return the settled events behind the position ``after``: a page of at most ``limit``.

        ``limit`` is 1 to 10,000 events, and defaults to ``EVENTLOGS["PAGE_SIZE"]``. ``types``
        are event types, by name or class, under all their names; ``log_types`` names. None
        is all of them. ``decode=False`` gives the raw JSON value as ``record.event``.

        A page is full unless the feed ends. Inside of a READ COMMITTED transaction the feed
        holds its own events as well, like any query; keep what is made of them, and the
        position, in the same transaction.

        Raise FeedUnavailable where events could be skipped, ValueError for a negative position
        or a limit out of bounds, TypeError for a class that is no event's, and
        UnknownEventType or UndecodableEvent where an event cannot be decoded.
        """
        limit = _check(after, conf.page_size() if limit is None else limit)
        names, log_types = _names(types), _listed(log_types)
        rows: list[StoredEvent] = []
        next_after = after
        while True:
            found = self._read(next_after, limit - len(rows), names, log_types, None)
            rows += found.rows
            next_after = found.next_after
            if len(rows) == limit or not found.more:
                break
        records = self._reader.records(rows, decode=decode)
        return FeedPage(records, next_after=next_after, more=found.more, settled=found.settled)

    def settled(self) -> int:
        """
        Return the position of the last event that is settled; 0 where there is none.

        No event at or below it can still appear. Raise FeedUnavailable as ``read`` does.
        """
        source = self._source()
        return source.last(source.watermark().settled)

    def follow(
        self,
        after: int = 0,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        stop: Stop | None = None,
        decode: bool = True,
    ) -> Iterator[EventRecord]:
        """
        Yield the events behind the position ``after``, and wait for further ones, for good.

        A feed that moves is looked at every 20 ms, one that rests ever more rarely, down to
        once a second. ``stop`` ends it: a ``threading.Event`` at once, a function that answers
        True within 0.1 seconds; with neither, it blocks until the generator is closed.

        No transaction is open while it waits, unless the caller has one. The other arguments
        and errors are those of ``read``. A lost connection is raised; go on from the last event.
        """
        _check(after, FOLLOW_PAGE)
        return self._follow(after, _names(types), _listed(log_types), stop, decode)

    def _follow(
        self,
        after: int,
        names: list[str] | None,
        log_types: list[str] | None,
        stop: Stop | None,
        decode: bool,
    ) -> Iterator[EventRecord]:
        pace = Pace()
        while not _stopped(stop):
            found = self._read(after, FOLLOW_PAGE, names, log_types, None)
            for record in self._reader.records(found.rows, decode=decode):
                yield record
                if _stopped(stop):
                    return
            pause = pace.pause(found, after)
            after = found.next_after
            _wait(stop, pause)

    def holding_back(self) -> list[FeedHolder]:
        """
        Return the open transactions that hold the feed back, the first one first.

        Each has its ``position`` (events above it wait for its end), the ``pid`` of its server
        process, its ``age``, and its last ``query`` where this database user may see it. A
        transaction that is prepared has no pid but the name it was ``prepared_as``. On SQLite
        there are none: events appear in the order of their positions.
        """
        return self._source().holding_back()

    def read_rows(
        self,
        after: int,
        *,
        limit: int,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        partition: tuple[int, int] | None = None,
        unknown: UnknownTypes | None = None,
    ) -> FeedRows:
        """
        Return settled rows as the store has them, for a runner that shares the feed with others.

        ``unknown`` says which unknown types are wanted beside ``types``.
        ``partition`` is ``(number, of)``: only the logs of that part, 0 to ``of - 1``, of at
        most 65,536. A log is in the same part on every database, see ``partition_of``. A call
        looks through a bounded number of positions, so there may be fewer rows than ``limit``,
        or none, and ``more`` is True all the same: go on from ``next_after``.

        Errors are those of ``read``; rows are decoded by ``records``.
        """
        limit = _check(after, limit)
        if partition is not None:
            number, of = partition
            if not 0 <= number < of <= MAX_PARTITIONS:
                raise ValueError(
                    f"partition must be (number, of), with 0 <= number < of <= {MAX_PARTITIONS}."
                )
        return self._read(after, limit, _names(types), _listed(log_types), partition, unknown)

    def records(self, events: Iterable[StoredEvent]) -> Iterator[EventRecord]:
        """Yield the records of events; raise UnknownEventType or UndecodableEvent."""
        return self._reader.records(events)

    def _read(
        self,
        after: int,
        limit: int,
        names: list[str] | None,
        log_types: list[str] | None,
        partition: tuple[int, int] | None,
        unknown: UnknownTypes | None = None,
    ) -> FeedRows:
        source = self._source()
        mark = source.watermark()
        if after > mark.given_out:
            raise FeedUnavailable("ahead", using=self.using)
        # A position that was given out and never used may, after a crash, be given out again:
        # nobody is to go on from there, so the feed ends at its last event.
        last = source.last(mark.settled)
        if after >= last:
            return FeedRows([], after, False, last)
        query = FeedQuery(after, last, limit, names, log_types, partition, unknown)
        rows, reached = source.events(query)
        if reached < last and not (rows and rows[-1].position == reached):
            reached = max(after, source.last(reached))
        return FeedRows(rows, reached, reached < last, last)

    def _source(self) -> FeedSource:
        return feed_source_for(self.using)

    async def aread(
        self,
        after: int = 0,
        limit: int | None = None,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        decode: bool = True,
    ) -> FeedPage:
        """Read a page from async code; see ``read``."""
        return await sync_to_async(self.read, thread_sensitive=True)(
            after, limit, types, log_types, decode
        )

    async def afollow(
        self,
        after: int = 0,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        stop: Stop | None = None,
        decode: bool = True,
    ) -> AsyncIterator[EventRecord]:
        """Yield events from async code, waiting without a thread; see ``follow``."""
        _check(after, FOLLOW_PAGE)
        names, log_types = _names(types), _listed(log_types)
        pace = Pace()
        while not _stopped(stop):
            found = await sync_to_async(self._read, thread_sensitive=True)(
                after, FOLLOW_PAGE, names, log_types, None
            )
            for record in self._reader.records(found.rows, decode=decode):
                yield record
                if _stopped(stop):
                    return
            pause = pace.pause(found, after)
            after = found.next_after
            while pause > 0 and not _stopped(stop):
                await asyncio.sleep(min(pause, NAP))
                pause -= NAP

    async def asettled(self) -> int:
        """Return the position of the last settled event from async code; see ``settled``."""
        return await sync_to_async(self.settled, thread_sensitive=True)()

    async def aholding_back(self) -> list[FeedHolder]:
        """Return who holds the feed back from async code; see ``holding_back``."""
        return await sync_to_async(self.holding_back, thread_sensitive=True)()


def _check(after: int, limit: int) -> int:
    if after < 0:
        raise ValueError("after is a position: 0 (the beginning) or more.")
    if not 1 <= limit <= MAX_PAGE_SIZE:
        raise ValueError(f"limit must be from 1 to {MAX_PAGE_SIZE} events.")
    return limit


def _names(types: Iterable[str | type] | None) -> list[str] | None:
    if types is None:
        return None
    return registry.names_of([types] if isinstance(types, str | type) else types)


def _listed(log_types: Iterable[str] | None) -> list[str] | None:
    if log_types is None:
        return None
    return [log_types] if isinstance(log_types, str) else list(log_types)


def _stopped(stop: Stop | None) -> bool:
    if stop is None:
        return False
    return stop.is_set() if isinstance(stop, Flag) else stop()


def _wait(stop: Stop | None, seconds: float) -> None:
    if isinstance(stop, Flag):
        stop.wait(seconds)
        return
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not _stopped(stop):
        time.sleep(left if stop is None else min(left, NAP))
