"""What was done with projections, as the command shows it: ``eventlogs parked --history``."""

from __future__ import annotations

from typing import Any

from eventlogs.management.choosing import choose
from eventlogs.management.output import Output
from eventlogs.models import ProjectionAction
from eventlogs.projections import actions
from eventlogs.projections.base import projections
from eventlogs.utils.times import duration, time_text


def write_history(out: Output, names: list[str], using: str, limit: int | None) -> None:
    """
    Write who did what, the newest first.

    ``names`` are also those of projections that are not declared any more. Raise CommandError
    for a name that has neither a projection nor a history.
    """
    found = actions.of(None, using)
    if names:
        for name in names:
            if name not in projections and not actions.of(name, using).exists():
                choose([name], using)
        found = found.filter(projection__in=names)
    shown = found if limit is None else found[: limit + 1]
    if out.as_json:
        for each in (shown if limit is None else shown[:limit]).iterator():
            out.record(as_json(each))
        return
    entries = list(shown)
    more = limit is not None and len(entries) > limit
    entries = entries[:limit]
    if not entries and not more:
        out.line("Nothing was done with it yet." if len(names) == 1 else "Nothing was done yet.")
        return
    out.table(
        [
            (
                time_text(each.at),
                each.by or "?",
                each.projection,
                each.action,
                place_of(each),
                each.count,
                "" if each.seconds is None else duration(each.seconds),
                each.note,
            )
            for each in entries
        ],
        head=("when", "who", "projection", "what", "event", "count", "took", ""),
        right=(5, 6),
        wrap=True,
    )
    if more:
        out.line()
        out.line(f"The newest {len(entries):,} are shown. --limit N or --all shows more.")


def place_of(action: ProjectionAction) -> str:
    """Return the id of the event, or of the log, that an action was about; "" for many."""
    if action.index is not None:
        return f"{action.log_id}:{action.index}"
    return str(action.log_id or "")


def as_json(action: ProjectionAction) -> dict[str, Any]:
    """Return what is known of an action."""
    return {
        "at": action.at,
        "by": action.by,
        "projection": action.projection,
        "action": action.action,
        "log_id": action.log_id,
        "index": action.index,
        "count": action.count,
        "seconds": action.seconds,
        "note": action.note,
    }
