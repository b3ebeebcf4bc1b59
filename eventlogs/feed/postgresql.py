"""
The feed of a PostgreSQL database: it skips no event, and no session waits for its locks.

Positions come from a sequence, and a transaction with a lower position may commit after one with a
higher position: a reader that asks for "position > last" then skips it forever. So every append
takes a *fence* before its positions are assigned (migration 0003): a shared advisory lock, held
until its transaction ends, whose key is below all positions that can still be assigned to it. The
key's highest bits identify the table, so that schemas of one database do not wait for each other.

A reader runs three statements, in this order, each with a snapshot of its own:

1. L, the last position that the sequence has assigned;
2. m, the lowest fence that is held for this table;
3. the events with a position of at most least(L, m).

Let p <= least(L, m) be the position of an event that (3) does not show. It was assigned before
(1), because p <= L; so its fence, below p, was taken before (1). At (2) that fence was released,
because p <= m. A fence is released after the transaction's rows have become visible, or were rolled
back. So either (3) shows the event, or there will never be one.

A replica does not have these locks. But it has rows that hold a position that was settled on the
primary when they were written: the checkpoints of projections, and the heartbeat. A transaction
that writes such a row with the position w has read the feed up to w before: all events up to w were
committed by then, so their commits come before its own in the write-ahead log. A replica applies
that log in its order. So a snapshot that shows the row shows all of these events, and there will
never be others at or below w. A reader on a replica reads both in one snapshot:

1. w, the highest position of such a row;
2. the events with a position of at most w.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from itertools import starmap
from typing import Any, NamedTuple, TypeVar, cast

from django.db import connections
from psycopg.pq import TransactionStatus

from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.buckets import Counters, Numbers
from eventlogs.feed.sources import Blocked, FeedHolder, FeedQuery, FeedSource, Watermark
from eventlogs.feed.tokens import Place
from eventlogs.stores.buckets import last_position_at
from eventlogs.stores.columns import events_of_bytes
from eventlogs.stores.retries import run_again, run_in_transaction
from eventlogs.stores.statements import HotRead, Row, Statement, raw_connection
from eventlogs.values import StoredEvent

T = TypeVar("T")

# The positions that one call of events() examines: it ends soon also where few of them match.
MAX_SPAN = 65_536  # positions a statement
SPANS = 16  # statements

EXAMINED = 65_536  # events that one call looks at, where positions come from counters

# The last event is searched among so many positions first. It is further down only where all of
# these were rolled back, or their events erased or archived. A scan without this bound would
# compare a page of each index, up to 400 positions.
NEAR = 64

# Reasons for which the locks of this server do not show which transactions hold the feed back.
HOLDERS_UNKNOWN = {"distributed", "subscriber", "sequence", "permission"}

NOT_PERMITTED = "<insufficient privilege>"  # what pg_stat_activity has for others' queries

# In version(): servers that speak PostgreSQL's protocol and keep a table on many machines.
DISTRIBUTED_SERVERS = ("-YB-", "CockroachDB", "Greenplum")

SERVER = Statement("feed_server")
LAST = HotRead("feed_last")
DISTRIBUTED = Statement("feed_distributed")
SUBSCRIBER = Statement("feed_subscriber")
FENCE = HotRead("feed_fence")
REACHED = Statement("feed_reached")
PLACES = HotRead("feed_places")
HOLDERS = Statement("feed_holders")
BLOCKED = Statement("feed_blocked")
PAGE = HotRead("feed_page")
LAST_EVENT = HotRead("feed_last_event")
NEXT_EVENT = Statement("feed_next_event")
COUNTERS = HotRead("feed_counters")
# Where positions are times, they do not tell how large the table is: these are planned each time.
END = Statement("feed_end")
PLANNED_LAST_EVENT = Statement("feed_last_event")
BUCKET_HOLDERS = Statement("feed_bucket_holders")


@cache
def planned_page(*filters: str) -> Statement:
    """Return the statement for a page with these filters, planned each time."""
    return Statement("feed_page", filters=filters)


def _rows(rows: list[Row]) -> list[Row]:
    return rows


class Look(NamedTuple):
    """The row of the first statement of a reader."""

    assigned: int | None  # None where this role may not read the sequence
    is_replica: bool
    isolation: str
    sequence_is_right: bool
    has_fence: bool
    may_have_subscriptions: bool
    has_citus: bool


class PostgreSQLFeedSource(FeedSource):
    """The feed of a PostgreSQL database."""

    _is_one_server = False

    def watermark(self) -> Watermark:
        look = self._look()
        for reason in self._refusals(look):
            raise FeedUnavailable(reason, using=self.using)
        assigned = cast("int", look.assigned)
        if look.is_replica:
            return Watermark(assigned, self._reached(), is_replica=True)
        [(lowest_fence,)] = self._run(FENCE)
        settled = assigned if lowest_fence is None else min(assigned, lowest_fence)
        return Watermark(assigned, settled)

    def refusals(self) -> list[str]:
        try:
            return list(self._refusals(self._look()))
        except FeedUnavailable as refusal:
            return [refusal.reason]

    def _look(self) -> Look:
        # Asked once: the kind of a server does not change. Asked first: on other kinds of servers
        # the next statements may fail.
        if not self._is_one_server:
            [(version, has_yugabyte)] = self._run(SERVER)
            if has_yugabyte or any(name in version for name in DISTRIBUTED_SERVERS):
                raise FeedUnavailable("distributed", using=self.using)
            self._is_one_server = True
        looks = self._run(LAST)
        if not looks:
            raise FeedUnavailable("sequence", using=self.using)
        [look] = looks
        return Look(*look)

    def _refusals(self, look: Look) -> Iterator[str]:
        """Yield the reasons not to read here; those that cannot be corrected here come first."""
        if look.has_citus and self._run(DISTRIBUTED) == [(True,)]:
            yield "distributed"
        if look.may_have_subscriptions and self._run(SUBSCRIBER) == [(True,)]:
            yield "subscriber"
        is_snapshot = look.isolation != "read committed" and self._in_transaction()
        if is_snapshot and not look.is_replica:
            yield "isolation"
        if not look.sequence_is_right:
            yield "sequence"
        elif look.assigned is None:
            yield "permission"
        if not look.has_fence:
            yield "fence"

    def _reached(self) -> int:
        """Return how far a replica is settled; raise FeedUnavailable if nothing says so."""
        [(reached, newest)] = self._run(REACHED)
        if newest is not None and not reached:
            raise FeedUnavailable("replica", using=self.using)
        return reached or 0

    def at_one_moment(self, read: Callable[[], T]) -> T:
        if self._in_transaction():
            return read()  # of one server; its later statements see more, never less

        def attempt() -> T:
            with connections[self.using].cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            return read()

        # A pooler may send each transaction to another replica, some of which are behind.
        return run_in_transaction(self.using, attempt)

    def events(self, query: FeedQuery) -> tuple[list[StoredEvent], int]:
        found: list[StoredEvent] = []
        filters, parameters = _filters(query)
        page = PAGE.upto(query.upto, filters)
        after = query.after
        _, of = query.partition or (0, 1)
        span = (query.limit + query.limit // 8 + 1) * of  # some positions are gaps
        for _ in range(SPANS):
            end = min(query.upto, after + min(span, MAX_SPAN))
            parameters |= {"after": after, "upto": end, "limit": query.limit - len(found)}
            some = self._run(page, parameters, events_of_bytes)
            found += some
            if len(found) == query.limit:
                return found, found[-1].position
            if not some and end < query.upto:
                [(following,)] = self._run(NEXT_EVENT, {"after": end})
                end = query.upto if following is None else min(query.upto, following - 1)
            if end >= query.upto:
                return found, query.upto
            after, span = end, span * 4
        return found, after

    def last(self, upto: int) -> Place | None:
        statement = LAST_EVENT.upto(upto)
        # Two statements see no less than one would: no event can appear at or below this bound.
        for after in sorted({max(0, upto - NEAR), 0}, reverse=True):
            for row in self._run(statement, {"after": after, "upto": upto}):
                return Place(*row)
        return None

    def places(self, positions: Collection[int]) -> dict[int, Place]:
        # Not by the ORM: a reader asks for them with every page.
        found = self._run(PLACES, {"positions": list(positions)})
        return {place.position: place for place in starmap(Place, found)}

    def holding_back(self) -> list[FeedHolder]:
        look = self._look()
        if look.is_replica:
            raise FeedUnavailable("replica", using=self.using)
        for reason in self._refusals(look):
            if reason in HOLDERS_UNKNOWN:
                raise FeedUnavailable(reason, using=self.using)
        return [
            FeedHolder(
                position=position,
                pid=pid,
                age=age,
                user=user,
                application=application,
                state=state,
                query=None if query == NOT_PERMITTED else query,
                prepared_as=prepared_as,
            )
            for position, pid, age, user, application, state, query, prepared_as in self._run(
                HOLDERS
            )
        ]

    def blocked(self) -> list[Blocked]:
        return [Blocked(*row) for row in self._run(BLOCKED)]

    def _in_transaction(self) -> bool:
        # As the server sees it: also of a BEGIN that Django does not know of.
        raw = raw_connection(connections[self.using])
        return raw.info.transaction_status != TransactionStatus.IDLE

    def _run(
        self,
        statement: Statement,
        parameters: Mapping[str, object] | None = None,
        make: Callable[[list[Row]], Iterable[Any]] = _rows,
    ) -> list[Any]:
        return run_again(
            self.using, lambda connection: statement.read(connection, parameters or {}, make)
        )


def _filters(query: FeedQuery) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return the filters of a page, and their parameters."""
    filters, parameters = [], dict[str, object]()
    if query.types is not None:
        filters.append("types")
        parameters["types"] = list(query.types)
        if query.unknown is not None:
            filters.append("unknown")
            parameters["known"] = list(query.unknown.known)
            parameters["unknown_in"] = list(query.unknown.log_types)
    if query.log_types is not None:
        filters.append("log_types")
        parameters["log_types"] = list(query.log_types)
    if query.partition is not None:
        filters.append("partition")
        parameters["number"], parameters["of"] = query.partition
    return tuple(filters), parameters


class PostgreSQLBucketFeedSource(Counters, PostgreSQLFeedSource):
    """The feed of a PostgreSQL database whose positions come from counters."""

    def is_in_transaction(self) -> bool:
        return self._in_transaction()  # as the server sees it

    def last(self, upto: int) -> Place | None:
        # Positions are as far apart here as the times of appends.
        bounds = {"after": 0, "upto": upto}
        return next(starmap(Place, self._run(PLANNED_LAST_EVENT, bounds)), None)

    def numbers(self) -> Numbers:
        [(count, lowest, highest, is_replica, has_snapshots, may_have_subscriptions)] = self._run(
            COUNTERS
        )
        if may_have_subscriptions and self._run(SUBSCRIBER) == [(True,)]:
            raise FeedUnavailable("subscriber", using=self.using)
        is_snapshot = has_snapshots and self._in_transaction()
        return self.checked(Numbers(count, lowest, highest, is_replica, is_snapshot))

    def events(self, query: FeedQuery) -> tuple[list[StoredEvent], int]:
        # Positions have gaps of any size here, so a statement is bounded by a number of events.
        filters, parameters = _filters(query)
        end = query.upto
        if filters:
            bounds = {"after": query.after, "upto": query.upto, "examined": EXAMINED}
            [(found,)] = self._run(END, bounds)
            end = query.upto if found is None else found
        parameters |= {"after": query.after, "upto": end, "limit": query.limit}
        events = self._run(planned_page(*filters), parameters, events_of_bytes)
        return events, events[-1].position if len(events) == query.limit else end

    def holding_back(self) -> list[FeedHolder]:
        self.watermark()
        found = self._run(BUCKET_HOLDERS)
        return [FeedHolder(last_position_at(number), *facts) for number, *facts in found]
