"""
The stored events of one log, in pages and one by one.

Held logs are never archived. One that is being moved to another database is read as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from eventlogs.archives.read_through import pages_through
from eventlogs.ids import LogId
from eventlogs.models import SkippedEvent
from eventlogs.projections.releases import PASS, Reading
from eventlogs.stores import store_for
from eventlogs.stores.leaving import page_of_leaving
from eventlogs.values import StoredEvent

PAGE: Final = 200  # events of a held log that are read at once


def page_of(log_id: LogId, start: int, using: str) -> Sequence[StoredEvent]:
    """Return a page of a log's events from an index on."""
    page = store_for(using).events(log_id, start=start, limit=PAGE)
    return page or page_of_leaving(using, log_id, start=start, limit=PAGE)


def pages_of(log_id: LogId, start: int, using: str) -> Iterator[Sequence[StoredEvent]]:
    """Yield pages of a log's events from an index on, also those of an archived log."""
    return pages_through(store_for(using), log_id, start=start)


def event_at(log_id: LogId, index: int, using: str) -> StoredEvent | None:
    """Return one event of a log, or None where there is none at the index."""
    return next(iter(page_of(log_id, index, using)), None)


def next_event(
    reading: Reading, projection: str, log_id: LogId, index: int, upto: int, using: str
) -> StoredEvent | None:
    """
    Return the first event after ``index`` that is to be applied or held; None for none.

    Events after the position ``upto`` are left out, as are those that a person has skipped.
    """
    skips = SkippedEvent.objects.using(using).filter(projection=projection, log_id=log_id)
    skipped = set(skips.values_list("index", flat=True))
    while page := page_of(log_id, index + 1, using):
        for row in page:
            if row.position > upto:
                return None
            if row.index in skipped:
                continue
            if reading.verdict(row.log_type, row.type, row.schema_version) is not PASS:
                return row
        index = page[-1].index
    return None
