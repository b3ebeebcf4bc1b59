"""
A test database on a cluster of Citus: the tables of the project lie in a distributed schema.

``CITUS_URL`` names a database on the coordinator in which the extension is, and which knows the
nodes; the test database gets the same ones. Its other tables, those of users and permissions, stay
on the coordinator: a distributed table cannot have Django's integer identity columns.
https://docs.citusdata.com/en/stable/get_started/concepts.html#schema-based-sharding
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from eventlogs.operations import distribution

SCHEMA = "tenant"
OURS = r"^(eventlogs|payments|fines)_"  # tables and functions

NODES = """
SELECT nodename, nodeport, groupid = 0 FROM pg_dist_node WHERE noderole = 'primary'
ORDER BY groupid
"""
TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relname ~ %s
"""
FUNCTIONS = """
SELECT oid::regprocedure::text FROM pg_proc
WHERE pronamespace = 'public'::regnamespace AND proname ~ %s
"""


class Node(NamedTuple):
    """A server of a cluster."""

    host: str
    port: int
    is_coordinator: bool


def nodes_of(url: str) -> list[Node]:
    """Return the nodes of a cluster, the coordinator first."""
    with psycopg.connect(url) as connection:
        return [Node(*row) for row in connection.execute(NODES)]


@contextmanager
def distributed(url: str, database: str) -> Iterator[None]:
    """
    Spread a database, which is on the coordinator and migrated, over the nodes of a cluster.

    In the end the other nodes have nothing of it any more.
    """
    nodes = nodes_of(url)
    parameters: dict[str, Any] = conninfo_to_dict(url)

    def connect(node: Node, name: str) -> psycopg.Connection:
        place = {} if node.is_coordinator else {"host": node.host, "port": node.port}
        address = make_conninfo(**{**parameters, **place, "dbname": name})
        return psycopg.connect(address, autocommit=True)

    coordinator, *workers = nodes
    name = Identifier(database)
    # Another session of the database "postgres" may use the template.
    create = SQL("CREATE DATABASE {} TEMPLATE template0").format(name)
    drop = SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name)
    path = SQL("ALTER DATABASE {} SET search_path = {}, public").format(name, Identifier(SCHEMA))
    # Migrations and tests make triggers.
    triggers = SQL("ALTER DATABASE {} SET citus.enable_unsafe_triggers = on").format(name)
    for node in workers:
        with connect(node, "postgres") as connection:
            connection.execute(drop)
            connection.execute(create)
    try:
        for node in nodes:
            with connect(node, database) as connection:
                connection.execute("CREATE EXTENSION IF NOT EXISTS citus")
                connection.execute(path)
                connection.execute(triggers)
        with connect(coordinator, database) as connection:
            connection.execute(
                "SELECT citus_set_coordinator_host(%s, %s)", [coordinator.host, coordinator.port]
            )
            for node in workers:
                connection.execute("SELECT citus_add_node(%s, %s)", [node.host, node.port])
            connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(SCHEMA)))
            for kind, query in (("TABLE", TABLES), ("FUNCTION", FUNCTIONS)):
                for (each,) in connection.execute(query, [OURS]).fetchall():
                    connection.execute(f"ALTER {kind} public.{each} SET SCHEMA {SCHEMA}")
        connections[DEFAULT_DB_ALIAS].close()
        distribution.distribute(using=DEFAULT_DB_ALIAS)
        yield
    finally:
        for node in workers:
            with connect(node, "postgres") as connection:
                connection.execute(drop)
