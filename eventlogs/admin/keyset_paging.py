"""
Keyset paging: each page costs the same, and its rows stay on it while others are added.

An address names the key before or after which a page begins, never a page number. A page number
would need an OFFSET, which reads all rows that it skips, and COUNT(*) reads the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from django.db.models import QuerySet

from eventlogs.admin.parameters import number_from

T = TypeVar("T")
Read = Callable[[str | None], Any]


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
    field: str,
    size: int,
    asked: Mapping[str, str],
    query: Mapping[str, str],
    read: Read = number_from,
    text: Callable[[Any], str] = str,
    lowest: Any = -1,
) -> KeysetPage[Any]:
    """
    Return the page of ``rows`` that the parameters ``asked`` of an address name.

    These are ``before=<key>``, ``after=<key>`` or ``end=1`` (the oldest rows); without them, it is
    the page of the newest rows. ``read`` and ``text`` convert a key from and to text, and
    ``lowest`` is a key below all others. ``query`` holds the other parameters of the links. At most
    ``size + 1`` rows are read, along the index of ``field``.
    """
    before = read(asked.get("before"))
    after = lowest if asked.get("end") == "1" else read(asked.get("after"))
    if after is not None:
        found = list(rows.filter(**{f"{field}__gt": after}).order_by(field)[: size + 1])
        has_newer, has_older = len(found) > size, True
        found = found[:size][::-1]
    else:
        wanted = rows if before is None else rows.filter(**{f"{field}__lt": before})
        found = list(wanted.order_by(f"-{field}")[: size + 1])
        has_newer, has_older = before is not None, len(found) > size
        found = found[:size]

    def link(**more: str) -> str:
        return "?" + urlencode({**query, **more})

    if not found:
        return KeysetPage([], link() if has_newer else None, None, None, None)
    newest, oldest = text(getattr(found[0], field)), text(getattr(found[-1], field))
    return KeysetPage(
        found,
        first=link() if has_newer else None,
        newer=link(after=newest) if has_newer else None,
        older=link(before=oldest) if has_older else None,
        last=link(end="1") if has_older else None,
    )
