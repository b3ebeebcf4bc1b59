"""Locks of PostgreSQL, as tests see them."""

from __future__ import annotations

from django.db import connection


def a_session_waits() -> bool:
    """Return whether a session of this database waits for a lock, as of now."""
    with connection.cursor() as cursor:
        # Otherwise a transaction has one view of all sessions, that of its first look.
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock')"
        )
        return bool(cursor.fetchone()[0])
