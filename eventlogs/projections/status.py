"""Projection status, for the command ``stats`` and the admin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from eventlogs.exceptions import EventLogError
from eventlogs.projections.base import BaseProjection, RowProjection
from eventlogs.projections.lags import Held, lags, load


@dataclass(frozen=True, slots=True)
class ProjectionStatus:
    """
    The status of a projection; ``problem`` says why its lag is unknown.

    ``positions_behind``, ``age`` and ``at_least`` are what ``lag()`` answers as ``positions``,
    ``age`` and ``at_least``, None where there is a problem; see ``lags.Lag``.
    """

    name: str
    kind: str
    version: int
    rows_version: int | None  # None where it has never run
    is_rebuild_due: bool
    partitions: int
    position: int
    positions_behind: int | None  # events of its own that are committed and not applied
    age: timedelta | None  # since the oldest of them was recorded
    applied: int
    rate: float
    parked: int
    waiting: int  # for a retry, or for a release that can apply them
    awaiting_release: int  # of those, the logs that wait for a release
    owners: tuple[str, ...]
    problem: str = ""
    at_least: bool = False  # there may be more than positions_behind

    @property
    def behind(self) -> str:
        """How many events it is behind, as text: "?" if unknown; a plus marks a lower bound."""
        if self.positions_behind is None or (self.at_least and not self.positions_behind):
            return "?"
        return f"{self.positions_behind:,}{'+' if self.at_least else ''}"


def status_of(projection: type[BaseProjection], *, using: str | None = None) -> ProjectionStatus:
    """Return the status of a projection."""
    [found] = statuses([projection], using=using)
    return found


def statuses(
    wanted: Iterable[type[BaseProjection]], *, using: str | None = None
) -> list[ProjectionStatus]:
    """
    Return the status of projections, in the order given: by 7 queries for each database, or fewer.

    One more is for the rows of inline projections, of which each 10,000 logs (SQLite: fewer), and
    what they hold, take another one; see ``lags.py``.
    """
    by_database: dict[str, list[type[BaseProjection]]] = {}
    wanted = list(wanted)
    for each in wanted:
        by_database.setdefault(each.database_alias(using=using), []).append(each)
    found: dict[str, ProjectionStatus] = {}
    for database, some in by_database.items():
        found |= _statuses(database, some)
    return [found[each.name] for each in wanted]


def _statuses(using: str, wanted: list[type[BaseProjection]]) -> dict[str, ProjectionStatus]:
    known = load(using, [each.name for each in wanted])
    found_lags = lags(using, wanted, known)
    found: dict[str, ProjectionStatus] = {}
    for each in wanted:
        name, state, lag = each.name, known.states.get(each.name), found_lags[each.name]
        places, held = known.checkpoints[name], known.held.get(name, Held())
        problem = str(lag) if isinstance(lag, EventLogError) else ""
        stand = None if isinstance(lag, EventLogError) else lag
        found[name] = ProjectionStatus(
            name=name,
            kind=kind_of(each),
            version=each.version,
            rows_version=None if state is None else state.version,
            is_rebuild_due=issubclass(each, RowProjection) and each.needs_rebuild(state),
            partitions=len(places) or each.partitions,
            position=min((place.position for place in places), default=0),
            positions_behind=None if stand is None else stand.positions,
            age=None if stand is None else stand.age,
            applied=sum(place.applied for place in places),
            rate=sum(place.rate for place in places),
            parked=held.parked,
            waiting=held.waiting,
            awaiting_release=held.awaiting_release,
            owners=tuple(sorted({place.owner for place in places if place.owner})),
            problem=problem,
            at_least=stand is not None and stand.at_least,
        )
    return found


def kind_of(projection: type[BaseProjection]) -> str:
    """Return the kind of a projection: "reactor", "inline" or "rows"."""
    if not issubclass(projection, RowProjection):
        return "reactor"
    return "inline" if projection.mode == projection.INLINE else "rows"
