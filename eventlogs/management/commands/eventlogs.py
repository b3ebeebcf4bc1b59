"""
``manage.py eventlogs <subcommand>``: one command, a module for each of its subcommands.

What is here concerns them all: the common options, the exit codes, and what happens when
somebody presses Ctrl-C, closes the pipe, or makes a mistake.

    0    done
    1    done, and the answer is bad news: ``verify`` has findings, ``health`` wants a person
    2    not done: a wrong option, an unknown log, a database that does not answer
    130  interrupted by Ctrl-C; running it again carries on where that is possible
    141  whoever read the output went away (``| head``)
    143  ended by SIGTERM
"""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandParser, DjangoHelpFormatter
from django.db import DatabaseError, InterfaceError, connections, router

from eventlogs.exceptions import EventLogError
from eventlogs.management.mistakes import FINDINGS, INTERRUPTED, NOT_DONE, PIPE_CLOSED, mistake
from eventlogs.management.output import Output
from eventlogs.management.subcommands import SUBCOMMANDS
from eventlogs.models import Event, EventLog

EPILOG = (
    f"Exit codes: 0 done; {FINDINGS} done, with findings; {NOT_DONE} not done; "
    f"{INTERRUPTED} interrupted; {PIPE_CLOSED} the reader of the output went away."
)


WITHOUT_TABLES = {"health"}  # it says so itself, where there are none


class Command(BaseCommand):
    """Read, check and carry logs of events."""

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
        """Run a subcommand; whatever a user can put right is a CommandError."""
        using = options.pop("database") or router.db_for_write(EventLog)
        out = Output(self, as_json=options.pop("json"), force_color=options["force_color"])
        try:
            with no_list_of_statements():
                if subcommand not in WITHOUT_TABLES:
                    check_tables(using)
                SUBCOMMANDS[subcommand].run(out, using=using, **options)
        except EventLogError as error:
            raise mistake(str(error)) from error
        except (DatabaseError, InterfaceError) as error:
            raise mistake(f"The database {using!r} gave an error: {error}".strip()) from error

    def run_from_argv(self, argv: list[str]) -> None:
        """Run from a command line: Ctrl-C and a closed pipe end it without a traceback."""
        try:
            try:
                super().run_from_argv(argv)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # What is left in the buffer has nowhere to go, and must not fail at exit
            # (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(PIPE_CLOSED)
        except KeyboardInterrupt:
            sys.stderr.write("\nInterrupted.\n")
            sys.exit(INTERRUPTED)


@contextmanager
def no_list_of_statements() -> Iterator[None]:
    """
    Let Django keep no list of the statements that are executed.

    With DEBUG it keeps the last 9,000 of each connection, with their parameters: of an import,
    that is all of the file. Where somebody captures them (assertNumQueries), they are kept.
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
    """Add what every subcommand takes; Django's own options work behind its name as well."""
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
        # Without a default: the one of the main parser, or what was given to it, stays.
        parser.add_argument(*names, default=SUPPRESS, help=SUPPRESS, **arguments)


def check_tables(using: str) -> None:
    """Raise CommandError where the database does not answer, or was not migrated."""
    tables = connections[using].introspection.table_names()
    if Event._meta.db_table not in tables:
        raise mistake(
            f"The database {using!r} has no tables of eventlogs. "
            f"Run: manage.py migrate --database {using}"
        )
