"""
The feed of a PostgreSQL database: nothing skipped, and no lock that anybody waits for.

Positions come from a sequence, and a transaction that was given a lower one may commit after
one that was given a higher one: a reader that goes by "position > last" skips it for good. So
every append puts up a *fence* before it is given a position (migration 0003): a shared advisory
lock, until its transaction ends, whose key is below all positions that it can still be given.

A reader runs three statements, in this order, each with a snapshot of its own:

1. L, the last position that the sequence has given out;
2. m, the lowest fence that is up;
3. the events with a position of at most least(L, m).

Say that a position p <= least(L, m) belongs to an event that (3) does not show. It was given
out before (1), because p <= L; so its fence, below p, went up before (1). At (2) that fence was
down, because p <= m. Fences come down after the transaction's rows have become visible, or have
become void. So either (3) does show the event, or there will never be one.
"""

from __future__ import annotations

from typing import cast

from django.db import connections
from psycopg.pq import TransactionStatus

from eventlogs.codec import POSITION, FeedRow
from eventlogs.exceptions import FeedUnavailable
from eventlogs.stores.direct import direct_connection
from eventlogs.stores.feeds import FeedHolder, FeedQuery, FeedSource, Watermark
from eventlogs.stores.statements import Row, Statement, raw_connection
from eventlogs.stores.transactions import run_again

# What one call of rows() looks through, so that it ends soon where next to nothing is wanted.
MAX_SPAN = 65_536  # positions a statement
SPANS = 16  # statements

NOT_PERMITTED = "<insufficient privilege>"  # what pg_stat_activity has for others' queries

SEQUENCE = Statement("feed_sequence")
FENCE = Statement("feed_fence")
PAGE = Statement("feed_page")
LAST_EVENT = Statement("feed_last_event")
NEXT_EVENT = Statement("feed_next_event")


class SequenceStatement(Statement):
    """A statement that reads the sequence of positions, whatever that is called here."""

    def __init__(self, name: str, sequence: str) -> None:
        super().__init__(name)
        self.sql = self.sql.replace("eventlogs_event_position_seq", sequence)


class PostgreSQLFeedSource(FeedSource):
    """The feed of a PostgreSQL database."""

    _last: SequenceStatement | None = None
    _holders: SequenceStatement | None = None

    def watermark(self) -> Watermark:
        if self._last is None or self._may_switch_schemas():
            self._last = SequenceStatement("feed_last", self._sequence())
        [(given_out, is_replica, isolation, sequence_cache, has_fence)] = self._run(self._last)
        if is_replica:
            raise FeedUnavailable("replica", using=self.using)
        if isolation != "read committed" and self._in_transaction():
            raise FeedUnavailable("isolation", using=self.using)
        if sequence_cache != 1:
            raise FeedUnavailable("sequence", using=self.using)
        if not has_fence:
            raise FeedUnavailable("fence", using=self.using)
        [(lowest_fence,)] = self._run(FENCE)
        settled = given_out if lowest_fence is None else min(given_out, lowest_fence)
        return Watermark(given_out, settled)

    def rows(self, query: FeedQuery) -> tuple[list[FeedRow], int]:
        found: list[FeedRow] = []
        number, of = query.partition or (None, None)
        parameters = {
            "types": None if query.types is None else list(query.types),
            "log_types": None if query.log_types is None else list(query.log_types),
            "number": number,
            "of": of,
        }
        after = query.after
        span = (query.limit + query.limit // 8 + 1) * (of or 1)  # some positions are gaps
        for _ in range(SPANS):
            end = min(query.upto, after + min(span, MAX_SPAN))
            rows = self._run(
                PAGE,
                {**parameters, "after": after, "upto": end, "limit": query.limit - len(found)},
            )
            found += cast("list[FeedRow]", rows)
            if len(found) == query.limit:
                return found, found[-1][POSITION]
            if not rows and end < query.upto:
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
        if self._holders is None or self._may_switch_schemas():
            self._holders = SequenceStatement("feed_holders", self._sequence())
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
                self._holders
            )
        ]

    def _may_switch_schemas(self) -> bool:
        # As django-tenants does: behind one alias, each schema has a sequence of its own.
        return direct_connection(connections[self.using]) is None

    def _sequence(self) -> str:
        [(sequence,)] = self._run(SEQUENCE)
        return cast("str", sequence)

    def _in_transaction(self) -> bool:
        # As the server sees it: also of a BEGIN that Django does not know of.
        raw = raw_connection(connections[self.using])
        return raw.info.transaction_status != TransactionStatus.IDLE

    def _run(self, statement: Statement, parameters: dict[str, object] | None = None) -> list[Row]:
        return run_again(
            self.using, lambda connection: statement.rows(connection, parameters or {})
        )
