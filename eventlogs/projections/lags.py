"""
How far projections are behind what is committed: ``lag()``, ``stats``, the admin and ``health()``.

The lag is counted in a projection's own events (of the types and log types that it reads), up to
the newest one that is *committed*. The feed may be held back by an open transaction: events that
wait for its end are in no row, so they are lag, too.

The queries are bounded, however large the tables are. No index leads to the events of one type,
so at most ``SPAN`` positions after the checkpoint are looked through for events of its own (where
positions are far apart, ``EVENTS`` events, which takes one more query), and at most ``LIMIT`` of
them are counted. Where there may be more, the answer says "at least".

An inline projection needs no worker, so its checkpoint may not move although its rows are right.
Its lag is counted in events that are not in the row of their log (see ``AppliedVersion``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import connections, transaction
from django.db.models import Count, Q
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from eventlogs import conf
from eventlogs.exceptions import EventLogError, FeedUnavailable
from eventlogs.feed.sources import feed_source_for, partition_of
from eventlogs.ids import LogId
from eventlogs.models import AppliedVersion, Checkpoint, Event, ParkedEvent, ProjectionState
from eventlogs.projections.base import BaseProjection
from eventlogs.projections.rows import chunks

LIMIT: Final = 10_000  # events of its own that are counted
SPAN: Final = 300_000  # positions after a checkpoint that are looked through for them
EVENTS: Final = 50_000  # events, in the place of those positions, in the layout with buckets
INLINE: Final = 5_000  # events whose rows are looked at: the oldest ones, and the newest ones
FEW: Final = 10_000  # positions up to which PostgreSQL's JIT is left on
KEYS: Final = 10_000  # logs of one statement, or fewer if the database takes fewer parameters

IS_PARKED: Final = Q(retry_at=None, awaits="")


class Lag(NamedTuple):
    """
    How far a projection is behind the newest committed event, in events that it reads.

    ``positions`` is how many of its own events are not applied: they are after the checkpoint
    of their partition, or, where it is inline, not in the row of their log. Events of other types
    do not count. ``age`` is the time since the oldest of them was recorded, zero where there is
    none.

    ``at_least`` says that there may be more than ``positions``: counting ends at 10,000 events,
    and looking for them at 300,000 positions after the checkpoint. Where that comes first and
    none was found, ``age`` is that of the last event looked at; the oldest of its own, if there
    is one, is younger. Of an inline projection the oldest and the newest 5,000 of its events
    after the checkpoint are looked at, and ``age`` is zero where all of those are in their rows.

    ``held`` is how many logs it holds for an event that is tried again, parked, or waits for
    another release. Events that are held have been passed by the checkpoint and are not in
    ``positions``; only of an inline projection, whose rows are not right then, the first one of
    each held log is.
    """

    positions: int
    age: timedelta
    at_least: bool = False
    held: int = 0


NO_LAG: Final = Lag(0, timedelta())


class Held(NamedTuple):
    """The numbers of logs that a projection holds, by the reason."""

    parked: int = 0
    waiting: int = 0  # for a retry, or for a release that can apply their event
    awaiting_release: int = 0  # of those, for a release


@dataclass(frozen=True, slots=True)
class Known:
    """The stored rows about projections."""

    states: Mapping[str, ProjectionState]
    checkpoints: Mapping[str, Sequence[Checkpoint]]
    held: Mapping[str, Held]


def load(using: str, names: Sequence[str]) -> Known:
    """Return the stored rows about projections, by 3 queries."""
    checkpoints: dict[str, list[Checkpoint]] = {name: [] for name in names}
    for place in Checkpoint.objects.using(using).filter(is_rebuild=False, projection__in=names):
        checkpoints[place.projection].append(place)
    held = (
        ParkedEvent.objects.using(using)
        .filter(is_rebuild=False, projection__in=names)
        .order_by()
        .values_list("projection")
        .annotate(
            held=Count("pk", filter=IS_PARKED),
            due=Count("pk", filter=~IS_PARKED),
            left=Count("pk", filter=~Q(awaits="")),
        )
    )
    return Known(
        ProjectionState.objects.using(using).in_bulk(names, field_name="name"),
        checkpoints,
        {name: Held(*counts) for name, *counts in held},
    )


def lag(projection: type[BaseProjection], using: str) -> Lag:
    """Return how far a projection is behind; raise FeedUnavailable where that is not known."""
    name = projection.name
    found = lags(using, [projection], load(using, [name]))[name]
    if isinstance(found, EventLogError):
        raise found
    return found


def sum_of(found: Iterable[Lag]) -> Lag:
    """Return the lag over several databases: all events, and the age of the oldest."""
    each = tuple(found)
    return Lag(
        sum(lag.positions for lag in each),
        max((lag.age for lag in each), default=timedelta()),
        any(lag.at_least for lag in each),
        sum(lag.held for lag in each),
    )


def lags(
    using: str, wanted: Sequence[type[BaseProjection]], known: Known
) -> dict[str, Lag | EventLogError]:
    """
    Return how far projections are behind, by name; an error where that cannot be known.

    That takes 4 queries (3 on SQLite), and one more for the rows of inline projections, of which
    each page of 10,000 logs and what is held takes another one.
    """
    found: dict[str, Lag | EventLogError] = {}
    places = []
    given_out = _given_out(using, wanted)
    for each in wanted:
        place = _Place(each, known)
        if isinstance(given_out, EventLogError) and not place.is_inline:
            found[each.name] = given_out
        elif isinstance(given_out, int) and not place.is_inline and place.after > given_out:
            found[each.name] = FeedUnavailable("ahead", using=using)
        else:
            found[each.name] = NO_LAG._replace(held=place.held)
            if place.reads_anything:
                places.append(place)
    _look(using, places)
    _look_at_rows(using, [place for place in places if place.is_inline])
    now = timezone.now()
    for place in places:
        found[place.name] = place.lag(now)
    return found


def _given_out(using: str, wanted: Iterable[type[BaseProjection]]) -> int | EventLogError | None:
    """Return the last position that was given out, None where no projection reads the feed."""
    if all(each.mode == each.INLINE for each in wanted):
        return None
    try:
        return feed_source_for(using).watermark().assigned
    except FeedUnavailable as error:
        return error


class _Own(NamedTuple):
    """An event that a projection reads."""

    position: int
    recorded_at: datetime
    log_id: LogId
    at: int  # its index in its log


@dataclass(slots=True)
class _Place:
    """A projection, and the facts that its lag is made of."""

    projection: type[BaseProjection]
    known: Known
    after: int = field(init=False)  # the lowest of its checkpoints
    number: int = 0  # of events that are not applied, up to LIMIT + 1
    oldest: datetime | None = None  # when the first of them was recorded
    stopped: datetime | None = None  # when the last event was recorded that was looked at
    is_cut: bool = False  # there may be more
    rows: list[_Own] = field(default_factory=list)  # events to look at one by one
    first: int | None = None  # the position of the first event after the checkpoint
    upto: int = 0  # the last position that is looked at
    since: int = 0  # the position after which the newest events are looked at

    def __post_init__(self) -> None:
        self.after = min((each.position for each in self.checkpoints), default=0)

    @property
    def name(self) -> str:
        return self.projection.name

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        return self.known.checkpoints.get(self.name, ())

    @property
    def is_inline(self) -> bool:
        return self.projection.mode == self.projection.INLINE

    @property
    def is_even(self) -> bool:
        """Whether all partitions are at one position."""
        return len({each.position for each in self.checkpoints}) <= 1

    @property
    def held(self) -> int:
        held = self.known.held.get(self.name, Held())
        return held.parked + held.waiting

    @property
    def reads_anything(self) -> bool:
        """Whether any event can be its own: a reactor that starts now has none before it runs."""
        has_begun = self.name in self.known.states or bool(self.checkpoints)
        starts_now = self.projection.starts_now()
        return (
            (has_begun or not starts_now)
            and self.projection.event_types_read() != []
            and self.projection.log_types_read() != []
        )

    def take(self, rows: Iterable[_Own]) -> None:
        """Count events that are not applied."""
        for row in rows:
            self.number += 1
            if self.oldest is None or row.recorded_at < self.oldest:
                self.oldest = row.recorded_at

    def lag(self, now: datetime) -> Lag:
        since = self.oldest or (self.stopped if self.is_cut and not self.is_inline else None)
        return Lag(
            min(self.number, LIMIT),
            timedelta() if since is None else max(now - since, timedelta()),
            self.is_cut or self.number > LIMIT,
            self.held,
        )


# A statement returns the place and the part of it, the number of events, the time of the first one,
# and of a single event its position, log type, log and index.
COUNT = """
SELECT {at}, COUNT(*), MIN(recorded_at), 0, '', '', 0
FROM (SELECT recorded_at FROM eventlogs_event WHERE {where}
      ORDER BY position LIMIT {limit}) AS own
"""
ROWS = """
SELECT {at}, 1, recorded_at, position, log_type, CAST(log_id AS CHAR(36)), {index}
FROM (SELECT recorded_at, position, log_type, log_id, {index} FROM eventlogs_event WHERE {where}
      ORDER BY position {order} LIMIT {limit}) AS own
"""
LAST = """
SELECT {at}, 1, recorded_at, 0, '', '', 0
FROM (SELECT recorded_at FROM eventlogs_event WHERE position <= %s
      ORDER BY position DESC LIMIT 1) AS last
"""
COUNTED, OLDEST, NEWEST, STOPPED = range(4)


def _look(using: str, places: Sequence[_Place]) -> None:
    """Look through the positions after the checkpoints, by two queries."""
    connection = connections[using]
    index = connection.ops.quote_name("index")
    behind = _behind(using, places)
    statements: list[str] = []
    parameters: list[Any] = []

    def ask(statement: str, at: int, part: int, values: Iterable[Any], **more: object) -> None:
        statements.append(statement.format(at=4 * at + part, index=index, **more))
        parameters.extend(values)

    for at, place in enumerate(behind):
        where, values = _own(place, place.after, place.upto)
        if place.is_inline:
            ask(ROWS, at, OLDEST, values, where=where, order="", limit=INLINE)
            if place.is_cut or place.upto - place.after > INLINE:
                where, values = _own(place, place.since, None)
                ask(ROWS, at, NEWEST, values, where=where, order="DESC", limit=INLINE)
        elif place.is_even:
            ask(COUNT, at, COUNTED, values, where=where, limit=LIMIT + 1)
        else:
            ask(ROWS, at, OLDEST, values, where=where, order="", limit=LIMIT + 1)
        if place.is_cut:
            ask(LAST, at, STOPPED, [place.upto])
    parts: dict[int, list[_Own]] = {}
    is_long = any(place.upto - place.after > FEW for place in behind)
    rows = _answers(using, "UNION ALL".join(statements), parameters, is_long) if statements else []
    for key, number, moment, position, log_type, log, of in rows:
        at, part = divmod(key, 4)
        recorded_at = None if moment is None else _moment(moment, using)
        if part == COUNTED:
            behind[at].number, behind[at].oldest = number, recorded_at
        elif part == STOPPED:
            behind[at].stopped = recorded_at
        elif recorded_at is not None and log_type is not None:
            own = _Own(position, recorded_at, LogId.stored(log_type, UUID(log)), of)
            parts.setdefault(key, []).append(own)
    for at, place in enumerate(behind):
        oldest = parts.get(4 * at + OLDEST, [])
        if place.is_inline:
            _join(place, oldest, parts.get(4 * at + NEWEST, []))
        elif not place.is_even:
            reached = {each.partition: each.position for each in place.checkpoints}
            of = len(reached)
            if len(oldest) > LIMIT:  # those looked at may all be applied, by other partitions
                place.is_cut, place.stopped = True, oldest[-1].recorded_at
            place.take(
                each
                for each in oldest
                if each.position > reached.get(partition_of(each.log_id.uuid, of), place.after)
            )


def _answers(
    using: str, statement: str, parameters: Sequence[Any], is_long: bool
) -> list[tuple[Any, ...]]:
    """
    Return a statement's rows.

    PostgreSQL estimates a long look as costly, and compiles it: that takes far longer than the
    look, which ends at the first LIMIT events. So JIT is turned off for this transaction.
    """
    connection = connections[using]
    with ExitStack() as stack:
        cursor = stack.enter_context(connection.cursor())
        if is_long and connection.vendor == "postgresql":
            stack.enter_context(transaction.atomic(using=using, savepoint=False))
            cursor.execute("SET LOCAL jit = off")
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


def _behind(using: str, places: Sequence[_Place]) -> list[_Place]:
    """Return the places with an event after their checkpoint, and note how far to look."""
    if not places:
        return []
    # Look from the next event on, not the next position: there may be a gap of any size.
    following = "(SELECT MIN(position) FROM eventlogs_event WHERE position > %s)"
    columns = ", ".join(
        ["(SELECT MAX(position) FROM eventlogs_event)", *(following for _ in places)]
    )
    with connections[using].cursor() as cursor:
        cursor.execute(f"SELECT {columns}", [place.after for place in places])
        newest, *firsts = cursor.fetchone()
    behind = []
    for place, first in zip(places, firsts, strict=True):
        place.first = first
        if first is not None:
            newest = max(newest or 0, first)
            place.upto = min(first - 1 + SPAN, newest)
            place.since = max(place.after, newest - SPAN)
            behind.append(place)
    if behind and conf.has_buckets():
        _bound_by_events(using, behind, newest)
    for place in behind:
        place.is_cut = place.upto < newest
    return behind


def _bound_by_events(using: str, behind: Sequence[_Place], newest: int) -> None:
    """Note how far to look where positions are far apart: EVENTS events from both ends."""
    some = f"ORDER BY position {{}} LIMIT 1 OFFSET {EVENTS - 1}"
    upto = f"(SELECT position FROM eventlogs_event WHERE position > %s {some.format('')})"
    since = f"(SELECT position FROM eventlogs_event WHERE position > %s {some.format('DESC')})"
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join([upto, since] * len(behind))}",
            [place.after for place in behind for _ in range(2)],
        )
        found = cursor.fetchone()
    for place, last, first in zip(behind, found[::2], found[1::2], strict=True):
        place.upto = newest if last is None else last
        place.since = place.after if first is None else first


def _own(place: _Place, after: int, upto: int | None) -> tuple[str, list[Any]]:
    """Return the condition for a projection's own events, and its parameters."""
    conditions, parameters = ["position > %s"], [after]
    if upto is not None:
        conditions.append("position <= %s")
        parameters.append(upto)
    values: list[Any] = [*parameters]
    for column, names in (
        ("type", place.projection.event_types_read()),
        ("log_type", place.projection.log_types_read()),
    ):
        if names is not None:
            conditions.append(f"{column} IN ({', '.join(['%s'] * len(names))})")
            values += names
    return " AND ".join(conditions), values


def _join(place: _Place, oldest: list[_Own], newest: list[_Own]) -> None:
    """Take the events of an inline projection from both ends; note whether they meet."""
    upto = oldest[-1].position if len(oldest) == INLINE else place.upto
    since = newest[-1].position - 1 if len(newest) == INLINE else place.since
    asked_for_newest = place.is_cut or place.upto - place.after > INLINE
    place.is_cut = upto < since if asked_for_newest else False
    place.rows = list({each.position: each for each in (*oldest, *newest)}.values())


def _look_at_rows(using: str, places: Sequence[_Place]) -> None:
    """Count the events that are not in the rows of inline projections."""
    held = [place for place in places if place.held]
    if held:
        _add_held(using, held)
    logs = {each.log_id: None for place in places for each in place.rows}
    if not logs:
        return
    names = [place.name for place in places]
    versions: dict[tuple[str, LogId], int] = {}
    rebuilt_by = {name: state.version for name, state in places[0].known.states.items()}
    most = connections[using].features.max_query_params or KEYS + len(names)
    for some in chunks(logs, max(min(KEYS, most - len(names)), 1)):
        found = AppliedVersion.objects.using(using).filter(projection__in=names, log_id__in=some)
        for name, log_id, version, made_by in found.values_list(
            "projection", "log_id", "version", "made_by"
        ):
            if made_by >= rebuilt_by.get(name, 0):  # else the row is to be rebuilt
                versions[name, log_id] = version
    for place in places:
        place.take(
            each for each in place.rows if versions.get((place.name, each.log_id), 0) <= each.at
        )


def _add_held(using: str, places: Sequence[_Place]) -> None:
    """Add the events that inline projections hold their logs by, as far as they are known."""
    parked = ParkedEvent.objects.using(using).filter(
        is_rebuild=False, projection__in=[place.name for place in places]
    )
    some = list(parked.order_by("position").values_list("projection", "position")[:LIMIT])
    events: dict[int, _Own] = {}
    most = connections[using].features.max_query_params or KEYS
    for positions in chunks(sorted({position for _, position in some}), min(KEYS, most)):
        found = Event.objects.using(using).filter(position__in=positions)
        for position, recorded_at, log_type, log, index in found.values_list(
            "position", "recorded_at", "log_type", "log_id", "index"
        ):
            log_id = LogId.stored(log_type, log)
            events[position] = _Own(position, recorded_at, log_id, index)
    for place in places:
        seen = {each.position for each in place.rows}
        mine = {position for name, position in some if name == place.name} - seen
        place.rows += [events[position] for position in sorted(mine) if position in events]
        place.is_cut |= len(some) == LIMIT


def _moment(value: Any, using: str) -> datetime:
    """Return a time as a model's field has it; a cursor gives the database's own."""
    found = value if isinstance(value, datetime) else parse_datetime(str(value))
    assert found is not None, "unreachable: the column holds times"
    if timezone.is_naive(found) and timezone.is_aware(timezone.now()):  # USE_TZ
        return timezone.make_aware(found, connections[using].timezone)
    return found
