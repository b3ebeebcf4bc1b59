"""The source of PostgreSQL's feed for interleavings, and deliberately broken versions of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from eventlogs.feed.postgresql import FENCE, LAST, PostgreSQLFeedSource
from eventlogs.feed.sources import Watermark
from eventlogs.stores.statements import Statement


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
