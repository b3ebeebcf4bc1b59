"""
Parameters of the admin's addresses: read leniently, since a person may have typed them.

Each reader returns None for text that it cannot read.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.http import HttpRequest
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.utils.translation import gettext as _

MAX_DIGITS: Final = 18  # of a number in an address, which is then less than 2**63
DAYS: Final = ("from", "to")  # the parameters of a range of days


def parameters(request: HttpRequest, names: Iterable[str]) -> dict[str, str]:
    """Return those parameters of an address that have a text, without NUL and outer spaces."""
    # PostgreSQL refuses a NUL in any text.
    found = {name: request.GET.get(name, "").replace("\0", "").strip() for name in names}
    return {name: text for name, text in found.items() if text}


def number_from(text: str | None) -> int | None:
    """Read a position, an index or another key that is a number."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        return None
    return int(text)


def uuid_from(text: str | None) -> UUID | None:
    """Read a UUID."""
    try:
        return UUID(text) if text else None
    except ValueError:
        return None


def day_from(text: str) -> datetime | None:
    """Read a day, and return its first moment in the current time zone."""
    try:
        day = parse_date(text.strip())
    except ValueError:
        return None
    if day is None or not 1970 <= day.year <= 9000:
        return None
    return timezone.make_aware(datetime(day.year, day.month, day.day))


def days_from(query: dict[str, str], problems: list[str]) -> tuple[datetime | None, ...]:
    """
    Return the first moment of the days ``from`` to ``to``, and the first moment after them.

    A text that is not a date is removed from ``query``, and adds a text to ``problems``.
    """
    moments: list[datetime | None] = []
    for name, later in zip(DAYS, (timedelta(), timedelta(days=1)), strict=True):
        moment = day_from(query[name]) if name in query else None
        if name in query and moment is None:
            text = query.pop(name)[:40]
            problems.append(
                _("The date %(text)s cannot be read. Write it as 2026-11-27.") % {"text": text}
            )
        moments.append(None if moment is None else moment + later)
    begin, end = moments
    if begin is not None and end is not None and begin >= end:
        problems.append(_("The first day is later than the last day."))
    return begin, end


def choices(known: Iterable[str], asked: str | None) -> list[str]:
    """Return the choices of a filter: those that are known here, and the one that is asked for."""
    return sorted({*known, *([] if asked is None else [asked])})
