"""Pages of the feed as they are stored, and the proof that a token is of their history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from eventlogs.exceptions import CheckpointDiffers, FeedUnavailable
from eventlogs.feed.sources import FeedQuery, FeedSource, Watermark
from eventlogs.feed.tokens import Place, Witness, witnesses_of
from eventlogs.values import EventRecord, StoredEvent

# What differs where a checkpoint is refused.
ANOTHER_EVENT: Final = "another event has the position of one that it names"
NO_EVENT: Final = "an event that it names is missing, and its log was neither erased nor archived"
NEVER_ASSIGNED: Final = "its position was never assigned"

LOOK_BACK: Final = 100  # records of a page among which the events of a checkpoint are chosen


class StoredPage(NamedTuple):
    """
    Stored events of the feed, and the position to continue from.

    ``last`` is the place of the last event at or below that position, of any type, if there is one.
    """

    events: list[StoredEvent]
    next_after: int
    more: bool
    settled: int
    last: Place | None = None

    def witnesses(self, earlier: tuple[Witness, ...]) -> tuple[Witness, ...]:
        """Return the witnesses of a token with the position to continue from."""
        return witnesses_of(newest_first(self.last, self.events), earlier)


def read_upto(
    source: FeedSource,
    mark: Watermark,
    query: FeedQuery,
    witnesses: tuple[Witness, ...],
) -> StoredPage:
    """
    Return a page of the events up to where a source is settled, whatever ``query.upto`` says.

    Raise CheckpointDiffers unless the events that a token names, its witnesses, are there, and
    FeedUnavailable for a position that was never assigned.
    """
    after = query.after
    if after > mark.assigned and not (mark.is_replica or mark.is_snapshot):
        if witnesses:
            raise _differs(source, after, NEVER_ASSIGNED)
        raise FeedUnavailable("ahead", using=source.using)
    # After a crash PostgreSQL may assign an assigned but unused position again. A reader that
    # continued after such a position would skip the event, so the feed ends at its last event.
    last = source.last(mark.settled)
    end = 0 if last is None else last.position
    if after >= end:
        found = StoredPage([], after, False, end, last)
    else:
        events, reached = source.events(query._replace(upto=end))
        if events and events[-1].position == reached:
            last = Place.of(events[-1])
        elif reached < end:
            last = source.last(reached)
            reached = max(after, 0 if last is None else last.position)
        found = StoredPage(events, reached, reached < end, end, last)
    if witnesses:
        # After the events: should a pooler pass on to another server meanwhile, it is that
        # server's history which has to be that of the checkpoint.
        _prove(source, mark, query.after, witnesses)
    return found


def _prove(source: FeedSource, mark: Watermark, after: int, witnesses: tuple[Witness, ...]) -> None:
    """Raise CheckpointDiffers unless the events that a token names are in this history."""
    missing: Sequence[Witness] = witnesses
    # Twice: a log that is archived at the first look may have come back before the next one.
    for _ in range(2):
        missing = _missing(source, mark, after, missing)
        logs = {each.log for each in missing}
        if not missing or not logs - source.removed(logs):
            return
    raise _differs(source, after, NO_EVENT)


def _missing(
    source: FeedSource, mark: Watermark, after: int, witnesses: Sequence[Witness]
) -> list[Witness]:
    """Return the events of a token that are not here; raise CheckpointDiffers for others."""
    found = source.places([each.position for each in witnesses])
    missing = []
    for witness in witnesses:
        place = found.get(witness.position)
        if place is None:
            missing.append(witness)
        elif Witness.of(place) != witness:
            raise _differs(source, after, ANOTHER_EVENT)
    if mark.is_replica or mark.is_snapshot:  # it may not have the others yet
        missing = [each for each in missing if each.position <= mark.settled]
    return missing


def _differs(source: FeedSource, position: int, reason: str) -> CheckpointDiffers:
    return CheckpointDiffers(position, using=source.using, reason=reason)


def newest_first(
    last: Place | None, events: Sequence[StoredEvent | EventRecord]
) -> Iterator[Place]:
    """Yield the places among which the witnesses of a token are chosen."""
    if last is not None:
        yield last
    yield from map(Place.of, islice(reversed(events), LOOK_BACK))
