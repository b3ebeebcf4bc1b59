"""
Passing over history: a reactor's checkpoints are moved to the end of the feed, for good.

After an import of old logs the feed has events of years ago. Rows want them; a reactor would
send e-mails for them. A person says so by ``eventlogs project NAME --from-now``.

One short transaction locks the checkpoints, as a worker's batch does, moves them and raises their
tokens. A worker that has a lease finds its token out of date at its next transaction, and takes
a new lease at the new position. It may be in the middle of one event then, for which its handler
is called; no further event up to the new position is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from django.db import models, transaction
from django.db.models import F

from eventlogs.feed.reader import Feed
from eventlogs.models import Checkpoint, Event, ParkedEvent, ProjectionAction, SkippedEvent
from eventlogs.projections import actions, checkpoints
from eventlogs.projections.batches import parking_of
from eventlogs.projections.catch_up import begin
from eventlogs.projections.held_logs import skipped_event

if TYPE_CHECKING:
    from eventlogs.projections.declarations import Reactor


class PassedOver(NamedTuple):
    """What a reactor does not react to any more: up to a position, how many events."""

    position: int
    events: int  # behind the checkpoint; of several partitions, behind the one that is last
    waiting: int  # that had failed, or were held behind one that had: counted by logs


def pass_over(
    reactor: type[Reactor], using: str, *, dry_run: bool = False, by: str = ""
) -> PassedOver:
    """See ``Reactor.pass_over``."""
    target = Feed(using).settled()
    held = parking_of(reactor, using).rows().filter(position__lte=target)
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
    reactor: type[Reactor], first: int, target: int, waiting: int, using: str
) -> PassedOver:
    return PassedOver(max(first, target), _between(reactor, first, target, using).count(), waiting)


def is_behind(reactor: type[Reactor], using: str) -> bool:
    """Return whether a reactor has events to react to; nothing is changed."""
    target = Feed(using).settled()
    return _between(reactor, _reached(reactor, target, using), target, using).exists()


def _reached(reactor: type[Reactor], target: int, using: str) -> int:
    """Return where a reactor is, or would begin."""
    if checkpoints.state_of(reactor.name, using) is None:
        return target if reactor.start == reactor.NOW else 0
    return checkpoints.position(reactor.name, using)


def _let_go(held: list[ParkedEvent], using: str) -> int:
    """Let held logs go; keep a trace of the events that were tried and failed."""
    SkippedEvent.objects.using(using).bulk_create(
        [skipped_event(each) for each in held if each.attempts],
        ignore_conflicts=True,
    )
    ParkedEvent.objects.using(using).filter(pk__in=[each.pk for each in held]).delete()
    return len(held)


def _between(reactor: type[Reactor], first: int, last: int, using: str) -> models.QuerySet[Event]:
    events = Event.objects.using(using).filter(position__gt=first, position__lte=last)
    if (types := reactor._types()) is not None:
        events = events.filter(type__in=types)
    if (log_types := reactor._log_types()) is not None:
        events = events.filter(log_type__in=log_types)
    return events
