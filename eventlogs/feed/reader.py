"""
The feed: the events of all logs of a database, in the order of their positions.

It skips nothing: it returns *settled* events only, which means that no new event can appear at
or below their positions. ``feed/sources.py`` finds out which ones are settled.

Store the position of the last event that you have read, best in the transaction that stores
what you made of it, and pass it as ``after`` the next time. Elsewhere, store ``page.checkpoint``:
it is refused after a restore or a failover that lost events (``feed/tokens.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from functools import partial
from threading import Event as Flag
from typing import Final

from asgiref.sync import sync_to_async
from django.db import router

from eventlogs import conf
from eventlogs.conf import MAX_PAGE_SIZE, MAX_POSITION
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
from eventlogs.feed.stored_pages import StoredPage, newest_first, read_upto
from eventlogs.feed.tokens import Place, Token, Witness, checkpoint_of, witnesses_of
from eventlogs.models import Checkpoint, Event
from eventlogs.pages import RecordPage
from eventlogs.stores.clock import UTCNow
from eventlogs.utils.bounds import check_int
from eventlogs.utils.twins import AsyncIteratorTwin, AsyncTwin
from eventlogs.values import EventRecord, StoredEvent

FOLLOW_PAGE: Final = 1_000  # events that follow() reads at once
SHORTEST_PAUSE: Final = 0.02  # seconds between two reads while events come
LONGEST_PAUSE: Final = 1.0  # seconds between two reads when none have come for a while
PATIENCE: Final = 1.25  # the factor by which a pause grows after a read without events
NAP: Final = 0.1  # seconds between two calls of a stop function

Stop = Flag | Callable[[], bool]


HEARTBEAT: Final = "eventlogs:heartbeat"
"""The name of the checkpoint that ``Feed.heartbeat`` moves; no projection can have it."""


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

    __slots__ = ("_earlier", "_last", "more", "next_after", "settled")

    def __init__(
        self,
        records: Iterable[EventRecord],
        *,
        next_after: int,
        more: bool,
        settled: int,
        last: Place | None = None,
        earlier: tuple[Witness, ...] = (),
    ) -> None:
        super().__init__(records)
        self.next_after = next_after
        self.more = more
        self.settled = settled
        self._last = last
        self._earlier = earlier

    @property
    def checkpoint(self) -> str:
        """
        A token to pass as ``after``: ``next_after``, and digests of the last events up to there.

        It is text of at most 200 characters, for a reader that stores its position outside of this
        database: ``Feed.read`` refuses it in another history. Making it needs no query.
        """
        witnesses = witnesses_of(newest_first(self._last, self), self._earlier)
        return str(Token(self.next_after, witnesses))

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
        read: Callable[[Token], StoredPage],
        decode: Callable[[list[StoredEvent]], Iterator[EventRecord]],
        *,
        after: Token,
        stop: Stop | None,
        proves: bool,
    ) -> None:
        self._read = read
        self._decode = decode
        self._after = after
        self._proves = proves  # it began at a checkpoint, not at a plain position
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
        pause = self._pace.pause(found, self._after.position)
        witnesses = found.witnesses(self._after.witnesses) if self._proves else ()
        self._after = Token(found.next_after, witnesses)
        return pause


class Feed:
    """The events of all logs of one database, in the order of their positions."""

    def __init__(self, *, using: str | None = None) -> None:
        """
        Read the feed of the database alias ``using``, by default the alias that events go to.

        On a replica it reads up to what a checkpoint of the primary has reached, or the last
        ``heartbeat``: see docs/feed.md, On a replica.
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
        after: int | str = 0,
        limit: int | None = None,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        decode: bool = True,
    ) -> FeedPage:
        """
        Return one page of settled events, those with positions greater than ``after``.

        ``after`` is a position, or the ``checkpoint`` of a page of this database. ``limit`` is 1 to
        10,000 events, and defaults to ``EVENTLOGS["PAGE_SIZE"]``. ``types`` are event types, by
        name or class, and include their aliases; ``log_types`` are names of log types. None stands
        for all of them. With ``decode=False``, ``record.event`` is the raw JSON value.

        A page holds ``limit`` events unless the feed ends. Inside a READ COMMITTED transaction
        the feed includes the transaction's own events, as any query does; store what you make of
        them, and the position, in the same transaction.

        Raise FeedUnavailable where events could be skipped, CheckpointDiffers (a HistoryDiffers)
        for a checkpoint of another history, ValueError for a position or a limit out of range and
        for text that is no checkpoint, TypeError for a class that is not an event class, and
        UnknownEventType or UndecodableEvent where an event cannot be decoded. Reading changes
        nothing.
        """
        start = _start(after, limit := conf.page_size() if limit is None else limit)
        names, log_types = _names(types), _listed(log_types)
        records: list[EventRecord] = []
        token = start
        while True:
            query = FeedQuery(token.position, 0, limit - len(records), names, log_types)
            found = self._read(query, token.witnesses)
            records += self._reader.records(found.events, decode=decode)
            token = token._replace(position=found.next_after)
            if len(records) == limit or not found.more:
                break
        return FeedPage(
            records,
            next_after=found.next_after,
            more=found.more,
            settled=found.settled,
            last=found.last,
            earlier=start.witnesses,
        )

    def settled(self) -> int:
        """
        Return the position of the last settled event, or 0 if there is none.

        No new event can appear at or below it. Raise FeedUnavailable as ``read`` does.
        """
        source = self._source()
        last = source.last(source.watermark().settled)
        return 0 if last is None else last.position

    def checkpoint(self) -> str:
        """
        Return the token of the last settled event, from which only later events are read.

        Raise FeedUnavailable as ``read`` does.
        """
        source = self._source()
        last = source.last(source.watermark().settled)
        return str(Token(0) if last is None else Token(last.position, (Witness.of(last),)))

    @staticmethod
    def checkpoint_of(record: EventRecord) -> str:
        """
        Return the token of a record that a feed returned, for a reader that stores each position.

        It names no other event than this one; ``page.checkpoint`` names several. Do not pass
        records of a log: they need not be settled.
        """
        return checkpoint_of(record)

    def heartbeat(self) -> int:
        """
        Store the position of the last settled event in the database, and return it.

        The feeds of replicas read up to there. It is needed where no projection does so; call it as
        often as events should come there, or run ``manage.py eventlogs heartbeat``. It writes
        nothing if the position is the same as before.

        Raise FeedUnavailable as ``read`` does, and on a replica.
        """
        source = self._source()
        mark = source.watermark()
        if mark.is_replica:
            raise FeedUnavailable("replica", using=self.using)
        # Read before the row is written: its commit comes after those of the events. Never the
        # highest of two values: after a restore, a position of the lost history must not stay.
        last = source.last(mark.settled)
        position = 0 if last is None else last.position
        rows = Checkpoint.objects.using(self.using).filter(projection=HEARTBEAT)
        known = rows.values_list("position", flat=True).first()
        if known is None:
            row = Checkpoint(projection=HEARTBEAT, partition=0, partitions=1, position=position)
            Checkpoint.objects.using(self.using).bulk_create([row], ignore_conflicts=True)
        elif known != position:
            rows.update(position=position, moved_at=UTCNow())
        return position

    def follow(
        self,
        *,
        after: int | str = 0,
        types: Iterable[str | type] | None = None,
        log_types: Iterable[str] | None = None,
        stop: Stop | None = None,
        decode: bool = True,
    ) -> Following:
        """
        Return an iterator over the events after ``after``, that waits for new ones.

        While events come, it reads the feed every 20 ms; without any, the pauses grow to one
        second. ``stop`` ends it: a ``threading.Event`` at once, a function that returns True
        within 0.1 seconds. Without ``stop`` it ends only when the iterator is closed.

        No transaction is open while it waits, unless the caller has opened one. The other
        arguments are those of ``read``. Raise what ``read`` raises, and the database's error for
        a lost connection; then follow again from the last event's position, or its
        ``checkpoint_of``. Having begun at a checkpoint, it proves the history at every read.
        """
        start = _start(after, FOLLOW_PAGE)
        names, log_types = _names(types), _listed(log_types)

        def read(after: Token) -> StoredPage:
            query = FeedQuery(after.position, 0, FOLLOW_PAGE, names, log_types)
            return self._read(query, after.witnesses)

        decoded, proves = partial(self._reader.records, decode=decode), isinstance(after, str)
        return Following(read, decoded, after=start, stop=stop, proves=proves)

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
        return self._read(FeedQuery(after, 0, limit, names, listed, partition, unknown))

    def records(self, events: Iterable[StoredEvent]) -> Iterator[EventRecord]:
        """Yield the records of events; raise UnknownEventType or UndecodableEvent."""
        return self._reader.records(events)

    def _read(self, query: FeedQuery, witnesses: tuple[Witness, ...] = ()) -> StoredPage:
        """Read what ``query`` asks for, up to where the feed is settled now."""
        source = self._source()
        mark = source.watermark()
        if not mark.is_replica:
            return read_upto(source, mark, query, witnesses)
        # Its watermark has to be of the same moment as the events.
        return source.at_one_moment(lambda: read_upto(source, source.watermark(), query, witnesses))

    def _source(self) -> FeedSource:
        return feed_source_for(self.using)

    aread = AsyncTwin(read)
    asettled = AsyncTwin(settled)
    acheckpoint = AsyncTwin(checkpoint)
    aheartbeat = AsyncTwin(heartbeat)
    afollow = AsyncIteratorTwin(follow)
    aholding_back = AsyncTwin(holding_back)


def _start(after: int | str, limit: int) -> Token:
    """Return what to read after: a position is a token that names no event."""
    token = Token.parse(after) if isinstance(after, str) else Token(after)
    _check(token.position, limit)
    return token


def _check(after: int, limit: int) -> int:
    check_int("after", after, highest=MAX_POSITION)
    check_int("limit", limit, lowest=1, highest=MAX_PAGE_SIZE)
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
