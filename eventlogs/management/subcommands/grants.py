"""
``eventlogs grants``: the SQL that grants a database role the privileges of the application.

The tables are those of the models and of declared projections; their schemas and sequences come
from the database. So the grants are those that this release needs, in any schema. Grants on a
partitioned table apply to its partitions, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from django.apps import apps
from django.core.management.base import CommandParser
from django.db import connections, models, router

from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.models import (
    ArchivedLog,
    ArchiveFile,
    Bucket,
    ErasedLog,
    Event,
    EventLog,
    IdempotencyKey,
    LogMove,
    ProjectionAction,
    ReturnedLog,
    UniqueValue,
)
from eventlogs.projections.base import RowProjection, declared

HELP = "Print the SQL that grants a database role the privileges it needs (PostgreSQL)."

# Tables of logs and events. All others are for projections, which change and delete rows.
HISTORY: Final[dict[type[models.Model], tuple[str, ...]]] = {
    EventLog: ("SELECT", "INSERT", "UPDATE"),  # an append raises the version of its log
    Event: ("SELECT", "INSERT"),
    IdempotencyKey: ("SELECT", "INSERT", "DELETE"),  # prune deletes
    UniqueValue: ("SELECT", "INSERT", "DELETE"),  # a log's new value replaces its old one
    ErasedLog: ("SELECT",),  # the owner's function writes them
    Bucket: ("SELECT", "UPDATE"),  # the owner adds and removes counters
    ArchivedLog: ("SELECT",),  # only the owner takes logs out of the tables
    ArchiveFile: ("SELECT",),
    ReturnedLog: ("SELECT",),
    LogMove: ("SELECT",),  # only the owner moves logs
    ProjectionAction: ("SELECT", "INSERT", "UPDATE"),  # the id of an erased log is removed
}
ROWS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")

PLACE: Final = """
SELECT nspname::text, relname::text
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE pg_class.oid = to_regclass(%s)
"""

# The sequences that a role must be able to use: those of serial columns, to insert (those of
# identity columns need no grant), and that of positions, which readers of the feed look at.
SEQUENCES: Final = """
SELECT nspname::text, sequence.relname::text, deptype = 'a'
FROM pg_depend
JOIN pg_class AS sequence ON sequence.oid = objid AND sequence.relkind = 'S'
JOIN pg_namespace ON pg_namespace.oid = sequence.relnamespace
WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
  AND refobjid = to_regclass(%s) AND deptype IN ('a', 'i')
ORDER BY 1, 2
"""


class Table(NamedTuple):
    """A table that the role uses, and its privileges."""

    model: type[models.Model]
    privileges: tuple[str, ...]
    projection: str | None = None  # the read model's


def add_arguments(parser: CommandParser) -> None:
    """Add the role."""
    parser.add_argument("role", metavar="ROLE", help="The role that the application connects as.")


def run(out: Output, *, using: str, role: str, **options: Any) -> None:
    """Print the grants; change nothing."""
    if connections[using].vendor != "postgresql":
        raise mistake(f"The database {using!r} is not PostgreSQL: it needs no grants.")
    if not role or "\0" in role:
        raise mistake("Name the role that the application connects as.")
    statements, absent = grants(using, role)
    if out.as_json:
        out.document({"role": role, "statements": statements, "absent": absent})
    else:
        out.line("-- Run this as the owner of the tables. Running it again is safe.")
        for statement in statements:
            out.line(statement)
    for table in absent:
        out.note(f"The table {table} does not exist yet. Migrate, then print the grants again.")


def tables(using: str) -> Iterator[Table]:
    """Yield each table of a database that the application uses."""
    for model in apps.get_app_config("eventlogs").get_models():
        if router.allow_migrate_model(using, model):
            yield Table(model, HISTORY.get(model, ROWS))
    seen = set()
    for each in declared(RowProjection):
        if each.model not in seen:
            seen.add(each.model)
            if router.allow_migrate_model(using, each.model):
                yield Table(each.model, ROWS, each.name)


def grants(using: str, role: str) -> tuple[list[str], list[str]]:
    """Return the statements, and the names of missing tables."""
    connection = connections[using]
    schemas: dict[str, None] = {}
    statements, absent = [], []
    with connection.cursor() as cursor:
        for model, privileges, projection in tables(using):
            table = connection.ops.quote_name(model._meta.db_table)
            cursor.execute(PLACE, [table])
            place = cursor.fetchone()
            if place is None:
                absent.append(model._meta.db_table)
                continue
            schemas[place[0]] = None
            statements.append(
                f"GRANT {', '.join(privileges)} ON TABLE {quoted(*place)} TO {quoted(role)};"
                + ("" if projection is None else f" -- rows of {projection}")
            )
            cursor.execute(SEQUENCES, [table])
            for schema, name, is_serial in cursor.fetchall():
                usages = [
                    *(["USAGE"] if is_serial else []),
                    *(["SELECT"] if model is Event else []),
                ]
                if usages:
                    statements.append(
                        f"GRANT {', '.join(usages)} ON SEQUENCE {quoted(schema, name)} "
                        f"TO {quoted(role)};"
                    )
    usage = [f"GRANT USAGE ON SCHEMA {quoted(each)} TO {quoted(role)};" for each in schemas]
    return usage + statements, absent


def quoted(*names: str) -> str:
    """Return a name, with its schema if given, as a quoted SQL identifier."""
    return ".".join('"{}"'.format(name.replace('"', '""')) for name in names)
