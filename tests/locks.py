"""Locks of PostgreSQL, Citus and MariaDB, as tests see them."""

from __future__ import annotations

import time

from django.db import connection

from eventlogs.stores.citus import is_citus

WAITS = {
    "postgresql": (
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock')"
    ),
    "citus": "SELECT EXISTS (SELECT FROM citus_lock_waits)",  # those on all nodes
    "mysql": (
        "SELECT EXISTS (SELECT * FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT')"
    ),
}

# Of this database: other tests of a run have theirs on the same server.
WAITED_FOR = """
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE relation = %s::regclass AND NOT granted AND mode LIKE %s
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


def a_session_waits() -> bool:
    """Return whether a session of this database waits for a lock, as of now."""
    kind = connection.vendor
    if kind == "postgresql" and is_citus(connection):
        kind = "citus"
    with connection.cursor() as cursor:
        if kind == "mysql":
            time.sleep(0.15)  # MariaDB does not look again while others have looked in 0.1 s
        else:
            # Otherwise a transaction has one view of all sessions, that of its first look.
            cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(WAITS[kind])
        return bool(cursor.fetchone()[0])


def is_waited_for(table: str, mode: str = "%") -> bool:
    """Return whether a session of this database waits for a lock of a table, on PostgreSQL."""
    with connection.cursor() as cursor:
        cursor.execute(WAITED_FOR, [table, mode])
        return bool(cursor.fetchone()[0])
