"""
``manage.py eventlogs <subcommand>``: one command, a module for each of its subcommands.

This module has what they share: the common options, the exit codes, and the handling of Ctrl-C,
of closed pipes and of errors.

    0    done
    1    done, with findings: of ``verify``, ``claim``, ``import`` or ``adopt --dry-run``, or of
         ``health`` if somebody must act
    2    not done: a wrong option, an unknown log, a database that does not answer
    130  interrupted by Ctrl-C; run it again to resume, if the subcommand can
    141  the reader of the output has closed the pipe (``| head``)
    143  ended by SIGTERM
"""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    DjangoHelpFormatter,
)
from django.db import DatabaseError, InterfaceError, connections

from eventlogs.exceptions import EventLogError
from eventlogs.ids import LogId
from eventlogs.management.mistakes import FINDINGS, INTERRUPTED, NOT_DONE, PIPE_CLOSED, mistake
from eventlogs.management.output import Output
from eventlogs.management.subcommands import SUBCOMMANDS
from eventlogs.models import Event
from eventlogs.routing import databases_of as spread_over
from eventlogs.routing import write_alias

EPILOG = (
    f"Exit codes: 0 done; {FINDINGS} done, with findings; {NOT_DONE} not done; "
    f"{INTERRUPTED} interrupted; {PIPE_CLOSED} the reader closed the pipe."
)


WITHOUT_TABLES = {"health"}  # missing tables are one of its findings

# Run for each database among which a router spreads logs.
EACH_DATABASE = {
    *("archive", "chain", "claim", "health", "parked", "prune", "rebuild", "stats", "verify"),
}


class Command(BaseCommand):
    """Read, check, export and import logs of events."""

    help = "Read, check, export and import logs of events."
    requires_system_checks = ()  # logs must be readable while another app's check fails

    def add_arguments(self, parser: CommandParser) -> None:
        """Add a parser for each subcommand, with the options that they share."""
        parser.epilog = EPILOG
        choices = parser.add_subparsers(dest="subcommand", required=True, metavar="subcommand")
        for name, module in SUBCOMMANDS.items():
            each = choices.add_parser(
                name,
                help=module.HELP,
                description=module.HELP,
                epilog=EPILOG,
                formatter_class=DjangoHelpFormatter,
            )
            module.add_arguments(each)
            add_common_arguments(each)

    def handle(self, *args: Any, subcommand: str, **options: Any) -> None:
        """Run a subcommand; a mistake of the user is a CommandError."""
        out = Output(self, as_json=options.pop("json"), force_color=options["force_color"])
        # Where it was not given it stays None: some commands are then about all databases.
        given = options["database"]
        aliases = [given] if given else databases_of(subcommand, options)
        ended: dict[str, CommandError] = {}
        for using in aliases:
            if len(aliases) > 1:
                out.begin_database(using)
            try:
                run(out, subcommand, using, options)
            except CommandError as error:
                ended[using] = error
        if len(aliases) == 1 and ended:
            raise ended[aliases[0]]
        if ended:
            raise CommandError(
                "\n".join(f"{using}: {error}" for using, error in ended.items()),
                returncode=max(error.returncode for error in ended.values()),
            )

    def run_from_argv(self, argv: list[str]) -> None:
        """Run from a command line: Ctrl-C and a closed pipe end it without a traceback."""
        try:
            try:
                super().run_from_argv(argv)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # The rest of the buffer cannot be written, and must not fail at exit
            # (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(PIPE_CLOSED)
        except KeyboardInterrupt:
            sys.stderr.write("\nInterrupted.\n")
            sys.exit(INTERRUPTED)


def run(out: Output, subcommand: str, using: str, options: dict[str, Any]) -> None:
    """Run a subcommand on one database."""
    try:
        with no_list_of_statements():
            if subcommand not in WITHOUT_TABLES:
                check_tables(using)
            SUBCOMMANDS[subcommand].run(out, using=using, **options)
    except EventLogError as error:
        raise mistake(str(error)) from error
    except (DatabaseError, InterfaceError) as error:
        raise mistake(f"The database {using!r} gave an error: {error}".strip()) from error


def databases_of(subcommand: str, options: dict[str, Any]) -> list[str]:
    """
    Return the databases that a subcommand is about if --database was not given.

    Options may name logs: then it is their database. Without them it is the one that logs are
    written to, or, for subcommands of EACH_DATABASE, each of those over which a router spreads
    logs. A move is about the database that it names.
    """
    if subcommand == "move":
        return [options["source"]]
    flat = chain.from_iterable(
        each if isinstance(each, list) else [each] for each in options.values()
    )
    aliases = {write_alias(each) for each in flat if isinstance(each, LogId)}
    if len(aliases) > 1:
        raise mistake(
            f"These logs are in several databases: {', '.join(sorted(aliases))}. Run the command "
            f"for each of them, with --database."
        )
    if aliases:
        return [*aliases]
    spread = spread_over() if subcommand in EACH_DATABASE else ()
    return [*spread] or [write_alias()]


@contextmanager
def no_list_of_statements() -> Iterator[None]:
    """
    Turn off Django's list of executed statements.

    With DEBUG it keeps the last 9,000 of each connection, with their parameters: in an import,
    that is the whole file. It stays on while a test captures them (assertNumQueries).
    """
    lists = {
        connection: connection.queries_log
        for connection in connections.all()
        if not connection.force_debug_cursor
    }
    for connection in lists:
        connection.queries_log = deque(maxlen=0)
    try:
        yield
    finally:
        for connection, before in lists.items():
            connection.queries_log = before


def add_common_arguments(parser: CommandParser) -> None:
    """Add the common options; Django's own also work after the subcommand's name."""
    parser.add_argument(
        "--database",
        choices=tuple(connections),
        help="The database alias. By default, the one that logs are written to.",
    )
    parser.add_argument("--json", action="store_true", help="Write JSON, for programs.")
    djangos: dict[str, dict[str, Any]] = {
        "--no-color": {"action": "store_true"},
        "--force-color": {"action": "store_true"},
        "--traceback": {"action": "store_true"},
        "--settings": {},
        "--pythonpath": {},
        "--verbosity": {"type": int, "choices": (0, 1, 2, 3)},
    }
    for option, arguments in djangos.items():
        names = ("-v", option) if option == "--verbosity" else (option,)
        # Without a default here, the value of the main parser stays.
        parser.add_argument(*names, default=SUPPRESS, help=SUPPRESS, **arguments)


def check_tables(using: str) -> None:
    """Raise CommandError if the database does not answer, or was not migrated."""
    tables = connections[using].introspection.table_names()
    if Event._meta.db_table not in tables:
        raise mistake(
            f"The database {using!r} has no tables of eventlogs. "
            f"Run: manage.py migrate --database {using}"
        )
