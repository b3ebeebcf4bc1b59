"""The stored events of one log, in pages and one by one, as the feed returns them."""

from __future__ import annotations

from typing import Final

from eventlogs.events.codec import FeedRow
from eventlogs.ids import LogId
from eventlogs.models import SkippedEvent
from eventlogs.projections.releases import PASS, Reading
from eventlogs.stores import store_for

PAGE: Final = 200  # events of a held log that are read at once

# Of a FeedRow.
LOG_TYPE: Final = 0
LOG: Final = 1
INDEX: Final = 2
POSITION: Final = 3
TYPE: Final = 4
SCHEMA_VERSION: Final = 5


def log_id_of(row: FeedRow) -> LogId:
    """Return the id of the log that an event is in."""
    return LogId.stored(row[LOG_TYPE], row[LOG])


def page_of(log_id: LogId, start: int, using: str) -> list[FeedRow]:
    """Return a page of a log's events from an index on."""
    stored = store_for(using).events(log_id, start=start, limit=PAGE)
    return [(log_id.log_type, log_id.uuid, *event) for event in stored]


def event_at(log_id: LogId, index: int, using: str) -> FeedRow | None:
    """Return one event of a log, or None where there is none at the index."""
    return next(iter(page_of(log_id, index, using)), None)


def next_event(
    reading: Reading, projection: str, log_id: LogId, index: int, upto: int, using: str
) -> FeedRow | None:
    """
    Return the first event behind ``index`` that is to be applied or held; None for none.

    Events behind the position ``upto`` are left out, as are those that a person has skipped.
    """
    skips = SkippedEvent.objects.using(using).filter(projection=projection, log_id=log_id)
    skipped = set(skips.values_list("index", flat=True))
    while page := page_of(log_id, index + 1, using):
        for row in page:
            if row[POSITION] > upto:
                return None
            if row[INDEX] in skipped:
                continue
            if reading.verdict(row[LOG_TYPE], row[TYPE], row[SCHEMA_VERSION]) is not PASS:
                return row
        index = page[-1][INDEX]
    return None
