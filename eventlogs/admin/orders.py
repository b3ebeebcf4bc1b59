"""
The orders in which events are paged, and where a page begins in them.

By position, for all events; by index, for the events of one log; and by time, where days are
asked for. An import or a restore gives old events new positions, so events of one day need not
lie side by side by position. By time they do, and an index has them (migration 0005).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from django.db.models import Q, QuerySet

from eventlogs.models import Event

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
LONGEST: Final = 18  # digits of a number in an address: less than 2**63


class Key(NamedTuple):
    """A place in an order: a number, and for the order of times the time that comes first."""

    number: int
    time: datetime | None = None

    def just_below(self) -> Key:
        """Return a key below this one with nothing in between."""
        return Key(self.number - 1, self.time)

    def just_above(self) -> Key:
        """Return a key above this one with nothing in between."""
        return Key(self.number + 1, self.time)


class Order(ABC):
    """An order of events, along an index; the newest events are the last."""

    fields: tuple[str, ...]

    @abstractmethod
    def key_of(self, event: Event) -> Key:
        """Return an event's place."""

    @abstractmethod
    def above(self, rows: QuerySet[Any], key: Key) -> QuerySet[Any]:
        """Keep the events behind a place: the newer ones."""

    @abstractmethod
    def below(self, rows: QuerySet[Any], key: Key) -> QuerySet[Any]:
        """Keep the events before a place: the older ones."""

    @abstractmethod
    def edge(self, rows: QuerySet[Any], span: int, *, up: bool) -> Key | None:
        """
        Return the last place of a window that begins with the first of ``rows``.

        A window has ``span`` events at most. None: ``rows`` are no more than that.
        """

    @abstractmethod
    def text(self, key: Key) -> str:
        """Write a place for an address."""

    @abstractmethod
    def read(self, text: str | None) -> Key | None:
        """Read a place from an address, None for anything else."""

    def sorted(self, rows: QuerySet[Any], *, up: bool) -> QuerySet[Any]:
        """Sort events: the oldest first, or the newest."""
        return rows.order_by(*(name if up else f"-{name}" for name in self.fields))


class ByNumber(Order):
    """By the position of an event, or by its index in its log."""

    def __init__(self, field: str) -> None:
        self._field = field
        self.fields = (field,)

    def key_of(self, event: Event) -> Key:
        """Return an event's number."""
        return Key(getattr(event, self._field))

    def above(self, rows: QuerySet[Any], key: Key) -> QuerySet[Any]:
        """Keep higher numbers."""
        return rows.filter(**{f"{self._field}__gt": key.number})

    def below(self, rows: QuerySet[Any], key: Key) -> QuerySet[Any]:
        """Keep lower numbers."""
        return rows.filter(**{f"{self._field}__lt": key.number})

    def edge(self, rows: QuerySet[Any], span: int, *, up: bool) -> Key | None:
        """Return a number: between two numbers there are no more events than numbers."""
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


class ByTime(Order):
    """By the time when an event was recorded, and by its position among those of that time."""

    fields = ("recorded_at", "position")

    def key_of(self, event: Event) -> Key:
        """Return an event's time and position."""
        return Key(event.position, event.recorded_at)

    def above(self, rows: QuerySet[Any], key: Key) -> QuerySet[Any]:
        """Keep later events."""
        later = Q(recorded_at__gt=key.time) | Q(position__gt=key.number)
        return rows.filter(later, recorded_at__gte=key.time)

    def below(self, rows: QuerySet[Any], key: Key) -> QuerySet[Any]:
        """Keep earlier events."""
        earlier = Q(recorded_at__lt=key.time) | Q(position__lt=key.number)
        return rows.filter(earlier, recorded_at__lte=key.time)

    def edge(self, rows: QuerySet[Any], span: int, *, up: bool) -> Key | None:
        """Return the place of event number ``span``, counted along the index."""
        # An OFFSET, but never of more events than the window's statement reads itself.
        names = ("position", "recorded_at")
        last = self.sorted(rows, up=up).values_list(*names)[span - 1 : span].first()
        return None if last is None else Key(*last)

    def text(self, key: Key) -> str:
        """Write microseconds since 1970, a point, and a position."""
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


def number_from(text: str | None) -> int | None:
    """Read a position or an index, None for anything else."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= LONGEST):
        return None
    return int(text)
