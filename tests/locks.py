"""Locks of PostgreSQL and MariaDB, as tests see them."""

from __future__ import annotations

import time

from django.db import connection

WAITS = {
    "postgresql": (
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock')"
    ),
    "mysql": (
        "SELECT EXISTS (SELECT * FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT')"
    ),
}


def a_session_waits() -> bool:
    """Return whether a session of this database waits for a lock, as of now."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # Otherwise a transaction has one view of all sessions, that of its first look.
            cursor.execute("SELECT pg_stat_clear_snapshot()")
        else:
            time.sleep(0.15)  # MariaDB does not look again while others have looked in 0.1 s
        cursor.execute(WAITS[connection.vendor])
        return bool(cursor.fetchone()[0])
