"""How projections stand, for people: the command ``stats`` and the admin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db.models import Count, Q, Subquery
from django.utils import timezone

from eventlogs.exceptions import EventLogError
from eventlogs.feed import Feed
from eventlogs.models import Checkpoint, Event, ParkedEvent, ProjectionState
from eventlogs.projections.declarations import BaseProjection, RowProjection

IS_PARKED: Final = Q(retry_at=None, awaits="")
SPAN: Final = 2_000  # events behind a checkpoint that are looked at for one to wait for


@dataclass(frozen=True, slots=True)
class Standing:
    """How a projection stands; ``problem`` says why nothing more is known."""

    name: str
    kind: str
    version: int
    rows_version: int | None  # None where it has never run
    is_rebuild_due: bool
    partitions: int
    position: int
    positions_behind: int | None
    age: timedelta | None
    applied: int
    rate: float
    parked: int
    waiting: int  # for another attempt, or for a release that can apply them
    awaiting_release: int  # of those, the logs that wait for a release
    owners: tuple[str, ...]
    problem: str = ""


def standing(projection: type[BaseProjection], *, using: str | None = None) -> Standing:
    """Return how a projection stands."""
    [found] = standings([projection], using=using)
    return found


def standings(
    wanted: Iterable[type[BaseProjection]], *, using: str | None = None
) -> list[Standing]:
    """
    Return how projections stand, in the order given: 7 queries for each database, or 8.

    Of a projection that is behind, the age is that of the first event that it waits for. It is
    looked for among the 2,000 events behind the checkpoint; None where there is none of its own.
    """
    by_database: dict[str, list[type[BaseProjection]]] = {}
    wanted = list(wanted)
    for each in wanted:
        by_database.setdefault(each._using(using), []).append(each)
    found: dict[str, Standing] = {}
    for database, some in by_database.items():
        found |= _standings(database, some)
    return [found[each.name] for each in wanted]


def _standings(using: str, wanted: list[type[BaseProjection]]) -> dict[str, Standing]:
    names = [each.name for each in wanted]
    states = ProjectionState.objects.using(using).in_bulk(names, field_name="name")
    places: dict[str, list[Checkpoint]] = {name: [] for name in names}
    checkpoints = Checkpoint.objects.using(using).filter(is_rebuild=False)
    for place in checkpoints.filter(projection__in=names):
        places[place.projection].append(place)
    positions = {
        name: min((place.position for place in some), default=0) for name, some in places.items()
    }
    held = {
        name: counts
        for name, *counts in ParkedEvent.objects.using(using)
        .filter(is_rebuild=False, projection__in=names)
        .order_by()
        .values_list("projection")
        .annotate(
            held=Count("pk", filter=IS_PARKED),
            due=Count("pk", filter=~IS_PARKED),
            left=Count("pk", filter=~Q(awaits="")),
        )
    }
    lags = _lags(using, wanted, positions)
    found: dict[str, Standing] = {}
    for each in wanted:
        name, state, lag = each.name, states.get(each.name), lags[each.name]
        parked, waiting, awaiting_release = held.get(name, (0, 0, 0))
        found[name] = Standing(
            name=name,
            kind=kind_of(each),
            version=each.version,
            rows_version=None if state is None else state.version,
            is_rebuild_due=issubclass(each, RowProjection) and each.is_made_otherwise(state),
            partitions=len(places[name]) or each.partitions,
            position=positions[name],
            positions_behind=None if isinstance(lag, str) else lag[0],
            age=None if isinstance(lag, str) else lag[1],
            applied=sum(place.applied for place in places[name]),
            rate=sum(place.rate for place in places[name]),
            parked=parked,
            waiting=waiting,
            awaiting_release=awaiting_release,
            owners=tuple(sorted({place.owner for place in places[name] if place.owner})),
            problem=lag if isinstance(lag, str) else "",
        )
    return found


def _lags(
    using: str, wanted: list[type[BaseProjection]], positions: dict[str, int]
) -> dict[str, tuple[int, timedelta | None] | str]:
    """Return how far each is behind, and since when; or what is the matter with the feed."""
    try:
        settled = Feed(using).settled()
    except EventLogError as error:
        return {each.name: str(error) for each in wanted}
    found: dict[str, tuple[int, timedelta | None] | str] = {}
    behind = []
    for each in wanted:
        if positions[each.name] < settled:
            behind.append(each)
        elif positions[each.name] == settled:
            found[each.name] = (0, timedelta())
        else:
            found[each.name] = _of_one(each, using)
    now = timezone.now()
    for each, (moment, further) in zip(
        behind, _next_events(behind, using, positions, settled), strict=True
    ):
        if moment is not None:
            found[each.name] = (settled - positions[each.name], now - moment)
        elif further is None:
            found[each.name] = (0, timedelta())  # what is there is for others
        else:
            found[each.name] = (settled - positions[each.name], None)
    return found


def _of_one(projection: type[BaseProjection], using: str) -> tuple[int, timedelta | None] | str:
    try:
        lag = projection.lag(using=using)
    except EventLogError as error:
        return str(error)  # the feed was taken back, e.g. by a restored backup
    return lag.positions, lag.age


def _next_events(
    wanted: list[type[BaseProjection]], using: str, positions: dict[str, int], settled: int
) -> list[tuple[datetime | None, int | None]]:
    """
    Return, for each projection, when the event was recorded that it waits for.

    It is looked for among the next events, and not the next positions, between which there may be
    gaps of any size. With it comes the position of the first event that was not looked at.
    """
    columns = {}
    for at, each in enumerate(wanted):
        following = (
            Event.objects.using(using)
            .filter(position__gt=positions[each.name], position__lte=settled)
            .order_by("position")
            .values("position")
        )
        own = Event.objects.using(using).filter(position__in=following[:SPAN])
        if (types := each._types()) is not None:
            own = own.filter(type__in=types)
        if (log_types := each._log_types()) is not None:
            own = own.filter(log__log_type__in=log_types)
        columns[f"moment_{at}"] = Subquery(own.order_by("position").values("recorded_at")[:1])
        columns[f"further_{at}"] = Subquery(following[SPAN : SPAN + 1])
    if not columns:
        return []
    one = Event.objects.using(using).order_by("position").annotate(**columns)
    found = one.values_list(*columns)[:1]
    values = list(found[0]) if found else [None] * len(columns)
    return list(zip(values[::2], values[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class Awaited:
    """An event type that a projection has left to other code, and how many logs wait for it."""

    projection: str
    type: str
    schema_version: int
    logs: int


def awaited(using: str) -> list[Awaited]:
    """Return what the projections of a database wait for until a release runs that knows it."""
    left = ParkedEvent.objects.using(using).filter(is_rebuild=False).exclude(awaits="").order_by()
    kinds = left.values_list("projection", "type", "schema_version").annotate(logs=Count("pk"))
    return [Awaited(*each) for each in kinds.order_by("projection", "type", "schema_version")]


def kind_of(projection: type[BaseProjection]) -> str:
    """Return what kind of projection it is, for people."""
    if not issubclass(projection, RowProjection):
        return "reactor"
    return "inline" if projection.mode == projection.INLINE else "rows"
