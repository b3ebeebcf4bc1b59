"""
System checks of databases on MariaDB and MySQL: what they leave to settings, and logs cannot.

    E040  a database has a TIME_ZONE of its own, and recorded_at is UTC (SQLite, too)
    E041  a connection whose charset cannot hold all text
    E042  a column is not compared byte for byte (with --database)
    E043  a table whose engine has no transactions (with --database)
    E044  values that do not fit are cut silently: sql_mode is not strict (with --database)
    W045  statements of the size that an append can have are refused (with --database)
    W046  the server is MySQL, which eventlogs is not tested on (with --database)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from django.apps import AppConfig, apps
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs import conf
from eventlogs.fields import exact_collation
from eventlogs.models import Event

STRICT: Final = {"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES"}
CHARSET: Final = "utf8mb4"
LEAST_PACKET: Final = 2**24  # bytes: MariaDB's default, which INSERTs of many events keep within

COLUMNS: Final = """
SELECT table_name, column_name, collation_name FROM information_schema.columns
WHERE table_schema = DATABASE() AND collation_name IS NOT NULL
"""
ENGINES: Final = """
SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE()
"""


@register()
def check_connections(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check the settings of databases that hold logs."""
    for alias in connections:
        connection = connections[alias]
        if connection.vendor not in ("mysql", "sqlite") or not _holds_logs(alias):
            continue
        if connection.settings_dict.get("TIME_ZONE") not in (None, "UTC"):
            yield Error(
                f"DATABASES[{alias!r}] has a TIME_ZONE of its own. Events are recorded in UTC, "
                f"and would be read as times of that zone.",
                hint=f'Remove DATABASES[{alias!r}]["TIME_ZONE"].',
                id="eventlogs.E040",
            )
        charset = connection.settings_dict["OPTIONS"].get("charset", CHARSET)
        if connection.vendor == "mysql" and charset != CHARSET:
            yield Error(
                f"DATABASES[{alias!r}] has the charset {charset!r}: text with characters that it "
                f"lacks cannot be stored.",
                hint=f'Set DATABASES[{alias!r}]["OPTIONS"]["charset"] = "{CHARSET}", or leave it '
                "out.",
                id="eventlogs.E041",
            )


@register(Tags.database)
def check_mysql(
    *,
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> Iterable[CheckMessage]:
    """Check a MariaDB or MySQL database itself; asked for by ``check --database``."""
    for alias in databases or ():
        connection = connections[alias]
        if connection.vendor != "mysql" or not _holds_logs(alias):
            continue
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
            f"In the database {alias!r} sql_mode is not strict: values that do not fit are cut, "
            f"and only a warning says so.",
            hint=f'Set DATABASES[{alias!r}]["OPTIONS"]["init_command"] = '
            "\"SET sql_mode='STRICT_TRANS_TABLES'\", or the server's sql_mode.",
            id="eventlogs.E044",
        )
    # Of one event: its data and its metadata, whose quotes are escaped on their way.
    needed = max(LEAST_PACKET, 4 * conf.max_event_bytes() + 2**20)
    if packet < needed:
        yield Warning(
            f"The database {alias!r} takes statements of {packet:,} bytes, and appends may need "
            f"{needed:,}: larger ones lose their connection.",
            hint=f"Set max_allowed_packet = {needed} on the server, or lower "
            'EVENTLOGS["MAX_EVENT_BYTES"].',
            id="eventlogs.W045",
        )
    if not connection.mysql_is_mariadb:  # type: ignore[attr-defined]
        yield Warning(
            f"The database {alias!r} is MySQL {version}, which eventlogs is not tested on.",
            hint="Run eventlogs' tests and your own on it before you trust it, or use MariaDB or "
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
        return  # not migrated yet, or none of our business
    if engines[table] != "InnoDB":
        yield Error(
            f"In the database {alias!r} the table {table} has the engine {engines[table]}: "
            f"without transactions, events are lost, doubled or torn.",
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
            f"In the database {alias!r} the column {table}.{column} has the collation {found}: "
            f"texts that differ in case, accents or trailing blanks can be one there.",
            hint=f"Run: ALTER TABLE {quote(table)} MODIFY {quote(column)} "
            f"{field.db_type(connection)} COLLATE {wanted} {null};",
            id="eventlogs.E042",
        )


def _models(alias: str) -> Iterator[type[models.Model]]:
    for model in apps.get_models():
        if model._meta.managed and router.allow_migrate_model(alias, model):
            yield model


def _holds_logs(alias: str) -> bool:
    return bool(router.allow_migrate(alias, "eventlogs", model_name="event"))
