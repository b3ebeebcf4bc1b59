"""PostgreSQL servers of a test's own: a primary, and replicas that can be cut off and promoted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connections

from eventlogs.feed.sources import source_in
from eventlogs.stores import store_for
from tests.processes import until
from tests.servers import PostgreSQL
from tests.settings import database_from_url


class Server(PostgreSQL):
    """
    A server that allows prepared transactions and both kinds of replication.

    A commit is written to its log at once, so that a replica gets it at once.
    """

    def command(self) -> list[str]:
        options = ("max_prepared_transactions=5", "wal_level=logical", "synchronous_commit=on")
        return [*super().command(), *(f"--{option}" for option in options)]


class Replica(Server):
    """A replica of another private server."""

    def __init__(self, primary: Server) -> None:
        super().__init__()
        self.primary = primary
        self.programs = primary.programs

    def command(self) -> list[str]:
        return [*super().command(), "--wal_retrieve_retry_interval=50ms"]

    def prepare(self) -> None:
        self.run(
            [
                str(self.programs / "pg_basebackup"),
                f"--pgdata={self.data}",
                f"--host={self.primary.directory}",
                "--username=postgres",
                "--checkpoint=fast",
                "--write-recovery-conf",
            ]
        )


@contextmanager
def alias_of(server: PostgreSQL, name: str = "postgres", **options: str) -> Iterator[str]:
    """Give the alias of a database on a private server."""
    alias = f"private_{uuid4().hex[:8]}"
    default = connections[DEFAULT_DB_ALIAS].settings_dict
    connections.databases[alias] = {
        **default,
        **database_from_url(server.url),
        "NAME": name,
        "OPTIONS": options,
        "TEST": {**default["TEST"], "NAME": None},
    }
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.databases[alias]
        store_for.cache_clear()
        source_in.cache_clear()


def sql(alias: str, statement: str) -> list[tuple[Any, ...]]:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def migrated(server: Server) -> Iterator[str]:
    """Give the alias of a new, migrated database of a server."""
    name = f"feed_{uuid4().hex[:8]}"
    with alias_of(server) as maintenance:
        sql(maintenance, f"CREATE DATABASE {name}")
        with alias_of(server, name) as alias:
            call_command("migrate", "eventlogs", database=alias, verbosity=0)
            yield alias


def wait_for_replica(primary: str, replica: str) -> None:
    """Wait until a replica has replayed what was committed on its primary so far."""
    [(position,)] = sql(primary, "SELECT pg_current_wal_flush_lsn()::text")
    replayed = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
    until(lambda: sql(replica, replayed) == [(True,)], what="the replica to have replayed it")


def cut_off(replica: str) -> None:
    """Let a replica receive no more from its primary."""
    sql(replica, "ALTER SYSTEM SET primary_conninfo = ''")
    sql(replica, "SELECT pg_reload_conf()")
    receiver = "SELECT count(*) FROM pg_stat_wal_receiver"
    until(lambda: sql(replica, receiver) == [(0,)], what="the replica to be cut off")


def promote(replica: str) -> None:
    """Make a replica a primary."""
    assert sql(replica, "SELECT pg_promote()") == [(True,)]
