"""Readers of the feed for races: ours, the naive one, and deliberately broken versions of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connection

from eventlogs import Feed
from eventlogs.feed.postgresql import FENCE, LAST, PostgreSQLFeedSource
from eventlogs.feed.sources import FeedSource, Watermark
from eventlogs.stores.statements import Statement


class NaiveReader:
    """Reads the events above the last position that it has seen, as most readers do."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def read(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT position FROM eventlogs_event WHERE position > %s ORDER BY position",
                [self.seen[-1] if self.seen else 0],
            )
            self.seen += [position for (position,) in cursor.fetchall()]


class Reader:
    """Reads a feed page by page, from the last position on."""

    def __init__(self, feed: Feed | None = None, limit: int = 50) -> None:
        self.feed = feed or Feed()
        self.limit = limit
        self.seen: list[int] = []
        self.places: list[tuple[object, int]] = []
        self._after = 0

    def read(self) -> None:
        more = True
        while more:
            page = self.feed.read(after=self._after, limit=self.limit)
            self.seen += [record.position for record in page]
            self.places += [(record.log_id, record.index) for record in page]
            self._after, more = page.next_after, page.more


class FeedOf(Feed):
    """A feed that reads a source of the tests."""

    def __init__(self, source: FeedSource) -> None:
        super().__init__()
        self._given = source

    def _source(self) -> FeedSource:
        return self._given


class Interrupted(PostgreSQLFeedSource):
    """The real source; a function is called once before one of its statements."""

    def __init__(self, before: str, happens: Callable[[], object]) -> None:
        super().__init__(DEFAULT_DB_ALIAS)
        self._before = Statement(before).sql
        self._happens: Callable[[], object] | None = happens

    def _run(self, statement: Statement, *args: Any) -> list[Any]:
        if statement.sql == self._before and self._happens:
            happens, self._happens = self._happens, None
            happens()
        return super()._run(statement, *args)


class IgnoresFences(PostgreSQLFeedSource):
    """Treats the last assigned position as settled."""

    def watermark(self) -> Watermark:
        assigned = super().watermark().assigned
        return Watermark(assigned, assigned)


class LooksAtFencesFirst(Interrupted):
    """Reads the fences, and then the sequence."""

    def watermark(self) -> Watermark:
        [(fence,)] = self._run(FENCE)
        [(assigned, *_)] = self._run(LAST)
        return Watermark(assigned, assigned if fence is None else min(fence, assigned))
