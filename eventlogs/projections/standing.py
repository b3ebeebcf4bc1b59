"""How projections stand, for people: the command ``stats`` and the admin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from eventlogs.exceptions import EventLogError
from eventlogs.models import Checkpoint, ParkedEvent, ProjectionState
from eventlogs.projections.declarations import BaseProjection, RowProjection


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
    waiting: int
    owners: tuple[str, ...]
    problem: str = ""


def standing(projection: type[BaseProjection]) -> Standing:
    """Return how a projection stands."""
    using = projection._using()
    name = projection.name
    state = ProjectionState.objects.using(using).filter(name=name).first()
    places = list(Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False))
    waiting = ParkedEvent.objects.using(using).filter(projection=name, is_rebuild=False)
    lag, problem = None, ""
    try:
        lag = projection.lag()
    except EventLogError as error:
        problem = str(error)
    return Standing(
        name=name,
        kind=kind_of(projection),
        version=projection.version,
        rows_version=None if state is None else state.version,
        is_rebuild_due=issubclass(projection, RowProjection) and projection.is_rebuild_due(),
        partitions=len(places) or projection.partitions,
        position=min((each.position for each in places), default=0),
        positions_behind=None if lag is None else lag.positions,
        age=None if lag is None else lag.age,
        applied=sum(each.applied for each in places),
        rate=sum(each.rate for each in places),
        parked=waiting.filter(retry_at=None).count(),
        waiting=waiting.exclude(retry_at=None).count(),
        owners=tuple(sorted({each.owner for each in places if each.owner})),
        problem=problem,
    )


def kind_of(projection: type[BaseProjection]) -> str:
    """Return what kind of projection it is, for people."""
    if not issubclass(projection, RowProjection):
        return "reactor"
    return "inline" if projection.mode == projection.INLINE else "rows"
