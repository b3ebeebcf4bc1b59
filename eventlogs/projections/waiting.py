"""
Waiting until a projection has applied an event: read your own writes.

An event is applied where the checkpoint of *its log's* partition has passed it and its log is not
held, or, inline, where the row has the log's version. The other partitions are not asked.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from asgiref.sync import sync_to_async
from django.db.models import Exists, F, IntegerField, Q, Value

from eventlogs.events.registry import registry
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.sources import MAX_PARTITIONS, feed_source_for
from eventlogs.ids import LogId
from eventlogs.models import AppliedVersion, Checkpoint, Event, ParkedEvent
from eventlogs.projections.base import BaseProjection

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
    """See ``Operations.wait_for``."""
    waiting = Waiting(projection, position, timeout, using)
    while (answer := waiting.look()) is None:
        time.sleep(waiting.nap())
    return answer


async def await_for(
    projection: type[BaseProjection], position: int, timeout: float, *, using: str
) -> bool:
    """See ``Operations.await_for``. Between two looks the thread for the database is free."""
    waiting = Waiting(projection, position, timeout, using)
    look = sync_to_async(waiting.look, thread_sensitive=True)
    while (answer := await look()) is None:
        await asyncio.sleep(waiting.nap())
    return answer


class Waiting:
    """Checks whether an event is applied: one query a look, or two if the projection is inline."""

    def __init__(
        self, projection: type[BaseProjection], position: int, timeout: float, using: str
    ) -> None:
        self._projection = projection
        self._position = position
        self._using = using
        self._end = time.monotonic() + timeout
        self._nap = NAP
        self._target: Target | bool | None = None
        self._settled: int | None = None

    def look(self) -> bool | None:
        """Return whether the event is applied; None: look again later."""
        self._find()
        if self._target is None:
            if self._position <= (self._settled or 0):
                return False
        elif isinstance(self._target, bool) or _is_applied(
            self._projection, self._target, self._using
        ):
            return True
        return None if time.monotonic() < self._end else False

    def nap(self) -> float:
        """Return for how many seconds to wait before the next look."""
        seconds = min(self._nap, max(self._end - time.monotonic(), 0.0))
        self._nap = min(self._nap * PATIENCE, LONGEST_NAP)
        return seconds

    def _find(self) -> None:
        if self._target is None and self._settled is None:
            self._target = _target(self._projection, self._position, self._using)
            self._settled = 0
        if self._target is None and self._position > (self._settled or 0):
            # Read the settled position first: an event up to it that is not stored never will be.
            self._settled = _settled(self._using)
            self._target = _target(self._projection, self._position, self._using)


def _target(projection: type[BaseProjection], position: int, using: str) -> Target | bool | None:
    """
    Return the event to wait for; True where there is nothing to apply, None for no event.

    Of an event that the projection does not read, it is the last one before it in its log that
    the projection reads. Types that this process does not know count: their log may be held.
    """
    if position <= 0:
        return True
    events = Event.objects.using(using)
    found = events.filter(position=position).values_list("log_type", "log_id", "index").first()
    if found is None:
        return None
    log_type, log, index = found
    types, log_types = projection.event_types_read(), projection.log_types_read()
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
        return 0  # unknown


def _is_applied(projection: type[BaseProjection], target: Target, using: str) -> bool:
    name = projection.name
    if projection.mode == projection.INLINE:
        rows = AppliedVersion.objects.using(using).filter(projection=name, log_id=target.log_id)
        if rows.filter(version__gt=target.at).exists():
            return True  # its append has applied it: no worker is needed
    # Compute the partition as partition_of() does, from the current number of partitions.
    part = Value(target.log_id.uuid.int % MAX_PARTITIONS, output_field=IntegerField())
    places = Checkpoint.objects.using(using).filter(
        projection=name, is_rebuild=False, position__gte=target.position
    )
    held = ParkedEvent.objects.using(using).filter(
        projection=name, is_rebuild=False, log_id=target.log_id, position__lte=target.position
    )
    mine = places.annotate(part=part % F("partitions")).filter(partition=F("part"))
    return mine.filter(~Exists(held)).exists()
