"""
System checks of databases on MariaDB and MySQL, for settings that other databases do not have.

    E041  a connection whose charset cannot hold all text
    E042  a column whose collation does not compare byte for byte (with --database)
    E043  a table whose engine has no transactions (with --database)
    E044  sql_mode is not strict, so values that do not fit are cut (with --database)
    W045  max_allowed_packet is smaller than an append may need (with --database)
    W046  the server is MySQL, which eventlogs is not tested on (with --database)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from django.apps import apps
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs import conf
from eventlogs.checks.databases import with_logs
from eventlogs.fields import exact_collation
from eventlogs.models import Event

STRICT: Final = {"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES"}
CHARSET: Final = "utf8mb4"
LEAST_PACKET: Final = 2**24  # bytes: MariaDB's default; INSERTs of many events stay within it

COLUMNS: Final = """
SELECT table_name, column_name, collation_name FROM information_schema.columns
WHERE table_schema = DATABASE() AND collation_name IS NOT NULL
"""
ENGINES: Final = """
SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE()
"""


@register()
def check_charsets(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that connections can carry all characters."""
    for connection in with_logs(connections, vendors=("mysql",)):
        alias = connection.alias
        charset = connection.settings_dict["OPTIONS"].get("charset", CHARSET)
        if charset != CHARSET:
            yield Error(
                f"DATABASES[{alias!r}]['OPTIONS']['charset'] is {charset!r}. It must be "
                f"{CHARSET!r}: text with characters outside of it cannot be stored.",
                hint=f'Set DATABASES[{alias!r}]["OPTIONS"]["charset"] = "{CHARSET}", or remove it.',
                id="eventlogs.E041",
            )


@register(Tags.database)
def check_mysql(*, databases: Sequence[str] | None = None, **kwargs: Any) -> Iterable[CheckMessage]:
    """Check the server and tables of MariaDB or MySQL; asked for by ``check --database``."""
    for connection in with_logs(databases, vendors=("mysql",)):
        alias = connection.alias
        yield from _check_server(connection, alias)
        with connection.cursor() as cursor:
            cursor.execute(ENGINES)
            engines = dict(cursor.fetchall())
            cursor.execute(COLUMNS)
            collations = {(table, column): name for table, column, name in cursor.fetchall()}
        for model in _models(alias):
            yield from _check_table(model, connection, alias, engines, collations)


def _check_server(connection: BaseDatabaseWrapper, alias: str) -> Iterator[CheckMessage]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@sql_mode, @@max_allowed_packet, VERSION()")
        mode, packet, version = cursor.fetchone()
    if not STRICT & set(str(mode).split(",")):
        yield Error(
            f"In the database {alias!r} sql_mode is {mode!r}. It must have STRICT_TRANS_TABLES or "
            f"STRICT_ALL_TABLES: otherwise values that do not fit are cut, with only a warning.",
            hint=f'Set DATABASES[{alias!r}]["OPTIONS"]["init_command"] = '
            "\"SET sql_mode='STRICT_TRANS_TABLES'\", or the server's sql_mode.",
            id="eventlogs.E044",
        )
    # One event has data and metadata, and escaping can double the length of each.
    needed = max(LEAST_PACKET, 4 * conf.max_event_bytes() + 2**20)
    if packet < needed:
        yield Warning(
            f"The database {alias!r} has a max_allowed_packet of {packet:,} bytes. An append may "
            f"need {needed:,}: the server closes the connection on a larger statement.",
            hint=f"Run: SET GLOBAL max_allowed_packet = {needed}; and set it in the server's "
            'configuration, too; or lower EVENTLOGS["MAX_EVENT_BYTES"].',
            id="eventlogs.W045",
        )
    if not getattr(connection, "mysql_is_mariadb", False):
        yield Warning(
            f"The database {alias!r} is MySQL {version}, on which eventlogs is not tested.",
            hint="Run the tests of eventlogs and your own on it first, or use MariaDB or "
            "PostgreSQL.",
            id="eventlogs.W046",
        )


def _check_table(
    model: type[models.Model],
    connection: BaseDatabaseWrapper,
    alias: str,
    engines: dict[str, str],
    collations: dict[tuple[str, str], str],
) -> Iterator[CheckMessage]:
    wanted, quote = exact_collation(connection), connection.ops.quote_name
    table = model._meta.db_table
    exact = [
        field
        for field in model._meta.concrete_fields
        if field.db_parameters(connection).get("collation") == wanted
    ]
    ours = model._meta.app_label == Event._meta.app_label
    if table not in engines or not (exact or ours):
        return  # not migrated yet, or a table without columns of eventlogs
    if engines[table] != "InnoDB":
        yield Error(
            f"In the database {alias!r} the table {table} has the engine {engines[table]}. It "
            f"must be InnoDB: without transactions, events can be lost, doubled or incomplete.",
            hint=f"Run: ALTER TABLE {quote(table)} ENGINE = InnoDB;",
            id="eventlogs.E043",
        )
    for field in exact:
        column = str(field.column)
        found = collations.get((table, column))
        if found in (None, wanted):
            continue
        null = "NULL" if field.null else "NOT NULL"
        yield Error(
            f"In the database {alias!r} the column {table}.{column} has the collation {found}. It "
            f"must be {wanted}: otherwise texts that differ only in case, accents or trailing "
            f"blanks are equal.",
            hint=f"Run: ALTER TABLE {quote(table)} MODIFY {quote(column)} "
            f"{field.db_type(connection)} COLLATE {wanted} {null};",
            id="eventlogs.E042",
        )


def _models(alias: str) -> Iterator[type[models.Model]]:
    for model in apps.get_models():
        if model._meta.managed and router.allow_migrate_model(alias, model):
            yield model
