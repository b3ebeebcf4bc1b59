"""Readers of the feed for races: ours, and the naive one."""

from __future__ import annotations

from typing import Any

from django.db import connection

from eventlogs import Feed


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

    def __init__(self, source: Any) -> None:
        super().__init__()
        self._given = source

    def _source(self) -> Any:
        return self._given
