"""``eventlogs distribute``: distribute the schema of a database over a cluster of Citus."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from eventlogs.management.output import Output
from eventlogs.operations import distribution

HELP = (
    "Distribute the schema that has the tables over a cluster of Citus: all of it on one node, "
    "from where citus_schema_move moves it."
)


def add_arguments(parser: CommandParser) -> None:
    """Add nothing: the schema is that of the database."""


def run(out: Output, *, using: str, **options: Any) -> None:
    """Distribute the schema."""
    schema = distribution.distribute(using=using)
    if out.as_json:
        out.document({"database": using, "schema": schema})
        return
    out.line(f"The schema {schema!r} of {using!r} is distributed.", out.style.SUCCESS)
