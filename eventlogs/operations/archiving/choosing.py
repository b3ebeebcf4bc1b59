"""
Choosing the logs to archive: those that a rule names, and that nobody has still to read.

A log is left in the tables

- while a projection or a reactor has not come to its last event: it would never see it. An inline
  one comes to an event with its append; to those that were appended without it, e.g. by an import,
  it comes later, through the feed;
- while a projection holds it, for an event that it could not apply;
- while its last event is not settled in the feed: a reader may still be before it;
- for a week after it was brought back, or for as long as the rule waits, if that is shorter: who
  has brought it back has something to do with it.

Readers outside of the project keep their positions themselves: ``Retention.after`` has to be
longer than they may be behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from django.db import router
from django.db.models import Exists, Min, OuterRef, QuerySet
from django.utils import timezone

from eventlogs.aggregates import aggregates, fold
from eventlogs.archives.rules import Retention
from eventlogs.conf import MAX_POSITION
from eventlogs.events.codec import EventReader
from eventlogs.exceptions import FeedUnavailable, ProjectionUnavailable, RegistrationError
from eventlogs.feed import scans
from eventlogs.feed.reader import HEARTBEAT, Feed
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.models import Checkpoint, EventLog, ParkedEvent, ProjectionState, ReturnedLog
from eventlogs.projections import checkpoints, inline
from eventlogs.projections.base import BaseProjection, RowProjection, declared
from eventlogs.projections.kinds import Reactor
from eventlogs.stores.retries import run_again

PAGE: Final = 500  # logs that are looked at together
STAYS: Final = timedelta(days=7)  # at most, in the tables, after a log was brought back


class Limit(NamedTuple):
    """The position up to which everybody has read, and who is there, if a projection is."""

    position: int
    projection: str = ""


class Unreadable(NamedTuple):
    """A log that cannot be judged, because its events cannot be folded."""

    log_id: LogId
    error: str  # the class of the error


def limit_of(using: str, log_type: str) -> Limit:
    """
    Return the position up to which logs of a type may be archived.

    The feed is settled up to there, and every projection has read it.
    """
    try:
        settled = Feed(using=using).settled()
    except FeedUnavailable:
        settled = MAX_POSITION  # without a feed, nobody reads by positions
    last = last_reader(using, log_type)
    return Limit(settled) if last is None or last.position >= settled else last


def last_reader(using: str, log_type: str) -> Limit | None:
    """Return the projection that is furthest behind, among those that may read logs of a type."""
    for each in unread(using, log_type):
        return Limit(0, each.name)
    found = (
        _checkpoints(using, log_type)
        .values("projection")
        .annotate(position=Min("position"))
        .order_by("position", "projection")
        .first()
    )
    return None if found is None else Limit(found["position"], found["projection"])


def refuse_to_bring_back(using: str, log_type: str, last_position: int) -> None:
    """
    Raise ProjectionUnavailable if a projection would not get the events of a log as a whole, once.

    One that is before the log's last event may be between two of its events, or may have read past
    them in a batch that it has not stored yet. One that is at or behind it never looks back. An
    inline rebuild goes through the logs in the tables first, and then through the archived ones.

    Call it in the transaction that brings the log back.
    """
    behind = _checkpoints(using, log_type).filter(is_rebuild=False, position__lt=last_position)
    for name in behind.order_by("projection").values_list("projection", flat=True)[:1]:
        raise ProjectionUnavailable("behind", projection=name)
    inline = ProjectionState.objects.using(using).filter(mode=BaseProjection.INLINE)
    # Locked: an inline rebuild that begins has to write its row first.
    for state in inline.select_for_update().order_by("name"):
        if state.rebuild_started_at is not None:
            raise ProjectionUnavailable("busy", projection=state.name)


def _checkpoints(using: str, log_type: str) -> QuerySet[Checkpoint]:
    """Return the checkpoints of projections that read the feed, and may read logs of a type."""
    inline = ProjectionState.objects.using(using).filter(mode=BaseProjection.INLINE)
    others = [
        each.name
        for each in declared(BaseProjection)
        if (types := each.log_types_read()) is not None and log_type not in types
    ]
    rows: QuerySet[Checkpoint] = Checkpoint.objects.using(using)
    return rows.exclude(projection__in=inline.values("name"), is_rebuild=False).exclude(
        projection__in=[*others, HEARTBEAT]
    )


def unread(using: str, log_type: str) -> Iterator[type[BaseProjection]]:
    """
    Yield the declared projections that have to read logs of a type, and have never run.

    In a database in which no projection has ever run, that counts if logs are written to it: no
    worker may ever run in another one.
    """
    states = ProjectionState.objects.using(using)
    if using != router.db_for_write(EventLog) and not states.exists():
        return
    known = set(Checkpoint.objects.using(using).values_list("projection", flat=True))
    for each in declared(BaseProjection, using=using):
        types = each.log_types_read()
        if each.mode == each.INLINE or (issubclass(each, Reactor) and each.starts_now()):
            continue
        if types is not None and log_type not in types:
            continue
        if each.name not in known:
            yield each


def closed_logs(
    rule: Retention, using: str, *, unreadable: list[Unreadable], now: datetime | None = None
) -> Iterator[LogRow]:
    """
    Yield the logs that a rule names, in the order of their UUIDs.

    Those whose events cannot be folded are added to ``unreadable``. Raise RegistrationError if
    the rule has a ``when`` and no aggregate class has its log type.
    """
    cls = None
    if rule.when is not None:
        cls = next(iter(aggregates.of(rule.log_type)), None)
        if cls is None:
            raise RegistrationError(
                f"A Retention has when= for {rule.log_type!r}, and no aggregate class has this log "
                f"type. Correct the log type, or import the aggregate's module in models.py."
            )
    for page in _old_logs(rule, using, now or timezone.now()):
        if cls is None:
            yield from page
            continue
        reader = EventReader(cls.event_types)
        for log, events in scans.logs_with_events(using, page):
            try:
                state = fold(cls.without_events(log.log_id), reader.records(events))
                assert rule.when is not None
                is_closed = rule.when(state.aggregate)
            except Exception as error:  # whatever the project's own classes raise
                unreadable.append(Unreadable(log.log_id, type(error).__name__))
                continue
            if is_closed:
                yield log


def forget_returned(using: str) -> None:
    """Remove the rows of logs that were brought back so long ago that it makes no difference."""
    old = ReturnedLog.objects.using(using).filter(returned_at__lt=timezone.now() - STAYS)
    run_again(using, lambda _: old.delete())


def _old_logs(rule: Retention, using: str, now: datetime) -> Iterator[list[LogRow]]:
    since = now - min(rule.after, STAYS)
    returned = ReturnedLog.objects.using(using).filter(pk=OuterRef("pk"), returned_at__gte=since)
    wanted: Any = (
        EventLog.objects.using(using)
        .filter(~Exists(returned), log_type=rule.log_type, updated_at__lt=now - rule.after)
        .order_by("pk")
    )
    after = None
    while True:
        later = wanted.filter(pk__gt=after) if after is not None else wanted
        page = [LogRow.of(each) for each in later[:PAGE]]
        if not page:
            return
        after = page[-1].log_id.uuid
        held = held_logs(using, [each.log_id for each in page])
        yield [each for each in page if each.log_id not in held]
        if len(page) < PAGE:
            return


def without_inline_rows(using: str, logs: Sequence[LogRow]) -> tuple[set[LogId], Limit | None]:
    """
    Return the logs with events that an inline projection has not come to, and its place.

    That may be asked before the logs are locked: a row never has fewer events than before, and a
    log with more events is not the one that was looked at.
    """
    found: set[LogId] = set()
    limit = None
    for each in declared(RowProjection, using=using):
        if each.mode != each.INLINE:
            continue
        types = each.log_types_read()
        of_types = [log.log_id for log in logs if types is None or log.log_id.log_type in types]
        for start in range(0, len(of_types), PAGE):
            if some := inline.unread(each, of_types[start : start + PAGE], using):
                found |= some
                limit = limit or Limit(checkpoints.position(each.name, using), each.name)
    return found, limit


def held_logs(using: str, log_ids: Sequence[LogId]) -> set[LogId]:
    """Return those of some logs that a projection holds for an event that it could not apply."""
    held = ParkedEvent.objects.using(using).filter(log_id__in=log_ids)
    return set(held.values_list("log_id", flat=True))
