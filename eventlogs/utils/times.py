"""
Times as text for people: with their time zone, the same in the admin and in commands.

The zone is Django's current one: TIME_ZONE, or the one that a project's middleware activated.
It is written as its distance from UTC, because abbreviations are not unique: IST is a time in
India, in Ireland and in Israel. Programs get ISO 8601 in UTC instead; see
``eventlogs.management.json_values.plain``.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.utils import timezone


def time_text(moment: datetime | None, *, timespec: str = "seconds") -> str:
    """
    Return a moment as text: ``2026-11-27 06:14:30 UTC``, or ``2026-11-27 07:14:30 UTC+01:00``.

    ``timespec`` is that of ``datetime.isoformat``: ``"seconds"``, ``"milliseconds"`` or
    ``"microseconds"``. None is the empty text. A naive moment is taken to be in TIME_ZONE, as
    Django stores it where USE_TZ is off.
    """
    if moment is None:
        return ""
    local = localized(moment)
    text = local.replace(tzinfo=None).isoformat(sep=" ", timespec=timespec)
    return f"{text} {zone_text(local)}"


def utc_text(moment: datetime, *, timespec: str) -> str:
    """Return a moment in ISO 8601, in UTC: ``2026-11-27T06:14:30Z``."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def zone_text(moment: datetime) -> str:
    """Return the offset of a moment's time zone: ``UTC``, ``UTC+01:00``, ``UTC-03:30``."""
    offset = localized(moment).utcoffset() or timedelta()
    minutes = round(offset / timedelta(minutes=1))
    if not minutes:
        return "UTC"
    hours, rest = divmod(abs(minutes), 60)
    return f"UTC{'-' if minutes < 0 else '+'}{hours:02d}:{rest:02d}"


def localized(moment: datetime) -> datetime:
    """Return a moment in Django's current time zone."""
    if timezone.is_naive(moment):
        moment = timezone.make_aware(moment, timezone.get_default_timezone())
    return timezone.localtime(moment)


def duration(value: timedelta | float) -> str:
    """Return a duration as text: "3.2 s", "4 min 10 s", "2 h 3 min", "5 d 2 h"."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days:,} d {hours} h"
