"""
The feed: the events of all logs of a database, in the order of their positions.

It skips nothing: it returns *settled* events only, which means that no new event can appear at
or below their positions. ``feed/sources.py`` finds out which ones are settled.

Store the position of the last event that you have read, best in the transaction that stores
what you made of it, and pass it as ``after`` the next time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from functools import partial
from threading import Event as Flag
from typing import Final, Generic, NamedTuple

from asgiref.sync import sync_to_async
from django.db import router

from eventlogs import conf
from eventlogs.conf import MAX_PAGE_SIZE, MAX_POSITION
from eventlogs.events.codec import EventReader
from eventlogs.events.registry import registry
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.sources import (
    MAX_PARTITIONS,
    E,
    FeedHolder,
    FeedQuery,
    FeedSource,
    UnknownTypes,
    feed_source_for,
)
from eventlogs.models import Event
from eventlogs.pages import RecordPage
from eventlogs.utils.bounds import check_int
from eventlogs.utils.twins import AsyncIteratorTwin, AsyncTwin
from eventlogs.values import EventRecord, StoredEvent

FOLLOW_PAGE: Final = 1_000  # events that follow() reads at once
SHORTEST_PAUSE: Final = 0.02  # seconds between two reads while events come
LONGEST_PAUSE: Final = 1.0  # seconds between two reads when none have come for a while
PATIENCE: Final = 1.25  # the factor by which a pause grows after a read without events
NAP: Final = 0.1  # seconds between two calls of a stop function

Stop = Flag | Callable[[], bool]


class FoundPage(NamedTuple, Generic[E]):
    """Events of the feed, stored ones or records, and the position to continue from."""

    events: list[E]
    next_after: int
    more: bool
    settled: int


StoredPage = FoundPage[StoredEvent]
"""What ``Feed.read_stored`` returns."""


class Pace:
    """The pauses between two reads of the feed: short while events come, longer without."""

    def __init__(self) -> None:
        self._next = SHORTEST_PAUSE

    def pause(self, found: StoredPage, after: int) -> float:
        """Return the seconds to wait after a read from ``after`` on; 0 if there are more events."""
        if found.next_after > after:
            self._next = SHORTEST_PAUSE
        if found.more:
            return 0
        pause, self._next = self._next, min(self._next * PATIENCE, LONGEST_PAUSE)
        return pause


class FeedPage(RecordPage):
    """
    One page of the feed: a sequence of records.

    Pass ``next_after`` as ``after`` to read the next page. It is always the position of an event
    (or this page's own ``after``): of the last event here, or, on the last page, of the last
    settled event of any type. ``more`` is True if there were settled events after this page when
    it was read; ``settled`` is the position of the last settled event.
    """

    __slots__ = ("more", "next_after", "settled")

    def __init__(
        self, records: Iterable[EventRecord], *, next_after: int, more: bool, settled: int
    ) -> None:
        super().__init__(records)
        self.next_after = next_after
        self.more = more
        self.settled = settled

    def __repr__(self) -> str:
        return f"<FeedPage: {len(self)} events, next_after={self.next_after}, more={self.more}>"


class Following(Iterator[EventRecord]):
    """
    The events after a position, without an end; see ``Feed.follow``.

    In an ``async for`` loop it reads in the thread of the database connections, and waits in the
    event loop.
    """

    def __init__(
        self,
        read: Callable[[int], StoredPage],
        decode: Callable[[list[StoredEvent]], Iterator[EventRecord]],
        *,
        after: int,
        stop: Stop | None,
    ) -> None:
        self._read = read
        self._decode = decode
        self._after = after
        self._stop = stop
        self._pace = Pace()
        self._events = self._follow()

    def __next__(self) -> EventRecord:
        return next(self._events)

    def close(self) -> None:
        """End the iteration."""
        self._events.close()

    def _follow(self) -> Generator[EventRecord, None, None]:
        while not _stopped(self._stop):
            found = self._read(self._after)
            for record in self._decode(found.events):
                yield record
                if _stopped(self._stop):
                    return
            _wait(self._stop, self._advance(found))

    async def __aiter__(self) -> AsyncIterator[EventRecord]:
        read = sync_to_async(self._read, thread_sensitive=True)
        while not _stopped(self._stop):
            found = await read(self._after)
            for record in self._decode(found.events):
                yield record
                if _stopped(self._stop):
                    return
            pause = self._advance(found)
            while pause > 0 and not _stopped(self._stop):
                await asyncio.sleep(min(pause, NAP))
                pause -= NAP

    def _advance(self, found: StoredPage) -> float:
        """Continue after a page, and return the seconds to wait before the next one."""
        pause = self._pace.pause(found, self._after)
        self._after = found.next_after
        return pause


class Feed:
    """The events of all logs of one database, in the order of their positions."""

    def __init__(self, *, using: str | None = None) -> None:
        """
        Read the feed of the database alias ``using``, by default the alias that events go to.

        It must be the primary: a replica cannot tell which positions are settled.
        """
        self._using = using
        self._reader = EventReader()

    @property
    def using(self) -> str:
        """The database alias that is read."""
        return self._using or router.db_for_write(Event)

    def read(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        decode: bool = True,
    ) -> FeedPage:
        """
        Return one page of settled events, those with positions greater than ``after``.

        ``limit`` is 1 to 10,000 events, and defaults to ``EVENTLOGS["PAGE_SIZE"]``. ``types``
        are event types, by name or class, and include their aliases; ``log_types`` are names of
        log types. None stands for all of them. With ``decode=False``, ``record.event`` is the raw
        JSON value.

        A page holds ``limit`` events unless the feed ends. Inside a READ COMMITTED transaction
        the feed includes the transaction's own events, as any query does; store what you make of
        them, and the position, in the same transaction.

        Raise FeedUnavailable where events could be skipped, ValueError for a position or a limit
        out of range, TypeError for a class that is not an event class, and UnknownEventType or
        UndecodableEvent where an event cannot be decoded. Reading changes nothing.
        """
        limit = _check(after, conf.page_size() if limit is None else limit)
        names, log_types = _names(types), _listed(log_types)
        decoded = partial(self._reader.records, decode=decode)
        records: list[EventRecord] = []
        next_after = after
        while True:
            query = FeedQuery(next_after, 0, limit - len(records), names, log_types)
            found = self._read(query, decoded)
            records += found.events
            next_after = found.next_after
            if len(records) == limit or not found.more:
                break
        return FeedPage(records, next_after=next_after, more=found.more, settled=found.settled)

    def settled(self) -> int:
        """
        Return the position of the last settled event, or 0 if there is none.

        No new event can appear at or below it. Raise FeedUnavailable as ``read`` does.
        """
        source = self._source()
        return source.last(source.watermark().settled)

    def follow(
        self,
        *,
        after: int = 0,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        stop: Stop | None = None,
        decode: bool = True,
    ) -> Following:
        """
        Return an iterator over the events after the position ``after``, that waits for new ones.

        While events come, it reads the feed every 20 ms; without any, the pauses grow to one
        second. ``stop`` ends it: a ``threading.Event`` at once, a function that returns True
        within 0.1 seconds. Without ``stop`` it ends only when the iterator is closed.

        No transaction is open while it waits, unless the caller has opened one. The other
        arguments are those of ``read``. Raise what ``read`` raises, and the database's error for
        a lost connection; then follow again from the last event's position.
        """
        _check(after, FOLLOW_PAGE)
        names, log_types = _names(types), _listed(log_types)

        def read(after: int) -> StoredPage:
            return self._read(FeedQuery(after, 0, FOLLOW_PAGE, names, log_types), _as_stored)

        return Following(read, partial(self._reader.records, decode=decode), after=after, stop=stop)

    def holding_back(self) -> list[FeedHolder]:
        """
        Return the open transactions that hold the feed back, in the order of their positions.

        Each has its ``position`` (events above it are not settled until it ends), the ``pid`` of
        its server process, its ``age``, and its last ``query`` if this database role may see it. A
        prepared transaction has no pid, but its name as ``prepared_as``. On SQLite the list is
        always empty: events are committed in the order of their positions. Raise FeedUnavailable
        as ``read`` does.
        """
        return self._source().holding_back()

    def read_stored(
        self,
        after: int,
        *,
        limit: int,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        partition: tuple[int, int] | None = None,
        unknown: UnknownTypes | None = None,
    ) -> StoredPage:
        """
        Return settled events undecoded, for workers that share the feed.

        ``unknown`` selects unknown types to be read in addition to ``types``.
        ``partition`` is ``(number, of)``: only the logs of that partition, numbered 0 to
        ``of - 1``, of at most 65,536. A log is in the same partition on every database, see
        ``partition_of``. A call examines a limited number of positions, so it may return fewer
        events than ``limit``, or none, with ``more`` True: continue from ``next_after``.

        Raise what ``read`` raises before decoding; ``records`` decodes the events.
        """
        limit = _check(after, limit)
        if partition is not None:
            number, of = partition
            if not 0 <= number < of <= MAX_PARTITIONS:
                raise ValueError(
                    f"partition must be (number, of), with 0 <= number < of <= {MAX_PARTITIONS}."
                )
        names, listed = _names(types), _listed(log_types)
        query = FeedQuery(after, 0, limit, names, listed, partition, unknown)
        return self._read(query, _as_stored)

    def records(self, events: Iterable[StoredEvent]) -> Iterator[EventRecord]:
        """Yield the records of events; raise UnknownEventType or UndecodableEvent."""
        return self._reader.records(events)

    def _read(
        self, query: FeedQuery, make: Callable[[list[StoredEvent]], Iterable[E]]
    ) -> FoundPage[E]:
        """Read what ``query`` asks for, up to where the feed is settled now."""
        source, after = self._source(), query.after
        mark = source.watermark()
        if after > mark.assigned:
            raise FeedUnavailable("ahead", using=self.using)
        # After a crash PostgreSQL may assign an assigned but unused position again. A reader that
        # continued after such a position would skip the event, so the feed ends at its last event.
        last = source.last(mark.settled)
        if after >= last:
            return FoundPage([], after, False, last)
        events, reached = source.events(query._replace(upto=last), make)
        if reached < last and not (events and events[-1].position == reached):
            reached = max(after, source.last(reached))
        return FoundPage(events, reached, reached < last, last)

    def _source(self) -> FeedSource:
        return feed_source_for(self.using)

    aread = AsyncTwin(read)
    asettled = AsyncTwin(settled)
    afollow = AsyncIteratorTwin(follow)
    aholding_back = AsyncTwin(holding_back)


def _check(after: int, limit: int) -> int:
    check_int("after", after, highest=MAX_POSITION)
    check_int("limit", limit, lowest=1, highest=MAX_PAGE_SIZE)
    return limit


def _as_stored(events: list[StoredEvent]) -> list[StoredEvent]:
    return events


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
