"""
What keeps a log in its database for now: those who have still to read its events there.

A projection that holds the log has still to apply its events. A reactor that has not come to the
last one would never react to it: it passes over the copies in the target, because the reactors of
the source have reacted to these events.
"""

from __future__ import annotations

import time
from typing import Final

from django.db.models import Max

from eventlogs.exceptions import CannotMove
from eventlogs.feed import scans
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.models import EventLog, ParkedEvent
from eventlogs.operations.archiving.choosing import limit_of, without_inline_rows

PAUSE: Final = 0.05  # seconds between two looks


def wait(log_id: LogId, *, source: str, target: str, timeout: float) -> None:
    """
    Wait until projections and reactors have come to the last event that a log has now.

    Raise CannotMove if one of them holds the log, or after ``timeout`` seconds.
    """
    until = time.monotonic() + timeout
    events = scans.events_of(source).filter(log_id=log_id.uuid)
    last = events.aggregate(last=Max("position"))["last"] or 0
    while True:
        limit = limit_of(source, log_id.log_type)
        # After the look at the checkpoints: a worker that holds a log moves its checkpoint past the
        # event at the same time.
        refuse_held(log_id, source=source, target=target)
        if limit.position >= last:
            return
        if time.monotonic() >= until:
            raise CannotMove(
                log_id,
                reason="behind" if limit.projection else "unsettled",
                using=source,
                to=target,
                projection=limit.projection,
            )
        time.sleep(PAUSE)


def refuse_held(log_id: LogId, *, source: str, target: str) -> None:
    """Raise CannotMove if a projection holds the log for an event that it cannot apply."""
    held = ParkedEvent.objects.using(source).filter(log_id=log_id).order_by("projection")
    for name in held.values_list("projection", flat=True)[:1]:
        raise CannotMove(log_id, reason="held", using=source, to=target, projection=name)


def refuse_inline(log_id: LogId, *, source: str, target: str) -> None:
    """Raise CannotMove if an inline projection lacks events: only imported ones, as a rule."""
    row = EventLog.objects.using(source).filter(pk=log_id.uuid, log_type=log_id.log_type).first()
    if row is None:
        return
    _, limit = without_inline_rows(source, [LogRow.of(row)])
    if limit is not None:
        raise CannotMove(
            log_id, reason="behind", using=source, to=target, projection=limit.projection
        )
