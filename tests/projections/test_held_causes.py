"""Held logs in groups: one bug is one group for any number of logs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from eventlogs import LogId
from eventlogs.models import ParkedEvent
from eventlogs.projections.held_causes import HeldGroup, groups

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def hold(count=1, *, minutes=0, **values):
    failed_at = NOON + timedelta(minutes=minutes)
    values = {
        "projection": "summary",
        "index": 1,
        "position": 2,
        "type": "payment.captured",
        "attempts": 5,
        "error": "ZeroDivisionError",
        "handler": "captured",
        "first_failed_at": failed_at,
        "failed_at": failed_at + timedelta(seconds=30),
        **values,
    }
    ParkedEvent.objects.bulk_create(
        ParkedEvent(log_id=LogId.new("payment"), **values) for _ in range(count)
    )


def test_one_bug_is_one_group_with_its_number_of_logs_and_its_start(
    django_assert_num_queries,
):
    hold(3)
    hold(2, minutes=5)
    hold(1, error="KeyError", handler="")

    with django_assert_num_queries(1):
        found = groups("default")

    assert found[0] == HeldGroup(
        projection="summary",
        state="parked",
        error="ZeroDivisionError",
        handler="captured",
        type="payment.captured",
        schema_version=1,
        logs=5,
        first_failed_at=NOON,
        failed_at=NOON + timedelta(minutes=5, seconds=30),
    )
    assert [each.headline for each in found] == [
        "5 parked: ZeroDivisionError in captured()",
        "1 parked: KeyError",
    ]


def test_events_that_need_action_are_grouped_apart_from_automatic_retries():
    hold(1)
    hold(2, retry_at=NOON)
    hold(3, awaits="a mark", attempts=0, type="payment.refunded", schema_version=2, error="Unknown")
    hold(1, awaits="another mark", attempts=0, type="payment.refunded", schema_version=2, error="")
    hold(7, retry_at=NOON, error="", handler="", type="payment.noted")

    assert [each.headline for each in groups("default")] == [
        "7 waiting for a retry: not tried yet",
        "4 waiting for a release: payment.refunded version 2",
        "2 waiting for a retry: ZeroDivisionError in captured()",
        "1 parked: ZeroDivisionError in captured()",
    ]


def test_events_held_only_by_a_rebuild_are_no_group():
    hold(is_rebuild=True)

    assert groups("default") == []


def test_groups_can_be_limited_to_some_projections():
    hold()
    hold(projection="letters")

    assert [each.projection for each in groups("default", ["letters"])] == ["letters"]
    assert groups("default", []) == []
