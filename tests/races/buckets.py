"""Deliberately broken versions of positions from counters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from django.db import connections

from eventlogs.feed.sources import Watermark, feed_source_for
from eventlogs.stores import buckets
from eventlogs.stores.portable import PortableStore
from eventlogs.values import StoredEvent


def ignoring_open_appends() -> object:
    """Return a source that treats the highest number of all buckets as settled."""
    cls = type(feed_source_for("default"))

    class IgnoresOpenAppends(cls):  # type: ignore[misc, valid-type]
        def watermark(self) -> Watermark:
            assigned = super().watermark().assigned
            return Watermark(assigned, assigned)

    return IgnoresOpenAppends("default")


class CountsApart(PortableStore):
    """Takes positions in a transaction of their own, as from a sequence: no append holds them."""

    def _insert_all(
        self, events: Sequence[StoredEvent], digests: Iterable[bytes | None]
    ) -> int | None:
        taken = buckets.take_positions

        def apart(using: str, logs: Sequence[UUID]) -> list[int]:
            before = connections[using]
            connections[using] = before.copy()
            try:
                before.ensure_connection()
                connections[using].set_autocommit(False)
                found = taken(using, logs)
                connections[using].commit()
            finally:
                connections[using].close()
                connections[using] = before
            return found

        buckets.take_positions = apart
        try:
            return super()._insert_all(events, digests)
        finally:
            buckets.take_positions = taken
