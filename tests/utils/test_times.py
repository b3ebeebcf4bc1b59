"""Times in text have a time zone in every project."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from django.utils.timezone import override

from eventlogs.utils.times import duration, time_text

MOMENT = datetime(2026, 11, 27, 6, 14, 30, 123_456, UTC)


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("UTC", "2026-11-27 06:14:30 UTC"),
        ("Europe/Berlin", "2026-11-27 07:14:30 UTC+01:00"),
        ("America/St_Johns", "2026-11-27 02:44:30 UTC-03:30"),
        ("Asia/Kolkata", "2026-11-27 11:44:30 UTC+05:30"),
        ("Pacific/Kiritimati", "2026-11-27 20:14:30 UTC+14:00"),
    ],
)
def test_a_time_is_in_the_current_zone_and_says_which(zone, text):
    with override(ZoneInfo(zone)):
        assert time_text(MOMENT) == text


def test_digits_of_a_second_are_asked_for():
    assert time_text(MOMENT, timespec="milliseconds") == "2026-11-27 06:14:30.123 UTC"
    assert time_text(MOMENT, timespec="microseconds") == "2026-11-27 06:14:30.123456 UTC"
    whole = MOMENT.replace(microsecond=0)
    assert time_text(whole, timespec="microseconds") == "2026-11-27 06:14:30.000000 UTC"


def test_the_hour_that_a_clock_repeats_in_autumn_is_unambiguous():
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)

    with override(ZoneInfo("Europe/Berlin")):
        assert time_text(first) == "2026-10-25 02:30:00 UTC+02:00"
        assert time_text(first + timedelta(hours=1)) == "2026-10-25 02:30:00 UTC+01:00"


def test_the_zone_that_a_moment_came_with_does_not_matter():
    assert time_text(MOMENT.astimezone(timezone(timedelta(hours=9)))) == "2026-11-27 06:14:30 UTC"


def test_a_naive_moment_is_in_the_zone_of_the_settings(settings):
    settings.TIME_ZONE = "Europe/Berlin"
    with override(ZoneInfo("UTC")):
        assert time_text(MOMENT.replace(tzinfo=None)) == "2026-11-27 05:14:30 UTC"


def test_none_is_shown_as_empty_text():
    assert time_text(None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.2, "0.0 s"),
        (3.21, "3.2 s"),
        (250, "4 min 10 s"),
        (7_380, "2 h 3 min"),
        (86_400 * 5 + 7_300, "5 d 2 h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text
    assert duration(timedelta(seconds=seconds)) == text
