"""
System checks of DATABASES, for every kind of database.

    E004  an SQLite database whose transactions are not IMMEDIATE
    E040  a database on SQLite, MariaDB or MySQL has a TIME_ZONE other than UTC
    E053  the tables have another layout than EVENTLOGS["LAYOUT"] (with --database)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs import conf
from eventlogs.models import Bucket, Event
from eventlogs.stores.layouts import layout_of


@register()
def check_sqlite_transactions(**kwargs: Any) -> Iterable[CheckMessage]:
    """
    Check that SQLite takes its write lock when a transaction begins.

    With the default (DEFERRED), a transaction that reads and then writes fails at once with
    "database is locked" while another one writes (https://sqlite.org/lang_transaction.html).
    """
    for connection in with_logs(connections, vendors=("sqlite",)):
        alias = connection.alias
        mode = str(connection.settings_dict["OPTIONS"].get("transaction_mode") or "DEFERRED")
        if mode.upper() not in ("IMMEDIATE", "EXCLUSIVE"):
            yield Error(
                f"DATABASES[{alias!r}] is SQLite with {mode.upper()} transactions. They must be "
                f"IMMEDIATE: otherwise concurrent appends fail with 'database is locked'.",
                hint=f'Set DATABASES[{alias!r}]["OPTIONS"] = {{"transaction_mode": "IMMEDIATE"}}.',
                id="eventlogs.E004",
            )


@register()
def check_time_zones(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that databases without time zones of their own store times in UTC."""
    for connection in with_logs(connections, vendors=("mysql", "sqlite")):
        alias, zone = connection.alias, connection.settings_dict.get("TIME_ZONE")
        if zone not in (None, "UTC"):
            yield Error(
                f"DATABASES[{alias!r}]['TIME_ZONE'] is {zone!r}. It must be UTC: events are "
                f"stored in UTC, and would be read as times of that zone.",
                hint=f'Remove DATABASES[{alias!r}]["TIME_ZONE"].',
                id="eventlogs.E040",
            )


@register(Tags.database)
def check_layouts(
    *, databases: Sequence[str] | None = None, **kwargs: Any
) -> Iterable[CheckMessage]:
    """Check that the tables have the layout of the settings; asked for by ``check --database``."""
    wanted = "buckets" if conf.has_buckets() else "fence"
    for alias in databases or ():
        connection = connections[alias]
        if not holds_logs(alias):
            continue
        with connection.cursor() as cursor:
            tables = set(connection.introspection.table_names(cursor))
        if not {Event._meta.db_table, Bucket._meta.db_table} <= tables:
            continue  # not migrated yet
        found = layout_of(connection)
        if found != wanted:
            yield Error(
                f"The tables in the database {alias!r} have the layout {found!r}, and "
                f'EVENTLOGS["LAYOUT"] is {wanted!r}: no process with this setting can append.',
                hint=f'Set EVENTLOGS["LAYOUT"] = {found!r}, or run: manage.py eventlogs layout '
                f"{wanted} --database {alias}.",
                id="eventlogs.E053",
            )


def with_logs(
    aliases: Iterable[str] | None, *, vendors: Iterable[str]
) -> Iterator[BaseDatabaseWrapper]:
    """Yield the connections of these vendors whose databases may hold logs; None has none."""
    for alias in aliases or ():
        if connections[alias].vendor in vendors and holds_logs(alias):
            yield connections[alias]


def holds_logs(alias: str) -> bool:
    """Return whether the routers let a database have the tables of eventlogs."""
    return bool(router.allow_migrate_model(alias, Event))
