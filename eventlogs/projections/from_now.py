"""
Passing over old events: a reactor's checkpoints are moved to the end of the feed.

After an import of old logs the feed has events of years ago. Rows need them; a reactor would
send e-mails for them. ``eventlogs project NAME --from-now`` passes over them.

One short transaction locks the checkpoints, as a worker's batch does, moves them and raises their
tokens. A worker that has a lease finds its token out of date at its next transaction, and takes
a new lease at the new position. It may be in the middle of one event then: its handler is
called for that event, and for no further one up to the new position.
"""

from __future__ import annotations

from typing import NamedTuple

from django.db import models, transaction
from django.db.models import F

from eventlogs.feed.reader import Feed
from eventlogs.models import Checkpoint, Event, ParkedEvent, ProjectionAction, SkippedEvent
from eventlogs.projections import actions, checkpoints
from eventlogs.projections.base import BaseProjection
from eventlogs.projections.held_logs import HeldLogs, skipped_event
from eventlogs.projections.starting import begin


class PassedOver(NamedTuple):
    """The events that a reactor passed over: up to which position, and how many."""

    position: int
    events: int  # past the checkpoint, or past the lowest of several
    waiting: int  # logs that were held by a failed event


def pass_over(
    reactor: type[BaseProjection], using: str, *, dry_run: bool = False, by: str = ""
) -> PassedOver:
    """See ``ReactorOperations.pass_over``."""
    target = Feed(using=using).settled()
    held = HeldLogs(reactor, using).rows().filter(position__lte=target)
    if dry_run:
        first, waiting = _reached(reactor, target, using), held.count()
    else:
        begin(reactor, using)
        with transaction.atomic(using=using):
            first = min(
                (each.position for each in checkpoints.lock_all(reactor.name, using=using)),
                default=0,
            )
            rows = Checkpoint.objects.using(using).filter(projection=reactor.name, is_rebuild=False)
            rows.update(token=F("token") + 1, owner="", leased_until=None)
            rows.filter(position__lt=target).update(position=target)
            waiting = _let_go(list(held), using)
            found = _passed_over(reactor, first, target, waiting, using)
            actions.add(
                reactor.name,
                ProjectionAction.PASSED_OVER,
                using=using,
                by=by,
                count=found.events,
                note=f"Up to position {found.position}; {waiting} logs were held.",
            )
            return found
    return _passed_over(reactor, first, target, waiting, using)


def _passed_over(
    reactor: type[BaseProjection], first: int, target: int, waiting: int, using: str
) -> PassedOver:
    return PassedOver(max(first, target), _between(reactor, first, target, using).count(), waiting)


def is_behind(reactor: type[BaseProjection], using: str) -> bool:
    """Return whether a reactor has events to react to."""
    target = Feed(using=using).settled()
    return _between(reactor, _reached(reactor, target, using), target, using).exists()


def _reached(reactor: type[BaseProjection], target: int, using: str) -> int:
    """Return the position of a reactor, or the one where it would begin."""
    if checkpoints.state_of(reactor.name, using) is None:
        return target if reactor.starts_now() else 0
    return checkpoints.position(reactor.name, using)


def _let_go(held: list[ParkedEvent], using: str) -> int:
    """End the holds of logs; keep the events that were tried and failed as skipped ones."""
    SkippedEvent.objects.using(using).bulk_create(
        [skipped_event(each) for each in held if each.attempts],
        ignore_conflicts=True,
    )
    ParkedEvent.objects.using(using).filter(pk__in=[each.pk for each in held]).delete()
    return len(held)


def _between(
    reactor: type[BaseProjection], first: int, last: int, using: str
) -> models.QuerySet[Event]:
    events = Event.objects.using(using).filter(position__gt=first, position__lte=last)
    if (types := reactor.event_types_read()) is not None:
        events = events.filter(type__in=types)
    if (log_types := reactor.log_types_read()) is not None:
        events = events.filter(log_type__in=log_types)
    return events
