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
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from django.db import connections
from psycopg.pq import TransactionStatus

from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.sources import Blocked, E, FeedHolder, FeedQuery, FeedSource, Watermark
from eventlogs.stores.columns import events_of_bytes
from eventlogs.stores.retries import run_again
from eventlogs.stores.statements import Row, Statement, raw_connection
from eventlogs.values import StoredEvent

# The positions that one call of events() examines: it ends soon also where few of them match.
MAX_SPAN = 65_536  # positions a statement
SPANS = 16  # statements

# Reasons for which the locks of this server do not show which transactions hold the feed back.
HOLDERS_UNKNOWN = {"replica", "distributed", "subscriber", "sequence", "permission"}

NOT_PERMITTED = "<insufficient privilege>"  # what pg_stat_activity has for others' queries

# In version(): servers that speak PostgreSQL's protocol and keep a table on many machines.
DISTRIBUTED_SERVERS = ("-YB-", "CockroachDB", "Greenplum")

SERVER = Statement("feed_server")
LAST = Statement("feed_last")
DISTRIBUTED = Statement("feed_distributed")
SUBSCRIBER = Statement("feed_subscriber")
FENCE = Statement("feed_fence")
HOLDERS = Statement("feed_holders")
BLOCKED = Statement("feed_blocked")
PAGE = Statement("feed_page")
LAST_EVENT = Statement("feed_last_event")
NEXT_EVENT = Statement("feed_next_event")


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
        if look.is_replica:
            yield "replica"
        if look.has_citus and self._run(DISTRIBUTED) == [(True,)]:
            yield "distributed"
        if look.may_have_subscriptions and self._run(SUBSCRIBER) == [(True,)]:
            yield "subscriber"
        if look.isolation != "read committed" and self._in_transaction():
            yield "isolation"
        if not look.sequence_is_right:
            yield "sequence"
        elif look.assigned is None:
            yield "permission"
        if not look.has_fence:
            yield "fence"

    def events(
        self, query: FeedQuery, make: Callable[[list[StoredEvent]], Iterable[E]]
    ) -> tuple[list[E], int]:
        found: list[E] = []
        number, of = query.partition or (None, None)
        parameters: dict[str, object] = {
            "types": None if query.types is None else list(query.types),
            "log_types": None if query.log_types is None else list(query.log_types),
            "known": None if query.unknown is None else list(query.unknown.known),
            "unknown_in": None if query.unknown is None else list(query.unknown.log_types),
            "number": number,
            "of": of,
        }
        after = query.after
        span = (query.limit + query.limit // 8 + 1) * (of or 1)  # some positions are gaps
        for _ in range(SPANS):
            end = min(query.upto, after + min(span, MAX_SPAN))
            parameters |= {"after": after, "upto": end, "limit": query.limit - len(found)}
            some = self._run(PAGE, parameters, lambda rows: make(events_of_bytes(rows)))
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

    def last(self, upto: int) -> int:
        [(last,)] = self._run(LAST_EVENT, {"upto": upto})
        return last or 0

    def holding_back(self) -> list[FeedHolder]:
        for reason in self._refusals(self._look()):
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
