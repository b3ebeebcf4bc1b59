"""Sessions of the server, as tests end them: PostgreSQL's and MariaDB's."""

from __future__ import annotations

from django.db import connection

# By the vendor of the database: one row with the number of this session.
OWN = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}
END = {"postgresql": "SELECT pg_terminate_backend(%s, 5000)", "mysql": "KILL HARD CONNECTION %s"}
SLEEP = {"postgresql": "SELECT pg_sleep(%s)", "mysql": "SELECT SLEEP(%s)"}


def own_session() -> int:
    """Return the number of this thread's session."""
    with connection.cursor() as cursor:
        cursor.execute(OWN[connection.vendor])
        return int(cursor.fetchone()[0])


def end_session(number: int) -> None:
    """End another session, as an operator does; its transaction is rolled back."""
    with connection.cursor() as cursor:
        cursor.execute(END[connection.vendor], [number])


def sleep_in_the_database(seconds: float) -> None:
    """Let the server sleep in a statement of this session."""
    with connection.cursor() as cursor:
        cursor.execute(SLEEP[connection.vendor], [seconds])
