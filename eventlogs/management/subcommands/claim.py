"""``eventlogs claim``: claim the unique values that stored events hold."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.mistakes import findings
from eventlogs.management.output import Output
from eventlogs.operations.commands import command
from eventlogs.operations.unique_values import Claimed, claim
from eventlogs.utils.words import counted

HELP = (
    "Claim the unique values of stored events, e.g. of those from before their class declared "
    "Unique. Exit code 1: two logs hold one value."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the logs."""
    arguments.add_log_types(parser)
    parser.add_argument(
        "--after",
        type=arguments.log_id,
        metavar="LOG",
        help="Skip the logs up to this one, which an earlier run has compared.",
    )


def run(
    out: Output, *, using: str, log_type: list[str], after: LogId | None, **options: Any
) -> None:
    """Claim values, name those that two logs hold, and report."""
    claimed = Claimed()
    with out.progress("Claiming", unit="logs") as progress:
        try:
            claim(
                using=using,
                log_types=log_type,
                after=after,
                claimed=claimed,
                tell=progress.advance,
            )
        except KeyboardInterrupt:
            if claimed.reached is not None:
                out.note(f"\nTo resume: --after {claimed.reached}")
            raise
    problems = len(claimed.taken) + len(claimed.unread)
    if out.as_json:
        out.document(
            {
                "logs": claimed.logs,
                "changed": claimed.changed,
                "taken": [each._asdict() for each in claimed.taken],
                "unread": claimed.unread,
            }
        )
    else:
        for each in claimed.taken:
            out.line(f"{each.log_id}: its value in {each.scope} belongs to {each.owner} as well")
        for log_id in claimed.unread:
            out.line(f"{log_id}: one of its events cannot be read, so it was left out")
        compared = counted(claimed.logs, "log was compared", "logs were compared")
        changed = counted(claimed.changed, "was changed", "were changed")
        out.line(f"{compared}, {changed}.", None if problems else out.style.SUCCESS)
    if problems:
        raise findings(
            f"{counted(problems, 'log', 'logs')} with a value that could not be claimed. Append "
            f"another value to one of each two logs, or correct the classes, then run "
            f"{command('claim', using=using)} again."
        )
