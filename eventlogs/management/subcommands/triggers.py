"""
``eventlogs triggers``: create the triggers of the events table again (PostgreSQL).

A restored backup, logical replication or manual SQL may drop or disable them. Do not run their
migrations again instead: Django would treat migrations of other apps that depend on later ones of
eventlogs as unapplied.
"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.db import connections, transaction

from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.operations.triggers import create_triggers

HELP = "Create the triggers that guard events and fence the feed again (PostgreSQL)."


def add_arguments(parser: CommandParser) -> None:
    """Add no options: the command is safe to run at any time."""


def run(out: Output, *, using: str, **options: Any) -> None:
    """
    Create all triggers again, ENABLE ALWAYS, in one transaction.

    The transaction waits for open transactions that have appended, and appends wait for it. It
    needs the role that owns the table. Raise CommandError on another database than PostgreSQL.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        raise mistake(f"The database {using!r} is not PostgreSQL: eventlogs has no triggers there.")
    with transaction.atomic(using=using):
        create_triggers(connection)
    if out.as_json:
        out.document({"database": using, "triggers": "created"})
    else:
        out.line(f"The triggers of eventlogs_event in {using!r} were created.", out.style.SUCCESS)
