"""
Replaying many logs: the rows that they should have, made of events that have been read.

Which of the events are in a row is decided here, for verifying and for rebuilding: those that this
release applies, without those that a person has skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from eventlogs.events.codec import EventReader
from eventlogs.exceptions import KeyUnavailable
from eventlogs.ids import LogId
from eventlogs.models import SkippedEvent
from eventlogs.projections.base import Failed, RowProjection
from eventlogs.projections.releases import APPLY, HOLD, Reading
from eventlogs.projections.rows import chunks
from eventlogs.values import StoredEvent

NONE: Final[frozenset[int]] = frozenset()


def skipped_of(name: str, log_ids: Iterable[LogId], using: str) -> dict[LogId, set[int]]:
    """Return the indexes of skipped events, by log; logs without any are left out."""
    found: dict[LogId, set[int]] = {}
    skips = SkippedEvent.objects.using(using).filter(projection=name)
    for some in chunks(log_ids):
        for log_id, index in skips.filter(log_id__in=some).values_list("log_id", "index"):
            found.setdefault(log_id, set()).add(index)
    return found


class Replayer:
    """Makes rows of logs whose events have been read."""

    def __init__(self, projection: RowProjection, reading: Reading, using: str) -> None:
        self._projection = projection
        self._reading = reading
        self._using = using
        self._reader = EventReader()

    def row(
        self, log_id: LogId, rows: Sequence[StoredEvent], skipped: Collection[int] = NONE
    ) -> tuple[Any, int]:
        """
        Return the row that a log should have after events from its first one on, or None.

        Return also the number of events that it is made of. Raise Failed, with the position, where
        one cannot be applied: its handler raised, it cannot be decoded, or another release has
        to apply it.
        """
        applied = self._applied(log_id, rows, skipped)
        if not applied:
            return None, 0
        count = len(applied)
        if self._projection.folds_whole_logs:  # with the events that a person has skipped
            last = applied[-1].index
            applied = [row for row in rows if row.index <= last]
        at = applied[0].position

        def noted() -> Iterator[StoredEvent]:
            nonlocal at
            for row in applied:
                at = row.position
                yield row

        records = self._reader.records(noted())  # one by one, as they are asked for
        try:
            return self._projection.row_in_memory(log_id, records, self._using), count
        except (Failed, KeyUnavailable):
            raise
        except (Exception, SystemExit) as error:
            raise Failed(at, error) from error

    def _applied(
        self, log_id: LogId, rows: Sequence[StoredEvent], skipped: Collection[int]
    ) -> list[StoredEvent]:
        verdict, applied = self._reading.verdict, []
        for row in rows:
            if skipped and row.index in skipped:
                continue
            found = verdict(row.log_type, row.type, row.schema_version)
            if found is APPLY:
                applied.append(row)
            elif found is HOLD:
                why = self._reading.why_held(log_id, row.index, row.type, row.schema_version)
                raise Failed(row.position, why)
        return applied
