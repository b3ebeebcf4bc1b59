"""The health of projections: their workers, lag, rebuilds, and the events that hold logs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from django.db.models import Count, Min

from eventlogs.feed.sources import has_feed
from eventlogs.models import Checkpoint, ParkedEvent, ProjectionState, ProjectionWorker
from eventlogs.operations.health.databases import is_known
from eventlogs.operations.health.findings import ACT, INFO, Finding
from eventlogs.operations.health.look import Look, Unknown, ask
from eventlogs.projections import releases
from eventlogs.projections.base import BaseProjection, RowProjection
from eventlogs.projections.held_causes import PARKED, RELEASE, HeldGroup, groups
from eventlogs.projections.leases import is_dead
from eventlogs.projections.status import ProjectionStatus, statuses
from eventlogs.projections.workers import ALIVE
from eventlogs.stores.clock import UTCNow
from eventlogs.utils.words import counted, seconds

LATELY: Final = timedelta(hours=1)  # for which a worker that died is reported
SILENT: Final = timedelta(seconds=releases.RENEWED + 10)  # then a worker counts as dead


@dataclass(frozen=True, slots=True)
class Crew:
    """The processes that run projections, and the leases that are valid now."""

    rows: list[ProjectionWorker]
    alive: frozenset[str]  # names of workers that take their share
    leased: dict[str, set[str]]  # owners of valid leases, by projection
    rebuilt: frozenset[str]  # projections of which a rebuild is under way

    def runs(self, name: str) -> bool:
        """Return whether a worker runs a projection at this moment."""
        return bool(self.leased.get(name)) or any(
            name in row.projections for row in self.rows if row.name in self.alive
        )

    def ran(self, name: str, since: datetime) -> bool:
        """Return whether a single run of it, such as Celery's, took place since a moment."""
        return any(
            row.name.startswith(releases.RUN) and row.seen_until >= since
            for row in self.rows
            if name in row.projections
        )

    def last_seen(self, name: str) -> datetime | None:
        """Return when the last process that ran a projection was active, or None."""
        return max((last_sign(row) for row in self.rows if name in row.projections), default=None)


def last_sign(row: ProjectionWorker) -> datetime:
    """Return when a process was last active; a worker counts as alive for some seconds longer."""
    if row.ended_at is not None or row.name.startswith(releases.RUN):
        return row.seen_until
    return row.seen_until - timedelta(seconds=ALIVE)


def look_at_projections(look: Look) -> Iterator[Finding]:
    """Yield the findings about the projections of a database."""
    yield from ask(look, "The projections", _each)
    yield from ask(look, "The events that projections hold", _held)


def _crew(look: Look) -> Crew:
    if not has_feed(look.using):
        return Crew([], frozenset(), {}, frozenset())  # without a feed there are no workers
    leases = Checkpoint.objects.using(look.using).filter(leased_until__gte=UTCNow())
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


def _each(look: Look) -> Iterator[Finding]:
    crew = _crew(look)
    here = look.projections()
    states = ProjectionState.objects.using(look.using).in_bulk(field_name="name")
    overdue = _overdue(look)
    for stand in statuses(here.values(), using=look.using):
        projection, state = here[stand.name], states.get(stand.name)
        look.by_projection[stand.name] = _figures(stand, crew)
        if state is not None and issubclass(projection, RowProjection):
            yield from _rebuild(look, crew, projection, stand, state)
        delay = Delay(look, stand, *overdue.get(stand.name, ()))
        yield from _behind(look, crew, projection, stand, delay)
    yield from _workers(look, crew)


def _figures(stand: ProjectionStatus, crew: Crew) -> dict[str, float]:
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
    return figures


def _overdue(look: Look) -> dict[str, tuple[int, datetime]]:
    """Return how many events are overdue for a retry, and since when, by projection."""
    late = timedelta(seconds=look.limits["MAX_LAG"])
    due = ParkedEvent.objects.using(look.using).filter(
        is_rebuild=False, retry_at__lt=UTCNow() - late
    )
    found = due.order_by().values_list("projection").annotate(Count("pk"), Min("retry_at"))
    return {name: (count, since) for name, count, since in found}


class Delay:
    """
    The events that wait for one projection.

    ``behind`` were not applied yet, the first of them for ``age`` seconds; ``overdue`` failed, and
    nobody has retried them although their time has come. ``since`` is when the first one began
    to wait.
    """

    def __init__(
        self, look: Look, stand: ProjectionStatus, overdue: int = 0, due: datetime | None = None
    ) -> None:
        self.age = 0.0 if stand.age is None else max(stand.age.total_seconds(), 0.0)
        self.behind = stand.positions_behind or 0
        self.overdue = overdue
        self.is_late = self.age > look.limits["MAX_LAG"] or overdue > 0
        times = [due] if due is not None else []
        if self.age:
            times.append(look.now - timedelta(seconds=self.age))
        self.since = min(times, default=None)
        most = "at least " if stand.at_least else ""
        self.events = f" ({most}{counted(self.behind, 'event')})" if self.behind else ""

    @property
    def figures(self) -> dict[str, float]:
        """The figures of a finding."""
        return {
            "lag_seconds": round(self.age, 3),
            "events_behind": self.behind,
            "overdue": self.overdue,
        }


def _behind(
    look: Look, crew: Crew, projection: type[BaseProjection], stand: ProjectionStatus, delay: Delay
) -> Iterator[Finding]:
    name, age = stand.name, delay.age
    if stand.problem:
        return  # the feed cannot be read, or the checkpoint is beyond it: another finding says so
    if (
        stand.kind == "inline"
        and delay.behind <= stand.parked + stand.waiting
        and not delay.overdue
    ):
        return  # the events that its rows lack are held: another finding says so
    waits_for_feed = look.is_held and look.settled is not None and stand.position >= look.settled
    level = ACT
    if age and not delay.overdue and waits_for_feed:
        level = INFO
        message = f"{name} is behind by {seconds(age)}, because the feed is held back."
        action, command = "See feed-held.", ""
    elif delay.is_late and not has_feed(look.using):
        # Inline rows in a database without a feed: no worker can apply the missing events.
        message = (
            f"Rows of {name} lack events{delay.events} that were appended without it, for "
            f"{seconds(age)}. The next append to each of these logs applies them."
        )
        action, command = "Operator: rebuild the rows:", f"rebuild {name}"
    elif (age or delay.overdue) and not crew.runs(name):
        has_events = delay.behind or delay.overdue
        if not has_events and not projection.logs_read(look.using).exists():
            return  # no event past its checkpoint can be one that it handles
        lately = look.now - SILENT - timedelta(seconds=look.limits["MAX_LAG"])
        if delay.is_late or not crew.ran(name, lately):
            yield _no_worker(look, crew, stand, delay)
        return
    elif delay.is_late and (delay.behind or delay.overdue):
        what = (
            f"is behind by {seconds(age)}{delay.events}"
            if age > look.limits["MAX_LAG"]
            else f"does not retry events in time ({counted(delay.overdue, 'event')} overdue)"
        )
        speed = f", and applies {stand.rate:,.0f} events a second" if stand.rate else ""
        message = f"{name} {what}{speed}."
        action = (
            "Operator: look at the logs of the workers, and add workers if they are too slow (see "
            "partitions in docs/projections.md):"
        )
        command = f"project {name} --workers 2"
    else:
        return
    command = look.command(command) if command else ""
    yield Finding("lag", level, name, message, delay.since, action, command, delay.figures)


def _no_worker(look: Look, crew: Crew, stand: ProjectionStatus, delay: Delay) -> Finding:
    name = stand.name
    seen = crew.last_seen(name)
    if stand.rows_version is None:
        history = "It has never run here."
    elif seen is None:
        history = "No process is known that ran it."
    else:
        ago = max((look.now - seen).total_seconds(), 0.0)
        history = f"The last process that ran it was active {seconds(ago)} ago."
    waits = f"{counted(delay.overdue, 'event')} should have been tried again"
    if delay.behind:
        waits = f"its next event has waited for {seconds(delay.age)}{delay.events}"
    elif delay.age:
        waits = f"it has not read events that are {seconds(delay.age)} old"
    return look.finding(
        "no-worker",
        ACT if delay.is_late else INFO,
        f"Nobody runs {name}, and {waits}. {history}",
        "Operator: start a worker, or the schedule of eventlogs.tasks.run_projections:",
        look.command(f"project {name}"),
        subject=name,
        since=seen if seen is not None and seen < look.now else delay.since,
        **delay.figures,
    )


# Rebuilds


def _rebuild(
    look: Look,
    crew: Crew,
    projection: type[RowProjection],
    stand: ProjectionStatus,
    state: ProjectionState,
) -> Iterator[Finding]:
    name = stand.name
    finding = partial(look.finding, subject=name)
    rebuild = look.command(f"rebuild {name}")
    is_inline = projection.mode == projection.INLINE
    if state.rebuild_error:
        yield finding(
            "rebuild-failed",
            ACT,
            f"The last rebuild of {name} failed: {state.rebuild_error} The old rows stay in use.",
            "Developer: fix the cause, then rebuild:",
            rebuild,
            since=state.rebuild_started_at,
        )
    asked = state.rebuild_requested_at
    is_waiting = asked is not None and name not in crew.rebuilt
    if state.rebuild_version is not None and (name in crew.rebuilt or is_inline):
        # No lease says whether a process is rebuilding an inline projection.
        yield finding(
            "rebuilding",
            INFO,
            f"{name} is being rebuilt.",
            "Operator: if the process of the rebuild has died, resume it:" if is_inline else "",
            rebuild if is_inline else "",
            since=state.rebuild_started_at,
            rebuild_version=state.rebuild_version,
        )
    elif state.rebuild_version is not None:
        yield finding(
            "rebuild-stopped",
            INFO if is_waiting else ACT,
            f"A rebuild of {name} was interrupted, and no process resumes it. The old rows stay "
            "in use.",
            "Operator: resume the rebuild:",
            rebuild,
            since=state.rebuild_started_at,
            rebuild_version=state.rebuild_version,
        )
    elif state.version > projection.version:
        newer = any(
            row.name in crew.alive
            and (each := releases.declared_by(row, name)) is not None
            and each.version >= state.version
            for row in crew.rows
        )
        yield finding(
            "old-release",
            INFO if newer else ACT,
            f"The rows of {name} were made by version {state.version}, which is newer than version "
            f"{projection.version} of this process: it does not change them.",
            "Deployer: deploy the newer release to all processes. After a rollback:",
            look.command(f"rebuild {name} --downgrade"),
            since=state.rebuilt_at,
            rows_version=state.version,
            version=projection.version,
        )
    elif stand.is_rebuild_due and not is_waiting:
        yield finding(
            "rebuild-due",
            ACT,
            f"The rows of {name} were made by version {state.version} ({state.mode}); this release "
            f"has version {projection.version} ({projection.mode}). The old rows stay in use.",
            "Deployer: rebuild the rows:",
            rebuild,
            since=state.rebuilt_at,
            rows_version=state.version,
            version=projection.version,
        )
    if asked is not None and is_waiting:
        is_late = look.now - asked > timedelta(seconds=look.limits["MAX_LAG"])
        yield finding(
            "rebuild-waiting",
            ACT if is_late and not crew.runs(name) else INFO,
            f"A rebuild of {name} was requested, and no worker has started it.",
            "Operator: start a worker, or rebuild:",
            rebuild,
            since=asked,
        )


# Workers


def _workers(look: Look, crew: Crew) -> Iterator[Finding]:
    own = {name: releases.handles_of(each) for name, each in look.projections().items()}
    alive = [row for row in crew.rows if row.name in crew.alive]
    declared = [
        (row, name, mine, theirs)
        for row in alive
        for name, mine in own.items()
        if (theirs := releases.declared_by(row, name)) is not None
    ]
    current = {name for _, name, mine, theirs in declared if theirs.digest == mine.digest}
    for row in alive:
        older: list[str] = []
        newer: list[str] = []
        for its, name, mine, theirs in declared:
            if its is row and theirs.digest != mine.digest:
                is_newer = theirs.covers(mine) and not mine.covers(theirs)
                (newer if is_newer else older).append(name)
        if newer:
            yield look.finding(
                "old-release",
                INFO,
                f"The worker {row.name} is of a newer release than this process: it handles more "
                f"of {', '.join(newer)}.",
                "Deployer: deploy that release to this process, too.",
                subject=row.name,
                since=row.declared_at,
                projections=len(newer),
            )
        if older:
            yield _old_release(look, row, older, is_alone=not set(older) <= current)
    for row in crew.rows:
        if _has_died(look, crew, row):
            yield _died(look, crew, row)


def _old_release(look: Look, row: ProjectionWorker, names: list[str], *, is_alone: bool) -> Finding:
    waiting = ParkedEvent.objects.using(look.using).filter(
        is_rebuild=False, projection__in=names, first_failed_at__lt=UTCNow() - look.max_deploy
    )
    held = waiting.exclude(awaits="").count()
    beside = "no worker of this release runs" if is_alone else "workers of this release run beside"
    harm = f"{counted(held, 'log')} wait for this release" if held else "nothing waits for it"
    return look.finding(
        "old-release",
        ACT if held else INFO,
        f"The worker {row.name} is of another release than this process: of "
        f"{', '.join(names)} it handles less, or other events; {beside}, and {harm}.",
        f"Deployer: restart that worker with this release: process {process_of(row.name)}.",
        subject=row.name,
        since=row.declared_at,
        projections=len(names),
        logs=held,
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
    return look.finding(
        "worker-died",
        INFO,
        f"The worker {row.name} ended without releasing its leases: it crashed, was killed, or "
        f"its machine is gone; {others}.",
        "Operator: look at its log, and find out why it was not started again.",
        subject=row.name,
        since=min(last_sign(row), look.now),
        projections=len(row.projections),
    )


def process_of(worker: str) -> str:
    """Return the process id in a worker's name, and its host, for people."""
    host, _, pid = worker.rpartition(":")[0].rpartition(":")
    return f"{pid} on {host.partition('.')[0]}" if pid.isdigit() else worker


# Events that hold logs


def _held(look: Look) -> Iterator[Finding]:
    here = look.projections()
    held = groups(look.using)
    parked: dict[str, int] = {}
    for each in held:
        if each.state == PARKED:
            parked[each.projection] = parked.get(each.projection, 0) + each.logs
    for each in held:
        if (
            each.projection in here
            and each.state == RELEASE
            and not is_known(each.type, each.schema_version)
        ):
            found = look.unknown.setdefault(
                (each.type, each.schema_version), Unknown(each.first_failed_at)
            )
            found.since = min(found.since, each.first_failed_at)
            found.logs += each.logs
            found.held_by.add(each.projection)
            found.is_ours = True  # a projection here reads it
        else:
            is_declared = each.projection in here
            too_many = parked.get(each.projection, 0) > look.limits["MAX_PARKED"]
            yield _group(look, each, is_declared=is_declared, is_over_limit=too_many)


def _group(look: Look, group: HeldGroup, *, is_declared: bool, is_over_limit: bool) -> Finding:
    """Return the finding about the logs that are held for one cause."""
    name, level, command = group.projection, INFO, ""
    age = look.now - group.first_failed_at
    if not is_declared:
        code = "undeclared"
        message = f"{group.headline}, in {name}, which no code of this release declares."
        action = (
            "Developer: declare it again, or delete its rows in eventlogs_parkedevent, "
            "eventlogs_checkpoint and eventlogs_projectionstate."
        )
    elif group.state == PARKED:
        code, level = "parked", ACT if is_over_limit else INFO
        message = (
            f"{group.headline}. {counted(group.logs, 'log')} of {name} "
            f"{'is' if group.logs == 1 else 'are'} held by an event {group.type}."
        )
        cause = f"{group.handler}()" if group.handler else "the cause"
        action = f"Developer: fix {cause} and deploy the fix. Then retry the events:"
        command = f"parked {name} --retry-all"
    elif group.state != RELEASE:
        code = "retrying"
        message = f"{group.headline}, in {name}, at an event {group.type}."
        action = (
            "No action needed yet: they are retried, and parked if that fails. To see the errors:"
        )
        command = f"parked {name} --details"
    else:
        code, level = "awaiting-release", ACT if age > look.max_deploy else INFO
        message = (
            f"{group.headline}, in {name}. This release can apply it, and no worker of this "
            "release has done so."
        )
        action = "Deployer: start workers of this release:"
        command = f"project {name}"
    return look.finding(
        code,
        level,
        message,
        action,
        look.command(command) if command else "",
        subject=name,
        since=group.first_failed_at,
        logs=group.logs,
        held_seconds=round(max(age.total_seconds(), 0.0), 3),
    )
