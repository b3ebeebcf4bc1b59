"""A page of a log's events: a sequence of records, and where the next page starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import msgspec

from eventlogs.events.codec import StoredEvent
from eventlogs.events.registry import EventRecord
from eventlogs.ids import LogId

__all__ = ["EventPage"]

PAGE_ENCODER = msgspec.json.Encoder()


class EventPage(Sequence[EventRecord]):
    """
    One page of a log.

    ``next_start`` is what to pass as ``start`` for the page after this one, and None on the
    last page. On a page read forwards, "last" means that the log had no more events then.
    """

    __slots__ = ("_records", "_rows", "log_id", "next_start")

    def __init__(
        self,
        log_id: LogId,
        records: Sequence[EventRecord],
        rows: Sequence[StoredEvent],
        next_start: int | None,
    ) -> None:
        self.log_id = log_id
        self.next_start = next_start
        self._records = tuple(records)
        self._rows = tuple(rows)

    def as_json(self) -> str:
        """
        Return the page as JSON text: ``{"log_id", "events", "next_start"}``.

        Each event has the fields of EventRecord, with the stored JSON as ``data`` in the
        place of ``event``: data that no class here can decode goes out as it came in.
        """
        return PAGE_ENCODER.encode(
            {
                "log_id": str(self.log_id),
                "events": [_as_json(self.log_id, row) for row in self._rows],
                "next_start": self.next_start,
            }
        ).decode()

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

    def __repr__(self) -> str:
        return f"<EventPage of {self.log_id}: {len(self)} events, next_start={self.next_start}>"


def _as_json(log_id: LogId, row: StoredEvent) -> dict[str, Any]:
    index, position, name, version, data, metadata, key, recorded_at = row
    return {
        "log_id": str(log_id),
        "index": index,
        "position": position,
        "type": name,
        "schema_version": version,
        "data": msgspec.Raw(data),
        "metadata": msgspec.Raw(metadata),
        "idempotency_key": key,
        "recorded_at": recorded_at,
    }
