"""
Keyset paging: pages that cost the same wherever they are, and stay where they are.

A page is asked for by the key that it begins behind, never by its number: OFFSET reads all that
it passes over, and COUNT(*) the whole table. New rows do not push others to another page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from django.db.models import QuerySet

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Rows, the newest first, and the queries of the pages around them, None for none."""

    rows: list[T]
    first: str | None
    newer: str | None
    older: str | None
    last: str | None


def page(
    rows: QuerySet[Any],
    *,
    field: str,
    before: Any,
    after: Any,
    size: int,
    query: Mapping[str, str],
    text: Callable[[Any], str] = str,
) -> Page[Any]:
    """
    Return a page of ``rows``: those before a key, those after one, or the newest.

    ``query`` are the other parameters of the address. At most ``size + 1`` rows are read, along
    the index of ``field``.
    """
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
        return Page([], link() if has_newer else None, None, None, None)
    newest, oldest = text(getattr(found[0], field)), text(getattr(found[-1], field))
    return Page(
        found,
        first=link() if has_newer else None,
        newer=link(after=newest) if has_newer else None,
        older=link(before=oldest) if has_older else None,
        last=link(end="1") if has_older else None,
    )
