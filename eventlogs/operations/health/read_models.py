"""How projections stand: who runs them, how far they are behind, what they hold, rebuilds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from django.db.models import Count, Min
from django.db.models.functions import Now

from eventlogs.feed.sources import BY_VENDOR
from eventlogs.models import Checkpoint, EventLog, ParkedEvent, ProjectionState, ProjectionWorker
from eventlogs.operations.health.databases import is_known
from eventlogs.operations.health.findings import ACT, INFO, Finding, counted, seconds
from eventlogs.operations.health.look import Look, Unknown, ask
from eventlogs.projections import releases
from eventlogs.projections.base import BaseProjection, RowProjection
from eventlogs.projections.held_causes import PARKED, RELEASE, HeldGroup, groups
from eventlogs.projections.leases import is_dead
from eventlogs.projections.status import ProjectionStatus, statuses
from eventlogs.projections.workers import ALIVE

LATELY: Final = timedelta(hours=1)  # for which a worker that died is told of
SILENT: Final = timedelta(seconds=releases.RENEWED + 10)  # after which a worker is taken for dead


@dataclass(frozen=True, slots=True)
class Crew:
    """Who runs projections: the rows of processes, and the leases that hold now."""

    rows: list[ProjectionWorker]
    alive: frozenset[str]  # names of workers that take their share
    leased: dict[str, set[str]]  # owners of leases that hold, by projection
    rebuilt: frozenset[str]  # projections of which a rebuild is under way

    def runs(self, name: str) -> bool:
        """Return whether a worker runs a projection at this moment."""
        return bool(self.leased.get(name)) or any(
            name in row.projections for row in self.rows if row.name in self.alive
        )

    def ran(self, name: str, since: datetime) -> bool:
        """Return whether a single run of it, such as Celery's, was there since a moment."""
        return any(
            row.name.startswith(releases.RUN) and row.seen_until >= since
            for row in self.rows
            if name in row.projections
        )

    def last_seen(self, name: str) -> datetime | None:
        """Return when the last process was there that ran a projection."""
        return max((last_sign(row) for row in self.rows if name in row.projections), default=None)


def last_sign(row: ProjectionWorker) -> datetime:
    """Return when a process was there last; a worker counts as alive for some seconds longer."""
    if row.ended_at is not None or row.name.startswith(releases.RUN):
        return row.seen_until
    return row.seen_until - timedelta(seconds=ALIVE)


def look_at_projections(look: Look) -> Iterator[Finding]:
    """Yield what is found of the projections of a database."""
    if look.connection.vendor in BY_VENDOR:
        yield from ask(look, "The workers of projections", _with_crew)
    else:
        yield from ask(look, "The projections", _without_crew)
    yield from ask(look, "What projections hold", _held)


def _without_crew(look: Look) -> Iterator[Finding]:
    yield from _each(look, Crew([], frozenset(), {}, frozenset()))


def _with_crew(look: Look) -> Iterator[Finding]:
    crew = _crew(look)
    yield from _each(look, crew)
    yield from _workers(look, crew)


def _crew(look: Look) -> Crew:
    leases = Checkpoint.objects.using(look.using).filter(leased_until__gte=Now())
    leased: dict[str, set[str]] = {}
    rebuilt: set[str] = set()
    for name, owner, is_rebuild in leases.values_list("projection", "owner", "is_rebuild"):
        if owner and not is_dead(owner):
            leased.setdefault(name, set()).add(owner)
            if is_rebuild:
                rebuilt.add(name)
    alive = releases.workers(look.using).values_list("name", flat=True)
    return Crew(
        list(ProjectionWorker.objects.using(look.using).order_by("name")),
        frozenset(name for name in alive if not is_dead(name)),
        leased,
        frozenset(rebuilt),
    )


# Projection by projection


def _each(look: Look, crew: Crew) -> Iterator[Finding]:
    here = look.projections()
    states = ProjectionState.objects.using(look.using).in_bulk(field_name="name")
    overdue = _overdue(look)
    for stand in statuses(here.values(), using=look.using):
        state = states.get(stand.name)
        _keep_figures(look, stand, crew)
        yield from _rebuild(look, crew, here[stand.name], stand, state)
        yield from _behind(
            look, crew, here[stand.name], stand, overdue.get(stand.name, NOTHING_DUE)
        )


def _keep_figures(look: Look, stand: ProjectionStatus, crew: Crew) -> None:
    figures: dict[str, float] = {
        "position": stand.position,
        "parked": stand.parked,
        "waiting": stand.waiting,
        "awaiting_release": stand.awaiting_release,
        "rate": round(stand.rate, 3),
        "is_running": int(crew.runs(stand.name)),
        "is_rebuild_due": int(stand.is_rebuild_due),
    }
    if stand.positions_behind is not None:
        figures["events_behind"] = stand.positions_behind
        figures["is_at_least"] = int(stand.at_least)
    if stand.age is not None:
        figures["lag_seconds"] = round(max(stand.age.total_seconds(), 0.0), 3)
    look.by_projection[stand.name] = figures


class Overdue(NamedTuple):
    """Events that nobody has tried again although their time has come long ago."""

    events: int = 0
    since: datetime | None = None  # when the first of them was due


NOTHING_DUE: Final = Overdue()


def _overdue(look: Look) -> dict[str, Overdue]:
    """Return what is overdue, by the names of projections."""
    late = timedelta(seconds=look.limits["MAX_LAG"])
    due = ParkedEvent.objects.using(look.using).filter(is_rebuild=False, retry_at__lt=Now() - late)
    found = due.order_by().values_list("projection").annotate(Count("pk"), Min("retry_at"))
    return {name: Overdue(*each) for name, *each in found}


def _behind(
    look: Look, crew: Crew, projection: type[BaseProjection], stand: ProjectionStatus, due: Overdue
) -> Iterator[Finding]:
    age = 0.0 if stand.age is None else max(stand.age.total_seconds(), 0.0)
    behind = stand.positions_behind or 0
    name, limit = stand.name, look.limits["MAX_LAG"]
    if stand.problem:
        return  # the feed cannot be read, or the checkpoint is beyond it: another finding says so
    overdue = due.events
    is_late = age > limit or overdue > 0
    since = _since(look, age, due)
    figures = {"lag_seconds": round(age, 3), "events_behind": behind, "overdue": overdue}
    if stand.kind == "inline" and behind <= stand.parked + stand.waiting and not overdue:
        return  # what is not in its rows is held: there is a finding that says so
    waits_for_feed = look.is_held and look.settled is not None and stand.position >= look.settled
    if age and not overdue and waits_for_feed:
        yield Finding(
            "lag",
            INFO,
            name,
            f"{name} is behind by {seconds(age)}, because the feed is held back.",
            since=since,
            action="See feed-held.",
            figures=figures,
        )
    elif is_late and look.connection.vendor not in BY_VENDOR:
        yield _missed(look, stand, age, figures)
    elif (age or overdue) and not crew.runs(name):
        if not (behind or overdue or _has_logs(look, projection)):
            return  # none of the events behind its checkpoint can be its own
        lately = look.now - SILENT - timedelta(seconds=limit)
        if is_late or not crew.ran(name, lately):
            yield _nobody(look, crew, stand, age, due, is_late=is_late, figures=figures)
    elif is_late and (behind or overdue):
        speed = f", and applies {stand.rate:,.0f} events a second" if stand.rate else ""
        what = (
            f"is behind by {seconds(age)}{_events(stand)}"
            if age > limit
            else f"does not try events again in time ({counted(overdue, 'event')} overdue)"
        )
        yield Finding(
            "lag",
            ACT,
            name,
            f"{name} {what}{speed}.",
            since=since,
            action="Whoever runs the workers looks at their logs, and adds workers where they are "
            "too slow (see partitions in docs/projections.md):",
            command=look.command(f"project {name} --workers 2"),
            figures=figures,
        )


def _nobody(
    look: Look,
    crew: Crew,
    stand: ProjectionStatus,
    age: float,
    due: Overdue,
    *,
    is_late: bool,
    figures: dict[str, float],
) -> Finding:
    name = stand.name
    seen = crew.last_seen(name)
    if stand.rows_version is None:
        history = "It has never run here."
    elif seen is None:
        history = "No process is known that ran it."
    else:
        ago = max((look.now - seen).total_seconds(), 0.0)
        history = f"The last process that ran it was there {seconds(ago)} ago."
    waits = f"{counted(due.events, 'event')} should have been tried again"
    if stand.positions_behind:
        waits = f"its next event has waited for {seconds(age)}{_events(stand)}"
    elif age:
        waits = f"it has not looked through events of {seconds(age)} ago"
    return Finding(
        "no-worker",
        ACT if is_late else INFO,
        name,
        f"Nobody runs {name}, and {waits}. {history}",
        since=seen if seen is not None and seen < look.now else _since(look, age, due),
        action="Whoever runs the workers starts one, or the schedule of "
        "eventlogs.tasks.run_projections:",
        command=look.command(f"project {name}"),
        figures=figures,
    )


def _events(stand: ProjectionStatus) -> str:
    """Return how many events a projection is behind, in brackets."""
    behind = stand.positions_behind or 0
    most = "at least " if stand.at_least else ""
    return f" ({most}{counted(behind, 'event')})" if behind else ""


def _has_logs(look: Look, projection: type[BaseProjection]) -> bool:
    """Return whether there is any log of a type that a projection reads."""
    log_types = projection.log_types_read()
    logs = EventLog.objects.using(look.using)
    return log_types is None or logs.filter(log_type__in=log_types).exists()


def _missed(look: Look, stand: ProjectionStatus, age: float, figures: dict[str, float]) -> Finding:
    """Return the finding for inline rows where no worker can make up for what was missed."""
    return Finding(
        "lag",
        ACT,
        stand.name,
        f"Rows of {stand.name} lack events{_events(stand)} that were appended without it, for "
        f"{seconds(age)}. The next append to each of these logs makes up for it.",
        since=_since(look, age),
        action="Whoever imported them rebuilds:",
        command=look.command(f"rebuild {stand.name}"),
        figures=figures,
    )


def _since(look: Look, age: float, due: Overdue = NOTHING_DUE) -> datetime | None:
    """Return since when the first event waits that is not applied, or not tried again."""
    behind = look.now - timedelta(seconds=age) if age else None
    return min((each for each in (behind, due.since) if each is not None), default=None)


# Rebuilds


def _rebuild(
    look: Look,
    crew: Crew,
    projection: type[BaseProjection],
    stand: ProjectionStatus,
    state: ProjectionState | None,
) -> Iterator[Finding]:
    if state is None or not issubclass(projection, RowProjection):
        return
    name = stand.name
    command = look.command(f"rebuild {name}")
    is_inline = projection.mode == projection.INLINE
    if state.rebuild_error:
        yield Finding(
            "rebuild-failed",
            ACT,
            name,
            f"The last rebuild of {name} failed: {state.rebuild_error} The old rows stay in use.",
            since=state.rebuild_started_at,
            action="A developer mends the cause, then somebody rebuilds:",
            command=command,
        )
    asked = state.rebuild_requested_at
    is_waiting = asked is not None and name not in crew.rebuilt
    if state.rebuild_version is not None and (name in crew.rebuilt or is_inline):
        # Of an inline projection no lease says whether somebody is at it.
        yield Finding(
            "rebuilding",
            INFO,
            name,
            f"{name} is being rebuilt.",
            since=state.rebuild_started_at,
            action="If its process has died, this goes on where it was:" if is_inline else "",
            command=command if is_inline else "",
            figures={"rebuild_version": state.rebuild_version},
        )
    elif state.rebuild_version is not None:
        yield Finding(
            "rebuild-stopped",
            INFO if is_waiting else ACT,
            name,
            f"A rebuild of {name} was interrupted, and nobody resumes it. The old rows stay in "
            "use.",
            since=state.rebuild_started_at,
            action="Whoever began it resumes it:",
            command=command,
            figures={"rebuild_version": state.rebuild_version},
        )
    elif state.version > projection.version:
        yield _of_newer_code(look, crew, projection, state)
    elif stand.is_rebuild_due and not is_waiting:
        yield Finding(
            "rebuild-due",
            ACT,
            name,
            f"The rows of {name} were made by version {state.version} ({state.mode}); this release "
            f"has version {projection.version} ({projection.mode}). The old rows stay in use.",
            since=state.rebuilt_at,
            action="Whoever deploys rebuilds:",
            command=command,
            figures={"rows_version": state.version, "version": projection.version},
        )
    if asked is not None and is_waiting:
        is_late = look.now - asked > timedelta(seconds=look.limits["MAX_LAG"])
        yield Finding(
            "rebuild-waiting",
            ACT if is_late and not crew.runs(name) else INFO,
            name,
            f"A rebuild of {name} was asked for, and no worker has begun it.",
            since=asked,
            action="Whoever runs the workers starts one, or rebuilds:",
            command=command,
        )


def _of_newer_code(
    look: Look, crew: Crew, projection: type[BaseProjection], state: ProjectionState
) -> Finding:
    name = projection.name
    newer = any(
        row.name in crew.alive
        and (each := releases.declared_by(row, name)) is not None
        and each.version >= state.version
        for row in crew.rows
    )
    return Finding(
        "old-release",
        INFO if newer else ACT,
        name,
        f"The rows of {name} were made by version {state.version}, which is newer than version "
        f"{projection.version} of this process: it does not change them.",
        since=state.rebuilt_at,
        action="Whoever deploys brings the newer release to all processes. After a rollback:",
        command=look.command(f"rebuild {name} --downgrade"),
        figures={"rows_version": state.version, "version": projection.version},
    )


# Workers


def _workers(look: Look, crew: Crew) -> Iterator[Finding]:
    here = look.projections()
    own = {name: releases.handles_of(each) for name, each in here.items()}
    current = {name for row in _alive(crew) for name in _same(row, own)}
    for row in _alive(crew):
        older: list[str] = []
        newer: list[str] = []
        for name, mine in own.items():
            theirs = releases.declared_by(row, name)
            if theirs is None or theirs.digest == mine.digest:
                continue
            is_newer = theirs.covers(mine) and not mine.covers(theirs)
            (newer if is_newer else older).append(name)
        if newer:
            yield _newer_release(row, newer)
        if older:
            yield _old_release(look, row, older, is_alone=not set(older) <= current)
    for row in crew.rows:
        if _has_died(look, crew, row):
            yield _died(look, crew, row)


def _alive(crew: Crew) -> list[ProjectionWorker]:
    return [row for row in crew.rows if row.name in crew.alive]


def _same(row: ProjectionWorker, own: dict[str, releases.Handles]) -> Iterator[str]:
    for name, mine in own.items():
        theirs = releases.declared_by(row, name)
        if theirs is not None and theirs.digest == mine.digest:
            yield name


def _old_release(look: Look, row: ProjectionWorker, names: list[str], *, is_alone: bool) -> Finding:
    waiting = ParkedEvent.objects.using(look.using).filter(
        is_rebuild=False, projection__in=names, first_failed_at__lt=Now() - _deploy(look)
    )
    held = waiting.exclude(awaits="").count()
    beside = "no worker of this release runs" if is_alone else "workers of this release run beside"
    harm = f"{counted(held, 'log')} wait for this release" if held else "nothing waits for it"
    return Finding(
        "old-release",
        ACT if held else INFO,
        row.name,
        f"The worker {row.name} is of another release than this process: of "
        f"{', '.join(names)} it handles less, or other events; {beside}, and {harm}.",
        since=row.declared_at,
        action=f"Whoever deploys restarts that worker with this release: process "
        f"{process_of(row.name)}.",
        figures={"projections": len(names), "logs": held},
    )


def _deploy(look: Look) -> timedelta:
    return timedelta(seconds=look.limits["MAX_DEPLOY"])


def _newer_release(row: ProjectionWorker, names: list[str]) -> Finding:
    return Finding(
        "old-release",
        INFO,
        row.name,
        f"The worker {row.name} is of a newer release than this process: it handles more of "
        f"{', '.join(names)}.",
        since=row.declared_at,
        action="Whoever deploys brings that release to this process, too.",
        figures={"projections": len(names)},
    )


def _has_died(look: Look, crew: Crew, row: ProjectionWorker) -> bool:
    if row.name.startswith(releases.RUN) or row.ended_at is not None or row.name in crew.alive:
        return False
    if any(row.name in owners for owners in crew.leased.values()):
        return False  # in the middle of a long batch
    silent = look.now - row.seen_until
    return silent < LATELY and (is_dead(row.name) or silent > SILENT)


def _died(look: Look, crew: Crew, row: ProjectionWorker) -> Finding:
    left = [name for name in sorted(row.projections) if not crew.runs(name)]
    others = f"nobody runs {', '.join(left)} now" if left else "other workers have taken over"
    return Finding(
        "worker-died",
        INFO,
        row.name,
        f"The worker {row.name} has ended without giving its work back: it crashed, was killed, or "
        f"its machine is gone; {others}.",
        since=min(last_sign(row), look.now),
        action="Whoever runs the workers looks into its log, and why it was not started again.",
        figures={"projections": len(row.projections)},
    )


def process_of(worker: str) -> str:
    """Return the process id in a worker's name, and its host, for people."""
    host, _, pid = worker.rpartition(":")[0].rpartition(":")
    return f"{pid} on {host.partition('.')[0]}" if pid.isdigit() else worker


# What is held


def _held(look: Look) -> Iterator[Finding]:
    here = look.projections()
    held = groups(look.using)
    parked: dict[str, int] = {}
    for each in held:
        if each.state == PARKED:
            parked[each.projection] = parked.get(each.projection, 0) + each.logs
    for each in held:
        if each.projection not in here:
            yield _of_nobody(look, each)
        elif each.state == PARKED:
            yield _parked(look, each, parked[each.projection] > look.limits["MAX_PARKED"])
        elif each.state != RELEASE:
            yield _retrying(look, each)
        elif is_known(each.type, each.schema_version):
            yield _awaiting(look, each)
        else:
            found = look.unknown.setdefault(
                (each.type, each.schema_version), Unknown(each.first_failed_at)
            )
            found.since = min(found.since, each.first_failed_at)
            found.logs += each.logs
            found.held_by.add(each.projection)
            found.is_ours = True  # a projection here reads it


def _parked(look: Look, group: HeldGroup, must_act: bool) -> Finding:
    mend = f"mends {group.handler}()" if group.handler else "mends the cause"
    return Finding(
        "parked",
        ACT if must_act else INFO,
        group.projection,
        f"{group.headline}. {counted(group.logs, 'log')} of {group.projection} "
        f"{'stands' if group.logs == 1 else 'stand'} still at an event {group.type}.",
        since=group.first_failed_at,
        action=f"A developer {mend} and deploys that. Then somebody has the events tried again:",
        command=look.command(f"parked {group.projection} --retry-all"),
        figures=_of_group(look, group),
    )


def _retrying(look: Look, group: HeldGroup) -> Finding:
    return Finding(
        "retrying",
        INFO,
        group.projection,
        f"{group.headline}, in {group.projection}, at an event {group.type}.",
        since=group.first_failed_at,
        action="Nobody has to act yet: they are tried again, and parked if that fails. What was "
        "raised:",
        command=look.command(f"parked {group.projection} --details"),
        figures=_of_group(look, group),
    )


def _awaiting(look: Look, group: HeldGroup) -> Finding:
    age = look.now - group.first_failed_at
    return Finding(
        "awaiting-release",
        ACT if age > _deploy(look) else INFO,
        group.projection,
        f"{group.headline}, in {group.projection}. This release can apply it, and no worker of it "
        f"has done so.",
        since=group.first_failed_at,
        action="Whoever deploys brings this release to the workers:",
        command=look.command(f"project {group.projection}"),
        figures=_of_group(look, group),
    )


def _of_nobody(look: Look, group: HeldGroup) -> Finding:
    return Finding(
        "undeclared",
        INFO,
        group.projection,
        f"{group.headline}, in {group.projection}, which no code of this release declares.",
        since=group.first_failed_at,
        action="A developer declares it again, or deletes its rows in eventlogs_parkedevent, "
        "eventlogs_checkpoint and eventlogs_projectionstate.",
        figures=_of_group(look, group),
    )


def _of_group(look: Look, group: HeldGroup) -> dict[str, float]:
    age = (look.now - group.first_failed_at).total_seconds()
    return {"logs": group.logs, "held_seconds": round(max(age, 0.0), 3)}
