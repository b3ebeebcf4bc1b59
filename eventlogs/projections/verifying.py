"""Rows against a replay: whether they are what their logs say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.db import DataError, IntegrityError, transaction

from eventlogs import scans
from eventlogs.events import EventRecord
from eventlogs.exceptions import ProjectionFailed, ProjectionUnavailable
from eventlogs.feed import Feed
from eventlogs.ids import LogId
from eventlogs.models import Event, EventLog, SkippedEvent
from eventlogs.projections import catching_up, inline, leases
from eventlogs.projections.advancing import Failed, history, parking_of
from eventlogs.projections.constraints import failure
from eventlogs.projections.parking import INDEX, LOG_TYPE, POSITION, SCHEMA_VERSION, TYPE
from eventlogs.projections.releases import APPLY, HOLD, reading_of_rows
from eventlogs.projections.rows import chunks, differences, upsert
from eventlogs.stores.feeds import partition_of

if TYPE_CHECKING:
    from eventlogs.projections.declarations import RowProjection

NEAR, DRAWN = 200, 10  # so many logs are drawn from those of so many events in a row
TRIES: Final = 4  # times as many draws as need be: some are drawn twice
EVERYTHING: Final = 2**63 - 1  # a position that none is above


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not what its log says; ``fields`` are the names, never the values."""

    log_id: LogId
    fields: tuple[str, ...]
    is_repaired: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """How many logs were looked at, and what differs."""

    checked: int
    differences: tuple[Difference, ...]

    def __bool__(self) -> bool:
        """Whether nothing differs that is not repaired."""
        return all(each.is_repaired for each in self.differences)


def verify(
    projection: type[RowProjection], *, sample: int | None, repair: bool, using: str | None = None
) -> Verification:
    """See ``RowProjection.verify``."""
    using = projection._using(using)
    if projection.has_shared_rows():
        raise ProjectionUnavailable("shared rows", projection=projection.name)
    catching_up.begin(projection, using)
    checked, found = 0, []
    logs = _all(projection, using) if sample is None else _some(projection, using, sample)
    for some in chunks(logs, 100):
        checked += len(some)
        for log_id in some:
            difference = _look(projection, log_id, using, repair=repair)
            if difference is not None:
                found.append(difference)
    if sample is None or checked < sample:  # then all logs were looked at
        for log_id in _strays(projection, using):
            difference = _look(projection, log_id, using, repair=repair)
            if difference is not None:
                found.append(difference)
    return Verification(checked, tuple(found))


def replay(projection: RowProjection, log_id: LogId, using: str, *, upto: int) -> tuple[Any, int]:
    """
    Return the row that a log should have at a position, and of how many events it is made.

    Raise ProjectionFailed where an event cannot be applied, and what says so where newer
    code wrote one.
    """
    count = 0

    def counted() -> Iterator[EventRecord]:
        nonlocal count
        for record in records(projection, log_id, using, upto=upto):
            count += 1
            yield record

    try:
        return projection.row_of(log_id, counted(), using), count
    except Failed as failed:
        raise ProjectionFailed(projection.name, log_id, failed.position or 0) from failed.error


def records(
    projection: RowProjection, log_id: LogId, using: str, *, upto: int
) -> Iterator[EventRecord]:
    """Yield the records of a log that are in its row, if the row is at a position."""
    reading, feed = reading_of_rows(type(projection), using), Feed(using)
    waiting = parking_of(projection, using).rows().filter(log_id=log_id).first()
    versions = inline.applied_versions(projection.name, using).filter(log_id=log_id)
    if projection.is_inline and versions.exists():
        waiting = None  # the version says what is in the row
    skips = SkippedEvent.objects.using(using).filter(projection=projection.name, log_id=log_id)
    skipped = set(skips.values_list("index", flat=True))
    start = 0
    while page := history(log_id, start, using):
        start = page[-1][INDEX] + 1
        for row in page:
            if row[POSITION] > upto or (waiting is not None and row[INDEX] >= waiting.index):
                return
            if row[INDEX] in skipped:
                continue
            verdict = reading.verdict(row[LOG_TYPE], row[TYPE], row[SCHEMA_VERSION])
            if verdict is HOLD:  # not to be compared: another release may have applied it
                raise reading.why_held(log_id, row[INDEX], row[TYPE], row[SCHEMA_VERSION])
            if verdict is APPLY:
                yield from feed.records([row])


def put_right(projection: RowProjection, log_id: LogId, row: Any, using: str) -> None:
    """
    Store the row that a log should have, or that it has none.

    Raise ProjectionFailed where the database refuses the row.
    """
    if row is None:
        projection.model._base_manager.using(using).filter(pk=log_id).delete()
        return
    last = Event.objects.using(using).for_log(log_id).order_by("-index")
    try:
        with transaction.atomic(using=using):
            upsert(projection.model, [row], using)
    except (IntegrityError, DataError) as error:
        position = last.values_list("position", flat=True).first() or 0
        raise failure(projection, log_id, position, error, using) from error


def at_rest(stack: ExitStack, projection: RowProjection, log_id: LogId, using: str) -> int:
    """Keep a log's row from changing, until the stack ends; return the position that it is at."""
    if projection.is_inline:
        stack.enter_context(transaction.atomic(using=using))
        inline.lock_log(log_id, using)
        return EVERYTHING
    catching_up.begin(type(projection), using)
    checkpoint = stack.enter_context(leases.locked(projection.name, log_id, using=using))
    return checkpoint.position


def _look(
    cls: type[RowProjection], log_id: LogId, using: str, *, repair: bool
) -> Difference | None:
    projection = cls()
    manager = projection.model._base_manager.using(using)
    # First without a lock: most rows are right, and then nobody has to wait.
    if not projection.is_inline:
        upto = leases.positions(projection.name, using).get(
            partition_of(log_id.uuid, catching_up.begin(cls, using).partitions), 0
        )
        stored = manager.filter(pk=log_id).first()
        wanted, _ = replay(projection, log_id, using, upto=upto)
        if not differences(projection.model, stored, wanted, using):
            return None
    with ExitStack() as stack:
        upto = at_rest(stack, projection, log_id, using)
        if projection.is_inline:
            inline.refuse_newer(projection, log_id, using)
        stored = manager.filter(pk=log_id).first()
        upto = _applied(projection, log_id, upto, using)
        wanted, _ = replay(projection, log_id, using, upto=upto)
        fields = differences(projection.model, stored, wanted, using)
        if not fields:
            return None
        if repair:
            put_right(projection, log_id, wanted, using)
            if projection.is_inline:
                made_by = inline.applied_versions(projection.name, using).filter(log_id=log_id)
                made_by.update(made_by=projection.version)
        return Difference(log_id, tuple(fields), repair)


def _applied(projection: RowProjection, log_id: LogId, upto: int, using: str) -> int:
    """Return the position that an inline row is at: what it lacks yet is no difference."""
    if not projection.is_inline:
        return upto
    known = inline.applied_versions(projection.name, using).filter(log_id=log_id).first()
    if known is None:  # it was kept by the feed, up to there
        return leases.position(projection.name, using)
    page = history(log_id, known.version - 1, using)
    return page[0][POSITION] if page else 0


def _all(projection: type[RowProjection], using: str) -> Iterator[LogId]:
    for page in scans.logs_by_id(using, log_types=projection._log_types() or ()):
        for each in page:
            yield each.log_id


def _some(projection: type[RowProjection], using: str, count: int) -> Iterator[LogId]:
    """
    Yield logs at random (all, if there are no more): those with many events more often.

    They are drawn by a position, not by an id: positions are dense, and ids come in clumps.
    """
    logs = EventLog.objects.using(using)
    log_types = projection._log_types()
    if log_types is not None:
        logs = logs.filter(log_type__in=log_types)
    few = list(logs.order_by("pk")[: count + 1])
    if len(few) <= count:
        yield from (log.log_id for log in few)
        return
    events = Event.objects.using(using).order_by("position")
    last = events.values_list("position", flat=True).last() or 0
    seen: set[LogId] = set()
    for _ in range(TRIES * count // DRAWN + TRIES):
        near = events.filter(position__gte=random.randint(1, last))[:NEAR]
        met = {
            LogId.stored(log_type, log)
            for log_type, log in near.values_list("log__log_type", "log_id")
            if log_types is None or log_type in log_types
        }
        for log_id in random.sample(sorted(met - seen, key=str), min(DRAWN, len(met - seen))):
            if len(seen) == count:
                return
            seen.add(log_id)
            yield log_id


def _strays(projection: type[RowProjection], using: str) -> Iterator[LogId]:
    """Yield the logs of rows that no log is there for."""
    rows = projection.model._base_manager.using(using).order_by("pk")
    after, logs = "", EventLog.objects.using(using)
    while keys := list(rows.filter(pk__gt=after).values_list("pk", flat=True)[:500]):
        after = keys[-1]
        known = set(logs.filter(pk__in=[key.uuid for key in keys]).values_list("pk", flat=True))
        yield from (key for key in keys if key.uuid not in known)
