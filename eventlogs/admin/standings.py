"""What the pages of projections say about each, in words: how it stands, how far a rebuild is."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final, NamedTuple

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from eventlogs.exceptions import EventLogError
from eventlogs.feed.reader import Feed
from eventlogs.models import Checkpoint, ProjectionState
from eventlogs.projections.base import BaseProjection, RowProjection
from eventlogs.projections.leases import is_live
from eventlogs.projections.status import Standing
from eventlogs.utils.times import duration

# Who has to do something about it: a person, nobody (it passes by itself), or it is all right.
PERSON: Final = "person"
NOBODY: Final = "nobody"
FINE: Final = "fine"


class Condition(NamedTuple):
    """One thing that is to be said about a projection, and who must act."""

    text: str
    who: str


class Progress(NamedTuple):
    """How far a rebuild is."""

    done: str
    total: str
    unit: str
    percent: int
    applied: str  # events
    started: datetime | None
    moved: datetime | None
    owners: tuple[str, ...]  # processes that are at it; empty where it was interrupted
    is_known: bool  # whether somebody is at it


def conditions(standing: Standing, alarms: Collection[str]) -> list[Condition]:
    """
    Return what is to be said about a projection.

    ``alarms`` are the codes of the findings of health that somebody must act on.
    """
    found: list[Condition] = []

    def who(*codes: str) -> str:
        return PERSON if any(each in alarms for each in codes) else NOBODY

    held = standing.parked + standing.waiting
    if "rebuild-failed" in alarms:
        found.append(Condition(_("the last rebuild has failed"), PERSON))
    elif "rebuild-stopped" in alarms:
        found.append(Condition(_("a rebuild was interrupted"), PERSON))
    if standing.parked:
        found.append(Condition(_("%s parked") % number(standing.parked), who("parked")))
    if standing.is_rebuild_due:
        found.append(
            Condition(
                _("rebuild due: rows are of version %(rows)s, the code is of version %(code)s")
                % {"rows": standing.rows_version, "code": standing.version},
                who("rebuild-due", "rebuild-stopped", "old-release"),
            )
        )
    if retried := standing.waiting - standing.awaiting_release:
        text = ngettext("%s is tried again", "%s are tried again", retried)
        found.append(Condition(text % number(retried), NOBODY))
    if standing.awaiting_release:
        text = ngettext(
            "%s waits for a release", "%s wait for a release", standing.awaiting_release
        )
        found.append(Condition(text % number(standing.awaiting_release), who("awaiting-release")))
    if standing.problem:
        found.append(Condition(standing.problem, NOBODY))
    elif standing.rows_version is None:
        text = _("has never run")
        if standing.positions_behind or standing.at_least:
            text += f", {_behind(standing)}"
        found.append(Condition(text, who("lag", "no-worker")))
    elif standing.positions_behind or standing.at_least:
        found.append(Condition(_behind(standing), who("lag", "no-worker")))
    elif held:
        text = ngettext(
            "up to date, but for %s log that is held",
            "up to date, but for %s logs that are held",
            held,
        )
        found.append(Condition(text % number(held), FINE))
    else:
        found.append(Condition(_("up to date"), FINE))
    return found


def _behind(standing: Standing) -> str:
    """Return how far a projection is behind, in words."""
    count = standing.positions_behind or 0
    if not count:
        return _("too far from the newest event to say by how much it is behind")
    text = (
        ngettext("behind by at least %s event", "behind by at least %s events", count)
        if standing.at_least
        else ngettext("behind by %s event", "behind by %s events", count)
    )
    return text % number(count) + (f", {duration(standing.age)}" if standing.age else "")


def progress(
    projection: type[BaseProjection], using: str, state: ProjectionState | None
) -> Progress | None:
    """Return how far the rebuild of a projection is, None where there is none to go on with."""
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
        total = Feed(using).settled()
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


def row(standing: Standing, alarms: Collection[str]) -> dict[str, Any]:
    """Return the line of a projection in the list of all."""
    age, rate = standing.age, standing.rate
    return {
        "name": standing.name,
        "kind": standing.kind,
        "version": standing.version,
        "conditions": conditions(standing, alarms),
        "position": number(standing.position),
        "behind": "?"
        if standing.positions_behind is None
        or (standing.at_least and not standing.positions_behind)
        else number(standing.positions_behind) + ("+" if standing.at_least else ""),
        "lag": "" if age is None else duration(age),
        "rate": f"{rate:,.0f}/s" if rate else "",
        "applied": number(standing.applied),
        "run_by": _run_by(standing),
    }


def _run_by(standing: Standing) -> str:
    if standing.owners:
        return _("%(workers)s for %(partitions)s") % {
            "workers": len(standing.owners),
            "partitions": standing.partitions,
        }
    return _("each append") if standing.kind == "inline" else _("nobody")


def number(value: int) -> str:
    """Return a number with separators, as the commands write it."""
    return f"{value:,}"


def _percent(done: int, total: int) -> int:
    return min(100, 100 * done // total) if total else 0
