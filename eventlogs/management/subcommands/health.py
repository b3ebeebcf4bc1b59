"""``eventlogs health``: problems, since when they exist, and who must act."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import CommandParser

from eventlogs.management.mistakes import findings
from eventlogs.management.output import Output, clean
from eventlogs.operations.health import Finding, Health, health
from eventlogs.utils.times import duration, time_text
from eventlogs.utils.words import counted, seconds

HELP = "Show problems, since when they exist, and who must act. Exit code 1: somebody must act."

NAMED = 5  # findings in the message at the end
LIMITS = {
    "max_lag": "an event may wait N seconds for a projection",
    "max_held": "a transaction may hold the feed back for N seconds",
    "max_parked": "N logs of a projection may be held by parked events",
    "max_deploy": "two releases may run side by side for N seconds",
}


def add_arguments(parser: CommandParser) -> None:
    """Add the limits above which somebody must act."""
    for name, what in LIMITS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=limit,
            metavar="N",
            help=f'Limit: {what}. By default, that of EVENTLOGS["HEALTH"].',
        )


def limit(text: str) -> float:
    """Read a limit: a number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise ArgumentTypeError("this is not a number from 0.")
    return value


def run(
    out: Output,
    *,
    using: str,
    **options: Any,
) -> None:
    """Write the findings; raise CommandError with exit code 1 if somebody must act."""
    found = health(using=using, **{name: options[name] for name in LIMITS})
    if out.as_json:
        out.document(found.as_json())
    else:
        write(out, found)
    if not found.is_healthy:
        acts = [f"{each.code} of {each.subject}" for each in found.findings if each.must_act]
        more = f" and {len(acts) - NAMED} more" if len(acts) > NAMED else ""
        raise findings(f"Somebody must act: {clean(', '.join(acts[:NAMED]))}{more}.")


def write(out: Output, found: Health) -> None:
    """Write findings, those that need an action first, and the status of projections."""
    acts = [each for each in found.findings if each.must_act]
    infos = [each for each in found.findings if not each.must_act]
    if acts:
        out.line(f"Somebody must act: {counted(len(acts), 'finding')}.", out.style.ERROR)
    else:
        out.line("All is well.", out.style.SUCCESS)
    out.line(f"Database {found.using!r} at {time_text(found.looked_at)}.")
    for each in acts:
        write_finding(out, found, each)
    if infos:
        out.heading("For information")
    for each in infos:
        write_finding(out, found, each)
    write_projections(out, found)


def write_finding(out: Output, found: Health, each: Finding) -> None:
    """Write a finding: code, subject and age; message; action; a command on its own line."""
    paint = out.style.ERROR if each.must_act else out.style.MIGRATE_LABEL
    since = ""
    if each.since is not None:
        ago = max((found.looked_at - each.since).total_seconds(), 0.0)
        since = f"  since {time_text(each.since)} ({seconds(ago)})"
    out.line()
    out.line(f"{paint(each.code)}  {clean(each.subject)}{since}")
    out.paragraph(each.message, indent=2)
    if each.action:
        out.paragraph(each.action, out.style.WARNING if each.must_act else None, indent=2)
    if each.command:
        # On one line, whatever the width: it is to be pasted.
        out.line(f"    {clean(each.command)}", out.style.SQL_KEYWORD if each.must_act else None)


def write_projections(out: Output, found: Health) -> None:
    """Write a row for each projection, also if nothing is wrong."""
    if not found.projections:
        return
    out.heading(counted(len(found.projections), "projection"))
    out.table(
        [
            (
                name,
                behind(each),
                duration(each["lag_seconds"]) if "lag_seconds" in each else "?",
                figure(each, "parked"),
                figure(each, "waiting"),
                "yes" if each.get("is_running") else "no",
            )
            for name, each in found.projections.items()
        ],
        head=("projection", "behind", "lag", "parked", "waiting", "running"),
        right=(1, 2, 3, 4),
    )


def behind(figures: Any) -> str:
    """Return how many events a projection is behind; a plus marks a lower bound."""
    if figures.get("is_at_least") and not figures.get("events_behind"):
        return "?"  # none was found among the events that were read
    return figure(figures, "events_behind") + ("+" if figures.get("is_at_least") else "")


def figure(figures: Any, name: str) -> str:
    """Return a figure, or a question mark if it is not known."""
    return f"{figures[name]:,.0f}" if name in figures else "?"
