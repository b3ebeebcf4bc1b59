"""The feed of PostgreSQL in the layout with buckets; ``buckets.py`` says why it is right."""

from __future__ import annotations

from typing import Final

from eventlogs.feed.buckets import Counters, Numbers
from eventlogs.feed.postgresql import PAGE, PostgreSQLFeedSource
from eventlogs.feed.sources import FeedHolder, FeedQuery
from eventlogs.stores.buckets import last_position_at
from eventlogs.stores.columns import events_of_bytes
from eventlogs.stores.statements import Statement
from eventlogs.values import StoredEvent

EXAMINED: Final = 65_536  # events that one call of events() looks at, if few of them match

COUNTERS: Final = Statement("feed_counters")
END: Final = Statement("feed_end")
HOLDERS: Final = Statement("feed_bucket_holders")


class PostgreSQLBucketFeedSource(Counters, PostgreSQLFeedSource):
    """The feed of a PostgreSQL database whose positions come from counters."""

    def is_in_transaction(self) -> bool:
        return self._in_transaction()  # as the server sees it

    def numbers(self) -> Numbers:
        [numbers] = self._run(COUNTERS)
        return self.checked(Numbers(*numbers))

    def events(self, query: FeedQuery) -> tuple[list[StoredEvent], int]:
        # Positions have gaps of any size here, so a statement is bounded by a number of events.
        number, of = query.partition or (None, None)
        is_whole = query.types is None and query.log_types is None and query.partition is None
        end = query.upto
        if not is_whole:
            bounds = {"after": query.after, "upto": query.upto, "examined": EXAMINED}
            [(found,)] = self._run(END, bounds)
            end = query.upto if found is None else found
        parameters = {
            "after": query.after,
            "upto": end,
            "limit": query.limit,
            "types": None if query.types is None else list(query.types),
            "log_types": None if query.log_types is None else list(query.log_types),
            "known": None if query.unknown is None else list(query.unknown.known),
            "unknown_in": None if query.unknown is None else list(query.unknown.log_types),
            "number": number,
            "of": of,
        }
        events = self._run(PAGE, parameters, events_of_bytes)
        return events, events[-1].position if len(events) == query.limit else end

    def holding_back(self) -> list[FeedHolder]:
        self.watermark()
        return [
            FeedHolder(last_position_at(number), *facts) for number, *facts in self._run(HOLDERS)
        ]
