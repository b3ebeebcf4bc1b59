"""``eventlogs move LOG… --from ALIAS --to ALIAS``: move logs to another database."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.db import connections

from eventlogs.exceptions import EventLogError
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.choosing import operator
from eventlogs.management.mistakes import findings, mistake
from eventlogs.management.output import Output
from eventlogs.models import LogMove
from eventlogs.operations import moving
from eventlogs.operations.commands import command
from eventlogs.operations.moving.running import MAX_NAME
from eventlogs.routing import write_alias
from eventlogs.utils.words import counted

HELP = (
    "Move logs to another database, beside their writers. Run it again to finish an interrupted "
    "move, or with --abandon to end one that is not complete. Exit code 1: the router does not "
    "know of the move, or projections must be rebuilt."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the logs and the databases."""
    parser.add_argument(
        "log", nargs="+", type=arguments.log_id, metavar="LOG", help="The ids of the logs."
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=tuple(connections),
        help="The alias of the database where the logs are.",
    )
    parser.add_argument(
        "--to",
        dest="target",
        required=True,
        choices=tuple(connections),
        help="The alias of the database to which they go.",
    )
    arguments.add_flags(parser, abandon="End a move that is not complete: the logs stay.")
    arguments.add_number(
        parser,
        "--timeout",
        text="How long to wait for the projections and reactors of a log (60 by default).",
        default=60,
        metavar="SECONDS",
    )
    parser.add_argument("--by", metavar="NAME", help="Who does it. By default, the system's user.")


def run(
    out: Output,
    *,
    using: str,
    log: list[LogId],
    source: str,
    target: str,
    abandon: bool,
    timeout: int,
    by: str | None,
    **options: Any,
) -> None:
    """Move logs, one after the other."""
    by = (by or operator()).strip()
    if not by or len(by) > MAX_NAME:
        raise mistake(f"Say who does it: --by NAME, at most {MAX_NAME} characters.")
    if using != source:
        raise mistake("--from names the database: leave --database out.")
    if LogMove._meta.db_table not in connections[target].introspection.table_names():
        raise mistake(
            f"The database {target!r} lacks tables of eventlogs. Run: manage.py migrate --database "
            f"{target}"
        )
    if abandon:
        give_up(out, log, source, target)
        return
    done: list[moving.Moved] = []
    with out.progress("Moving", unit="events") as progress:
        for each in log:
            try:
                done.append(
                    moving.move(
                        each,
                        source=source,
                        target=target,
                        by=by,
                        timeout=float(timeout),
                        tell=progress.advance,
                    )
                )
            except EventLogError as error:
                raise mistake(f"{error} {so_far(done)}") from error
    report(out, done, source, target)


def report(out: Output, done: list[moving.Moved], source: str, target: str) -> None:
    """Say what was moved, and what is left to do."""
    unknown = [each.log_id for each in done if write_alias(each.log_id) == source]
    if out.as_json:
        out.document(
            {
                "from": source,
                "to": target,
                "logs": [each._asdict() for each in done],
                "routed_to_source": unknown,
            }
        )
    else:
        for each in done:
            events = counted(each.events, "event")
            if each.is_new:
                out.line(f"{each.log_id} was moved to {target}, with {events}.", out.style.SUCCESS)
            else:
                out.line(f"{each.log_id} was moved to {target} before, with {events}.")
    problems = []
    if unknown:
        problems.append(
            f"The router still sends {counted(len(unknown), 'log')} to {source!r}, where they take "
            f"no events: let it send them to {target!r}."
        )
    for name in sorted({name for each in done for name in each.to_rebuild}):
        problems.append(
            f"Rows that several logs share may count the events in both databases. Run: "
            f"{command(f'rebuild {name} --restart', using=source)}."
        )
    for name in sorted({name for each in done for name in each.unmade}):
        problems.append(
            f"The projection {name} could not make the rows of all logs in {target!r}. Correct it, "
            f"then run: {command(f'rebuild {name}', using=target)}."
        )
    if problems:
        raise findings(" ".join(problems))


def give_up(out: Output, logs: list[LogId], source: str, target: str) -> None:
    """End moves that are not complete."""
    for each in logs:
        moving.abandon(each, source=source, target=target)
        if not out.as_json:
            out.line(f"{each} stays in {source}, and takes events.", out.style.SUCCESS)
    if out.as_json:
        out.document({"from": source, "to": target, "abandoned": logs})


def so_far(done: list[moving.Moved]) -> str:
    """Return what was moved before an error."""
    return f"{counted(len(done), 'log was', 'logs were')} moved before." if done else ""
