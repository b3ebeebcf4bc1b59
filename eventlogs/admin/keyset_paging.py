"""
Keyset paging: each page costs the same, and its rows stay on it while others are added.

An address names the key before or after which a page begins, never a page number. A page number
would need an OFFSET, which reads all rows that it skips, and COUNT(*) reads the whole table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlencode

from django.db.models import Q, QuerySet

from eventlogs.admin.parameters import number_from, uuid_from

T = TypeVar("T")

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


class KeysetOrder(ABC):
    """An order of rows that an index has, and the keys of rows in it; newer rows come later."""

    fields: tuple[str, ...]

    @abstractmethod
    def beyond(self, rows: QuerySet[Any], key: Any, *, up: bool) -> QuerySet[Any]:
        """Keep the rows after a key, or with ``up`` False those before it."""

    @abstractmethod
    def text(self, row: Any) -> str:
        """Return the key of a row, as text for an address."""

    @abstractmethod
    def read(self, text: str | None) -> Any:
        """Read a key from an address; return None for any other text."""

    def sorted(self, rows: QuerySet[Any], *, up: bool) -> QuerySet[Any]:
        """Sort rows by their keys, upwards or downwards."""
        return rows.order_by(*(name if up else f"-{name}" for name in self.fields))


class ByNumber(KeysetOrder):
    """The order of a column of numbers that differ, such as an id."""

    def __init__(self, field: str) -> None:
        self._field = field
        self.fields = (field,)

    def beyond(self, rows: QuerySet[Any], key: Any, *, up: bool) -> QuerySet[Any]:
        return rows.filter(**{f"{self._field}__{'gt' if up else 'lt'}": key})

    def text(self, row: Any) -> str:
        return str(getattr(row, self._field))

    def read(self, text: str | None) -> Any:
        return number_from(text)


class ByUUID(KeysetOrder):
    """The order of ids that are UUIDs."""

    fields = ("id",)

    def beyond(self, rows: QuerySet[Any], key: Any, *, up: bool) -> QuerySet[Any]:
        return rows.filter(id__gt=key) if up else rows.filter(id__lt=key)

    def text(self, row: Any) -> str:
        return str(row.id.hex)

    def read(self, text: str | None) -> Any:
        return uuid_from(text)


class ByCreation(KeysetOrder):
    """The order of ``created_at``, and of ids among the rows of one moment."""

    fields = ("created_at", "id")

    def beyond(self, rows: QuerySet[Any], key: Any, *, up: bool) -> QuerySet[Any]:
        moment, last = key
        # The last condition alone is a range of the index.
        if up:
            later = Q(created_at__gt=moment) | Q(id__gt=last)
            return rows.filter(later, created_at__gte=moment)
        earlier = Q(created_at__lt=moment) | Q(id__lt=last)
        return rows.filter(earlier, created_at__lte=moment)

    def text(self, row: Any) -> str:
        """Return microseconds since 1970, a point, and the digits of the id."""
        return f"{(row.created_at - EPOCH) // MICROSECOND}.{row.id.hex}"

    def read(self, text: str | None) -> Any:
        microseconds, _, digits = (text or "").partition(".")
        number, last = number_from(microseconds), uuid_from(digits)
        if number is None or last is None:
            return None
        try:
            return EPOCH + number * MICROSECOND, last
        except OverflowError:
            return None


@dataclass(frozen=True, slots=True)
class KeysetPage(Generic[T]):
    """Rows, newest first, and the query strings of the pages around them (None: no such page)."""

    rows: list[T]
    first: str | None
    newer: str | None
    older: str | None
    last: str | None


def keyset_page(
    rows: QuerySet[Any],
    *,
    order: KeysetOrder,
    size: int,
    asked: Mapping[str, str],
    query: Mapping[str, str],
) -> KeysetPage[Any]:
    """
    Return the page of ``rows`` that the parameters ``asked`` of an address name.

    These are ``before=<key>``, ``after=<key>`` or ``end=1`` (the oldest rows); without them, it is
    the page of the newest rows. ``query`` holds the other parameters of the links. At most
    ``size + 1`` rows are read, along the index that has ``order``.
    """
    before, after = order.read(asked.get("before")), order.read(asked.get("after"))
    is_end = asked.get("end") == "1"
    if is_end or after is not None:
        wanted = rows if is_end else order.beyond(rows, after, up=True)
        found = list(order.sorted(wanted, up=True)[: size + 1])
        has_newer, has_older = len(found) > size, True
        found = found[:size][::-1]
    else:
        wanted = rows if before is None else order.beyond(rows, before, up=False)
        found = list(order.sorted(wanted, up=False)[: size + 1])
        has_newer, has_older = before is not None, len(found) > size
        found = found[:size]

    def link(**more: str) -> str:
        return "?" + urlencode({**query, **more})

    if not found:
        return KeysetPage([], link() if has_newer else None, None, None, None)
    newest, oldest = order.text(found[0]), order.text(found[-1])
    return KeysetPage(
        found,
        first=link() if has_newer else None,
        newer=link(after=newest) if has_newer else None,
        older=link(before=oldest) if has_older else None,
        last=link(end="1") if has_older else None,
    )
