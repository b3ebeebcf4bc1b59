"""Projections with all kinds of problems, for the pages and commands that report them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from eventlogs import LogId
from eventlogs.models import Checkpoint, ParkedEvent, ProjectionAction, ProjectionState
from eventlogs.projections.base import projections
from tests.projections.readmodels import Letters

LONG_NAME = "letters-" + "of-accounts-that-were-closed-" * 3 + "x"
MANY = 1_804


def hold(
    count: int,
    *,
    projection: str = "payment-summary",
    error: str = "ZeroDivisionError",
    handler: str = "captured",
    first: int = 1_000,
    **more: object,
) -> list[ParkedEvent]:
    """Park an event in each of several payments."""
    now = timezone.now()
    return ParkedEvent.objects.bulk_create(
        ParkedEvent(
            **{
                "projection": projection,
                "log_id": LogId.new("payment"),
                "index": number % 40,
                "position": first + number,
                "type": "payment.captured",
                "attempts": 5,
                "error": error,
                "handler": handler,
                "details": "Traceback (most recent call last):\n  …\nZeroDivisionError: 4111",
                "first_failed_at": now - timedelta(hours=2),
                "failed_at": now - timedelta(minutes=number % 60),
                **more,
            }
        )
        for number in range(count)
    )


def create_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store 1,804 parked events of one bug, and events held for other causes."""
    now = timezone.now()
    long = type("LettersOfAccounts", (Letters,), {"__doc__": "Letters.", "name": LONG_NAME})
    monkeypatch.setitem(projections, LONG_NAME, long)
    hold(MANY)
    hold(3, error="ConnectionRefusedError", handler="authorized", first=10_000)
    hold(2, error="TimeoutError", first=11_000, retry_at=now + timedelta(minutes=3))
    hold(
        7,
        error="",
        handler="",
        first=12_000,
        attempts=0,
        awaits="x",
        type="payment.disputed",
        schema_version=2,
    )
    hold(
        12,
        projection=LONG_NAME,
        error="AnErrorOfALibraryWhoseNameIsVeryLongIndeed" * 2,
        handler="a_handler_with_a_name_that_somebody_has_thought_about_for_a_long_time",
        type="account." + "closed-by-the-holder-" * 4,
    )
    ProjectionState.objects.update_or_create(
        name="fine-balance",
        defaults={
            "version": 1,
            "mode": "async",
            "partitions": 1,
            "rebuild_version": 1,
            "rebuild_started_at": now - timedelta(minutes=7),
            "rebuild_error": "Projection 'fine-balance' could not apply the event at position 7.",
        },
    )
    for is_rebuild, position in ((False, 3), (True, 1)):
        Checkpoint.objects.update_or_create(
            projection="fine-balance",
            is_rebuild=is_rebuild,
            partition=0,
            defaults={"partitions": 1, "position": position, "applied": position, "moved_at": now},
        )
    some = LogId.new("payment")
    kinds: list[tuple[str, dict[str, Any]]] = [
        (ProjectionAction.RETRIED, {"count": MANY, "note": "ZeroDivisionError in captured()"}),
        (ProjectionAction.SKIPPED, {"log_id": some, "index": 3, "count": 1, "note": "x: KeyError"}),
        (ProjectionAction.REBUILD_REQUESTED, {}),
        (ProjectionAction.REBUILD_FAILED, {"seconds": 71.3, "note": "OperationalError"}),
        (ProjectionAction.REBUILT, {"seconds": 4_271.3, "count": 1_333_500}),
    ]
    ProjectionAction.objects.bulk_create(
        ProjectionAction(
            projection="payment-summary" if number % 3 else LONG_NAME,
            action=kinds[number % 5][0],
            by="grace" if number % 2 else "",
            at=now - timedelta(minutes=60 - number),
            **kinds[number % 5][1],
        )
        for number in range(60)
    )
