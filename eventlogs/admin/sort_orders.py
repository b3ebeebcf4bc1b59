"""
The orders in which pages show events, and the keys of events in these orders.

All events are ordered by position, the events of one log by index, and the events of some days by
time. An import or a restore gives old events new positions, so the events of one day may lie far
apart in the order of positions. In the order of times they are adjacent, and an index has that
order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from django.db.models import Q, QuerySet

from eventlogs import conf
from eventlogs.admin.parameters import number_from
from eventlogs.models import Event

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


class Key(NamedTuple):
    """The key of an event: its number, and in the order of times its time, which sorts first."""

    number: int
    time: datetime | None = None

    def next(self, *, up: bool) -> Key:
        """Return the next higher or the next lower key."""
        return Key(self.number + (1 if up else -1), self.time)


class SortOrder(ABC):
    """An order of events that an index has; newer events have higher keys."""

    fields: tuple[str, ...]

    @abstractmethod
    def key_of(self, event: Event) -> Key:
        """Return the key of an event."""

    @abstractmethod
    def beyond(self, rows: QuerySet[Any], key: Key, *, up: bool) -> QuerySet[Any]:
        """Keep the events with higher keys, the newer ones, or those with lower keys."""

    @abstractmethod
    def edge(self, rows: QuerySet[Any], span: int, *, up: bool) -> Key | None:
        """
        Return the last key of a window of at most ``span`` events, from the first of ``rows`` on.

        None: the window has all of ``rows``.
        """

    @abstractmethod
    def text(self, key: Key) -> str:
        """Return a key as text for an address."""

    @abstractmethod
    def read(self, text: str | None) -> Key | None:
        """Read a key from an address; return None for any other text."""

    def sorted(self, rows: QuerySet[Any], *, up: bool) -> QuerySet[Any]:
        """Sort events by their keys: upwards, the oldest first, or downwards."""
        return rows.order_by(*(name if up else f"-{name}" for name in self.fields))


class ByNumber(SortOrder):
    """The order of positions, or of the indexes of one log."""

    def __init__(self, field: str) -> None:
        self._field = field
        self.fields = (field,)

    def key_of(self, event: Event) -> Key:
        """Return the position or index of an event."""
        return Key(getattr(event, self._field))

    def beyond(self, rows: QuerySet[Any], key: Key, *, up: bool) -> QuerySet[Any]:
        """Keep higher or lower numbers."""
        return rows.filter(**{f"{self._field}__{'gt' if up else 'lt'}": key.number})

    def edge(self, rows: QuerySet[Any], span: int, *, up: bool) -> Key | None:
        """Return the last number: a range of numbers has no more events than numbers."""
        if self._field == "position" and conf.has_buckets():
            # Positions are far apart: count the events, as a window by time does.
            numbers = self.sorted(rows, up=up).values_list(self._field, flat=True)
            counted: int | None = numbers[span - 1 : span].first()
            return None if counted is None else Key(counted)
        ends = [
            self.sorted(rows, up=each).values_list(self._field, flat=True)[:1].first()
            for each in (up, not up)
        ]
        first, last = ends
        if first is None or abs(last - first) < span:
            return None
        return Key(first + span - 1 if up else first - span + 1)

    def text(self, key: Key) -> str:
        """Write a number."""
        return str(key.number)

    def read(self, text: str | None) -> Key | None:
        """Read a number."""
        return None if (number := number_from(text)) is None else Key(number)


class ByTime(SortOrder):
    """The order of ``recorded_at``, and of positions among the events of one moment."""

    fields = ("recorded_at", "position")

    def key_of(self, event: Event) -> Key:
        """Return the time and position of an event."""
        return Key(event.position, event.recorded_at)

    def beyond(self, rows: QuerySet[Any], key: Key, *, up: bool) -> QuerySet[Any]:
        """Keep later or earlier events."""
        if up:
            later = Q(recorded_at__gt=key.time) | Q(position__gt=key.number)
            return rows.filter(later, recorded_at__gte=key.time)
        earlier = Q(recorded_at__lt=key.time) | Q(position__lt=key.number)
        return rows.filter(earlier, recorded_at__lte=key.time)

    def edge(self, rows: QuerySet[Any], span: int, *, up: bool) -> Key | None:
        """Return the key of event number ``span``, counted along the index."""
        # This OFFSET skips no more events than the statement that searches the window reads.
        names = ("position", "recorded_at")
        last = self.sorted(rows, up=up).values_list(*names)[span - 1 : span].first()
        return None if last is None else Key(*last)

    def text(self, key: Key) -> str:
        """Return microseconds since 1970, a point, and a position."""
        assert key.time is not None
        return f"{(key.time - EPOCH) // MICROSECOND}.{key.number}"

    def read(self, text: str | None) -> Key | None:
        """Read both numbers."""
        parts = [number_from(each) for each in (text or "").split(".")]
        if len(parts) != 2 or parts[0] is None or parts[1] is None:
            return None
        try:
            return Key(parts[1], EPOCH + parts[0] * MICROSECOND)
        except OverflowError:
            return None
