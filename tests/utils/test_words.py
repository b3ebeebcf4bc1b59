"""Counts and durations in words."""

from __future__ import annotations

import pytest

from eventlogs.utils.words import counted, seconds


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (counted(0, "event"), "0 events"),
        (counted(1, "event"), "1 event"),
        (counted(1_804, "event was", "events were"), "1,804 events were"),
        (counted(1, "entry", "entries"), "1 entry"),
        (seconds(0.4), "0 seconds"),
        (seconds(1.2), "1 second"),
        (seconds(119), "119 seconds"),
        (seconds(720), "12 minutes"),
        (seconds(2 * 86_400), "2 days"),
    ],
)
def test_the_plural_is_not_used_for_one(text, wanted):
    assert text == wanted
