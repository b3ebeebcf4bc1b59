"""Pages of events: sequences of records, with the place where the next page starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import msgspec

from eventlogs.ids import LogId
from eventlogs.values import EventRecord, StoredEvent

__all__ = ["EventPage"]

PAGE_ENCODER = msgspec.json.Encoder()


class RecordPage(Sequence[EventRecord]):
    """The records of a page; what the pages of a log and of the feed have in common."""

    __slots__ = ("_records",)

    def __init__(self, records: Iterable[EventRecord]) -> None:
        self._records = tuple(records)

    @overload
    def __getitem__(self, at: int) -> EventRecord: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[EventRecord]: ...
    def __getitem__(self, at: int | slice) -> EventRecord | Sequence[EventRecord]:
        return self._records[at]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[EventRecord]:
        return iter(self._records)


class EventPage(RecordPage):
    """
    One page of a log.

    ``next_start`` is what to pass as ``start`` for the page after this one, and None on the
    last page. On a page read forwards, "last" means that the log had no more events then.
    """

    __slots__ = ("_stored", "log_id", "next_start")

    def __init__(
        self,
        log_id: LogId,
        records: Sequence[EventRecord],
        stored: Sequence[StoredEvent],
        next_start: int | None,
    ) -> None:
        super().__init__(records)
        self.log_id = log_id
        self.next_start = next_start
        self._stored = tuple(stored)

    def as_json(self) -> str:
        """
        Return the page as JSON text: ``{"log_id", "events", "next_start"}``.

        Each event has the fields of EventRecord, with the stored JSON as ``data`` in the
        place of ``event``: data that no class here can decode goes out as it came in.
        """
        return PAGE_ENCODER.encode(
            {
                "log_id": str(self.log_id),
                "events": [each.as_json() for each in self._stored],
                "next_start": self.next_start,
            }
        ).decode()

    def __repr__(self) -> str:
        return f"<EventPage of {self.log_id}: {len(self)} events, next_start={self.next_start}>"
