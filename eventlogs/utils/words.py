"""Counts and durations as people say them in a sentence: "1 event", "12 minutes"."""

from __future__ import annotations


def counted(count: float, one: str, many: str = "") -> str:
    """Return a number of things: "1 event", "1,804 events"."""
    return f"{count:,.0f} {one if count == 1 else many or one + 's'}"


def seconds(value: float) -> str:
    """Return a duration in its largest unit: "40 seconds", "12 minutes", "3 hours", "2 days"."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if value >= 2 * length:
            return f"{value / length:,.0f} {unit}s"
    return counted(round(value), "second")
