"""``eventlogs partition``: partition the table of events by log, or make it one table again."""

from __future__ import annotations

from typing import Any, Final

from django.core.management.base import CommandParser

from eventlogs.management import arguments
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.operations import partitioning
from eventlogs.utils.words import counted

HELP = (
    "Partition the table of events by log, beside running writers (PostgreSQL). Interrupted, it "
    "goes on when it is run again. With --undo, make it one table again."
)
DEFAULT: Final = 16


def add_arguments(parser: CommandParser) -> None:
    """Add what to do."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--partitions",
        type=arguments.at_least(2),
        default=DEFAULT,
        metavar="N",
        help=f"How many, at most {partitioning.MAX_PARTITIONS}; by default {DEFAULT}.",
    )
    which.add_argument("--undo", action="store_true", help="Make it one table again.")
    which.add_argument(
        "--abandon", action="store_true", help="Give up a copy that was begun and not finished."
    )


def run(
    out: Output, *, using: str, partitions: int, undo: bool, abandon: bool, **options: Any
) -> None:
    """Partition the table, make it one table again, or give a copy up."""
    if abandon:
        was_there = partitioning.abandon(using=using)
        if out.as_json:
            out.document({"database": using, "abandoned": was_there})
        elif was_there:
            out.line("The copy was given up. The table is as it was.", out.style.SUCCESS)
        else:
            out.line("No copy was begun.")
        return
    wanted = 0 if undo else partitions
    if wanted > partitioning.MAX_PARTITIONS:
        raise mistake(f"Choose 2 to {partitioning.MAX_PARTITIONS} partitions.")
    with out.progress("Copying", unit="events") as progress:
        told = 0
        waited_for: tuple[int, ...] = ()

        def tell(done: partitioning.Partitioned) -> None:
            nonlocal told, waited_for
            progress.advance(done.copied - told)
            told = done.copied
            if done.waiting_for and done.waiting_for != waited_for:
                out.note(
                    "Waiting for the transactions of these server processes: "
                    + ", ".join(map(str, done.waiting_for))
                )
            waited_for = done.waiting_for

        done = partitioning.partition(wanted, using=using, tell=tell)
    what = f"partitioned into {wanted}" if wanted else "one table"
    if out.as_json:
        out.document(
            {
                "database": using,
                "partitions": wanted,
                "copied": done.copied,
                "swapped": done.swapped,
            }
        )
    elif done.swapped:
        copied = counted(done.copied, "event was copied", "events were copied")
        out.line(f"The table of events is {what} now: {copied}.", out.style.SUCCESS)
    else:
        out.line(f"The table of events is {what} already.")
