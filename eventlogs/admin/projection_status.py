"""The status of projections in words: conditions, progress of a rebuild, findings, actions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext

from eventlogs.exceptions import EventLogError
from eventlogs.feed.reader import Feed
from eventlogs.feed.sources import beginning
from eventlogs.models import Checkpoint, ProjectionAction, ProjectionState
from eventlogs.operations.health import Finding, Health
from eventlogs.projections.base import BaseProjection, RowProjection, projections
from eventlogs.projections.leases import is_live
from eventlogs.projections.status import ProjectionStatus
from eventlogs.utils.times import duration

# The levels of a condition: a person must act; it passes without action; it is as it should be.
URGENT: Final = "urgent"
PASSING: Final = "passing"
FINE: Final = "fine"

DONE: Final = {
    ProjectionAction.RETRIED: _lazy("retried"),
    ProjectionAction.SKIPPED: _lazy("skipped permanently"),
    ProjectionAction.PASSED_OVER: _lazy("passed over all earlier events"),
    ProjectionAction.REBUILD_REQUESTED: _lazy("requested a rebuild"),
    ProjectionAction.REBUILT: _lazy("rebuilt"),
    ProjectionAction.REBUILD_FAILED: _lazy("rebuild failed"),
}


class Condition(NamedTuple):
    """One fact of a projection's status, and its level."""

    text: str
    level: str


class Progress(NamedTuple):
    """The progress of a rebuild."""

    done: str
    total: str
    unit: str
    percent: int
    applied: str  # events
    started: datetime | None
    moved: datetime | None
    owners: tuple[str, ...]  # the processes that run it; empty if it was interrupted
    is_known: bool  # False: whether a process runs it is unknown


def conditions(standing: ProjectionStatus, alarms: Collection[str]) -> list[Condition]:
    """
    Return the conditions of a projection.

    ``alarms`` are the codes of those findings of the health check on which somebody must act.
    """
    found: list[Condition] = []

    def level(*codes: str) -> str:
        return URGENT if any(each in alarms for each in codes) else PASSING

    held = standing.parked + standing.waiting
    if "rebuild-failed" in alarms:
        found.append(Condition(_("the last rebuild failed"), URGENT))
    elif "rebuild-stopped" in alarms:
        found.append(Condition(_("a rebuild was interrupted"), URGENT))
    if standing.parked:
        found.append(Condition(_("%s parked") % number(standing.parked), level("parked")))
    if standing.is_rebuild_due:
        found.append(
            Condition(
                _("rebuild due: the rows are version %(rows)s, the code is version %(code)s")
                % {"rows": standing.rows_version, "code": standing.version},
                level("rebuild-due", "rebuild-stopped", "old-release"),
            )
        )
    if retried := standing.waiting - standing.awaiting_release:
        text = ngettext("%s waits for a retry", "%s wait for a retry", retried)
        found.append(Condition(text % number(retried), PASSING))
    if standing.awaiting_release:
        text = ngettext(
            "%s waits for a release", "%s wait for a release", standing.awaiting_release
        )
        found.append(Condition(text % number(standing.awaiting_release), level("awaiting-release")))
    if standing.problem:
        found.append(Condition(standing.problem, PASSING))
    elif standing.rows_version is None:
        text = _("has never run")
        if standing.positions_behind or standing.at_least:
            text += f", {_behind(standing)}"
        found.append(Condition(text, level("lag", "no-worker")))
    elif standing.positions_behind or standing.at_least:
        found.append(Condition(_behind(standing), level("lag", "no-worker")))
    elif held:
        text = ngettext(
            "up to date, except for %s held log",
            "up to date, except for %s held logs",
            held,
        )
        found.append(Condition(text % number(held), FINE))
    else:
        found.append(Condition(_("up to date"), FINE))
    return found


def _behind(standing: ProjectionStatus) -> str:
    """Return in words how far a projection is behind."""
    count = standing.positions_behind or 0
    if not count:
        return _("behind by an unknown number of events")
    text = (
        ngettext("behind by at least %s event", "behind by at least %s events", count)
        if standing.at_least
        else ngettext("behind by %s event", "behind by %s events", count)
    )
    return text % number(count) + (f", {duration(standing.age)}" if standing.age else "")


def progress(
    projection: type[BaseProjection], using: str, state: ProjectionState | None
) -> Progress | None:
    """Return the progress of a projection's rebuild, or None if none is unfinished."""
    if state is None or state.rebuild_version is None or not issubclass(projection, RowProjection):
        return None
    if projection.mode == projection.INLINE:
        done, total = state.rebuild_done, state.rebuild_total
        return Progress(
            done=number(done),
            total=number(total),
            unit=_("logs"),
            percent=_percent(done, total),
            applied=number(state.rebuild_applied),
            started=state.rebuild_started_at,
            moved=None,
            owners=(),
            is_known=False,
        )
    places = list(
        Checkpoint.objects.using(using).filter(projection=projection.name, is_rebuild=True)
    )
    done = min((each.position for each in places), default=0)
    try:
        before = beginning(using)
        total = Feed(using=using).settled() - before
        done = max(done - before, 0)
    except EventLogError:
        total = 0
    owners = {each.owner for each in places if each.owner and is_live(each, using=using)}
    return Progress(
        done=number(done),
        total=number(total) if total else "?",
        unit=_("positions"),
        percent=_percent(done, total),
        applied=number(sum(each.applied for each in places)),
        started=state.rebuild_started_at,
        moved=max((each.moved_at for each in places if each.moved_at), default=None),
        owners=tuple(sorted(owners)),
        is_known=True,
    )


def row(standing: ProjectionStatus, alarms: Collection[str]) -> dict[str, Any]:
    """Return the row of a projection in the list of projections."""
    age, rate = standing.age, standing.rate
    return {
        "name": standing.name,
        "kind": standing.kind,
        "version": standing.version,
        "conditions": conditions(standing, alarms),
        "position": number(standing.position),
        "behind": standing.behind,
        "lag": "" if age is None else duration(age),
        "rate": f"{rate:,.0f}/s" if rate else "",
        "applied": number(standing.applied),
        "run_by": _run_by(standing),
    }


def _run_by(standing: ProjectionStatus) -> str:
    if standing.owners:
        workers = ngettext("%s worker", "%s workers", len(standing.owners)) % len(standing.owners)
        return _("%(workers)s for %(partitions)s") % {
            "workers": workers,
            "partitions": ngettext("%s partition", "%s partitions", standing.partitions)
            % standing.partitions,
        }
    return _("each append") if standing.kind == "inline" else _("no worker")


def shown_findings(checked: Health, is_wanted: Callable[[Finding], bool]) -> list[dict[str, Any]]:
    """Return findings for a template."""
    return [
        {
            "finding": each,
            "is_projection": each.subject in projections,
            "ago": duration(checked.looked_at - each.since) if each.since else "",
        }
        for each in checked.findings
        if is_wanted(each)
    ]


def alarms_of(checked: Health, name: str) -> set[str]:
    """Return the codes of the findings of a projection on which somebody must act."""
    return {each.code for each in checked.findings if each.must_act and each.subject == name}


def shown_actions(rows: Iterable[ProjectionAction]) -> list[dict[str, Any]]:
    """Return actions for a template."""
    return [
        {
            "entry": each,
            "what": DONE.get(each.action, each.action),
            "is_declared": each.projection in projections,
            "count": "" if each.count is None else number(each.count),
            "took": "" if each.seconds is None else duration(each.seconds),
        }
        for each in rows
    ]


def number(value: int) -> str:
    """Return a number with separators, in the form of the commands."""
    return f"{value:,}"


def _percent(done: int, total: int) -> int:
    return min(100, 100 * done // total) if total else 0
