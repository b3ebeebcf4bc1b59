"""``eventlogs parked``: events that projections could not apply: list, retry, skip; history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from django.core.management.base import CommandParser

from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.choosing import choose, operator
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import EventLines, Output, clean
from eventlogs.models import ParkedEvent, ProjectionAction
from eventlogs.operations.commands import command
from eventlogs.projections import actions
from eventlogs.projections.base import projections
from eventlogs.projections.held_causes import PARKED, WORDS, HeldGroup, groups, state_of
from eventlogs.projections.operations import Operations
from eventlogs.utils.times import duration, time_text
from eventlogs.utils.words import counted

HELP = (
    "Show the events that projections could not apply; retry or skip them. Show the history of "
    "retries, skips and rebuilds."
)

LIMIT: Final = 50  # events that are shown, unless --limit or --all

EVENT_FIELDS: Final = (  # in JSON, where is_parked is "parked"
    *("projection", "log_id", "index", "position", "type", "attempts"),
    *("is_parked", "awaits_release", "retry_at", "failed_at", "error", "handler"),
)
ACTION_FIELDS: Final = (
    *("at", "by", "projection", "action", "log_id", "index", "count", "seconds", "note"),
)


def add_arguments(parser: CommandParser) -> None:
    """Add which events, and the action."""
    arguments.add_projections(parser, "Only these projections.")
    arguments.add_flags(parser, details="Show tracebacks, which may contain payload data.")
    shown = parser.add_mutually_exclusive_group()
    text = f"Show the first N events ({LIMIT} by default; with --json, all)."
    arguments.add_number(shown, "--limit", lowest=0, text=text)
    arguments.add_flags(shown, all="Show all events.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--retry", type=arguments.log_id, metavar="LOG", help="Retry the event that holds this log."
    )
    arguments.add_flags(
        action,
        retry_all="Retry all events.",
        history="Show who did what with projections: retries, skips, events passed over, rebuilds.",
    )
    action.add_argument(
        "--skip",
        type=arguments.log_id,
        metavar="LOG",
        help="Skip the event that holds this log permanently, also in rebuilds. Needs --yes.",
    )
    arguments.add_flags(parser, yes="Confirm --skip.")


def run(
    out: Output,
    *,
    using: str,
    names: list[str],
    details: bool,
    retry: LogId | None,
    retry_all: bool,
    skip: LogId | None,
    yes: bool,
    limit: int | None,
    all: bool,
    history: bool,
    **options: Any,
) -> None:
    """Write the events that wait or the history, or retry or skip events."""
    if limit is None and not all and not out.as_json:
        limit = LIMIT
    if history:
        write_history(out, names, using, limit)
        return
    chosen = choose(names, using, Operations)
    known = [each.name for each in chosen]
    if skip is not None:
        if len(names) != 1:
            raise mistake("Name the one projection whose event is to be skipped.")
        if not yes:
            raise mistake(
                "A skipped event is missing from the rows permanently. Add --yes to confirm, or "
                "use --retry to try it again."
            )
        if not chosen[0].skip(skip, by=operator(), using=using):
            raise mistake(f"No event of {skip} waits in {names[0]!r}.")
        out.line(f"Skipped. The workers of the projection apply the later events of {skip} now.")
        return
    if retry is not None or retry_all:
        count = sum(each.retry(retry, by=operator(), using=using) for each in chosen)
        if not count and retry is not None:
            raise mistake(f"No event of {retry} waits in {', '.join(known)}.")
        if out.as_json:
            out.document({"retried": count})
        else:
            out.line(f"{counted(count, 'event')} will be retried now, by the workers.")
        return
    write(out, known, using, details, limit)


def write(out: Output, names: list[str], using: str, details: bool, limit: int | None) -> None:
    """Write the causes that hold logs, then the events, up to a limit."""
    found = (
        ParkedEvent.objects.using(using)
        .filter(projection__in=names, is_rebuild=False)
        .order_by("projection", "position")
    )
    if limit is not None:
        found = found[:limit]
    if out.as_json:
        for each in found.iterator():
            out.record(values(each, (*EVENT_FIELDS, "details") if details else EVENT_FIELDS))
        return
    held = groups(using, names)
    if not held:
        out.line("No event waits.", out.style.SUCCESS)
        return
    write_groups(out, held, using)
    waiting = list(found)
    if waiting:
        out.line()
        write_events(out, waiting, details)
    total = sum(each.logs for each in held)
    if len(waiting) < total:
        out.line()
        of = counted(total, "event")
        out.line(f"{len(waiting):,} of {of} are shown. --limit N or --all shows more.")


def write_groups(out: Output, held: list[HeldGroup], using: str) -> None:
    """Write a paragraph for each cause that holds logs."""
    for each in held:
        out.line(clean(each.headline), out.style.ERROR if each.state == PARKED else None)
        since, last = time_text(each.first_failed_at), time_text(each.failed_at)
        failed = f"first failed {since}, last {last}" if each.error else f"since {since}"
        of = f"{each.projection}, {each.type} version {each.schema_version}"
        out.line(f"  {clean(of)}; {failed}")
    parked = sorted({each.projection for each in held if each.state == PARKED})
    if parked:
        out.line("Fix the cause, then retry the events:")
        out.line("  " + command(f"parked {' '.join(parked)} --retry-all", using=using))


def write_events(out: Output, waiting: list[ParkedEvent], details: bool) -> None:
    """Write a line for each event; with ``details``, its traceback below."""
    EventLines(out, painted=3).write(
        (
            (each.projection, f"{each.log_id}:{each.index}", each.type, WORDS[state_of(each)]),
            f"{counted(each.attempts, 'try', 'tries')}, the last at {time_text(each.failed_at)}: "
            + each.error
            + (f" in {each.handler}()" if each.handler else ""),
            [(line, None) for line in each.details.splitlines()] if details else (),
        )
        for each in waiting
    )


def write_history(out: Output, names: list[str], using: str, limit: int | None) -> None:
    """
    Write the history of projections: who did what, the newest first.

    ``names`` may also be those of projections that are no longer declared. Raise CommandError
    for a name that has neither a projection nor a history.
    """
    found = actions.of(None, using)
    for name in names:
        if name not in projections and not actions.of(name, using).exists():
            choose([name], using, Operations)
    if names:
        found = found.filter(projection__in=names)
    entries = list(found if limit is None else found[: limit + 1])
    more = limit is not None and len(entries) > limit
    entries = entries[:limit]
    if out.as_json:
        for each in entries:
            out.record(values(each, ACTION_FIELDS))
        return
    if not entries and not more:
        out.line("The history is empty.")
    EventLines(out, painted=3).write(
        (
            (time_text(each.at), each.by or "?", each.projection, each.action),
            "; ".join(filter(None, facts_of(each))),
            (),
        )
        for each in entries
    )
    if more:
        out.line(f"\nThe newest {len(entries):,} are shown. --limit N or --all shows more.")


def facts_of(action: ProjectionAction) -> tuple[str, ...]:
    """Return the event or log of an action, its count, its duration and its note."""
    place = "" if action.log_id is None else str(action.log_id)
    return (
        place if action.index is None else f"{place}:{action.index}",
        "" if action.count is None else f"count {action.count:,}",
        "" if action.seconds is None else f"took {duration(action.seconds)}",
        action.note,
    )


def values(row: ParkedEvent | ProjectionAction, names: Sequence[str]) -> dict[str, Any]:
    """Return the values of a row for JSON, without the prefix of a property."""
    return {name.removeprefix("is_"): getattr(row, name) for name in names}
