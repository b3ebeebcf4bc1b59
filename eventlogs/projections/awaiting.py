"""
Waiting until a projection has applied an event: read your own writes.

An event is applied where the checkpoint of *its log's* partition has passed it and its log is not
held, or, inline, where the row has the log's version. The other partitions are not asked.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from django.db.models import Exists, F, IntegerField, Q, Value

from eventlogs.events import registry
from eventlogs.exceptions import FeedUnavailable
from eventlogs.ids import LogId
from eventlogs.models import AppliedVersion, Checkpoint, Event, ParkedEvent
from eventlogs.stores.feeds import MAX_PARTITIONS, feed_source_for

if TYPE_CHECKING:
    from eventlogs.projections.declarations import BaseProjection

NAP: Final = 0.02  # seconds between the first two looks
LONGEST_NAP: Final = 0.1
PATIENCE: Final = 1.25  # times as long, each time


class Target(NamedTuple):
    """The event to wait for."""

    log_id: LogId
    position: int
    at: int  # its index in the log


def wait_for(
    projection: type[BaseProjection], position: int, timeout: float, *, using: str
) -> bool:
    """See ``BaseProjection.wait_for``. Each look is one query, or two where it is inline."""
    end, nap = time.monotonic() + timeout, NAP
    target, settled = _target(projection, position, using), 0
    while True:
        if target is None and position > settled:
            # First how far the feed is settled: an event that is not there then never will be.
            settled = _settled(using)
            target = _target(projection, position, using)
        if target is None:
            if position <= settled:
                return False
        elif isinstance(target, bool) or _is_applied(projection, target, using):
            return True
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(nap, left))
        nap = min(nap * PATIENCE, LONGEST_NAP)


def _target(projection: type[BaseProjection], position: int, using: str) -> Target | bool | None:
    """
    Return the event to wait for; True where there is nothing to apply, None for no event.

    Of an event that the projection does not read, it is the last one before it in its log that
    the projection reads. Types that this process does not know count: their log may be held.
    """
    if position <= 0:
        return True
    events = Event.objects.using(using)
    found = events.filter(position=position).values_list("log__log_type", "log_id", "index").first()
    if found is None or found[0] is None:
        return None
    log_type, log, index = found
    types, log_types = projection._types(), projection._log_types()
    if log_types is not None and log_type not in log_types:
        return True
    if types is not None:
        own = Q(type__in=types) | ~Q(type__in=registry.known_names())
        before = events.filter(own, log_id=log, index__lte=index).order_by("-index")
        last = before.values_list("position", "index").first()
        if last is None:
            return True
        position, index = last
    return Target(LogId.stored(log_type, log), position, index)


def _settled(using: str) -> int:
    try:
        return feed_source_for(using).watermark().settled
    except FeedUnavailable:
        return 0  # nobody knows


def _is_applied(projection: type[BaseProjection], target: Target, using: str) -> bool:
    name = projection.name
    if projection.mode == projection.INLINE:
        rows = AppliedVersion.objects.using(using).filter(projection=name, log_id=target.log_id)
        if rows.filter(version__gt=target.at).exists():
            return True  # with its append, whether or not a worker has looked since
    # The partition as partition_of() has it, by however many there are at this moment.
    part = Value(target.log_id.uuid.int % MAX_PARTITIONS, output_field=IntegerField())
    places = Checkpoint.objects.using(using).filter(
        projection=name, is_rebuild=False, position__gte=target.position
    )
    held = ParkedEvent.objects.using(using).filter(
        projection=name, is_rebuild=False, log_id=target.log_id, position__lte=target.position
    )
    mine = places.annotate(part=part % F("partitions")).filter(partition=F("part"))
    return mine.filter(~Exists(held)).exists()
