"""The fixtures of races: a crew of processes, and the checker on the database they raced on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count as count_up
from typing import Any, ClassVar

import pytest
from django.db import connection

from eventlogs import LogId
from tests.processes import Crew
from tests.races import history
from tests.races.events import batch
from tests.races.history import Outcome, Violation
from tests.races.stores import races

# CI has half as many; all of them race under `make reliability` and `make test-all`.
IS_CAMPAIGN = os.environ.get("EVENTLOGS_TEST_RACES") == "long"
PROCESSES = (
    {"postgresql": 32, "sqlite": 8, "mysql": 16}
    if IS_CAMPAIGN
    else {"postgresql": 16, "sqlite": 8, "mysql": 8}
)

TABLES = ("eventlogs_eventlog", "eventlogs_event", "eventlogs_idempotencykey")

_numbers = count_up()


def name() -> str:
    """Return a marker that no other append has."""
    return f"log {next(_numbers)}"


@pytest.fixture(scope="session")
def crew(django_db_setup: None) -> Iterator[Crew]:
    """Processes that connect to the test database."""
    with Crew(PROCESSES[connection.vendor], dict(connection.settings_dict)) as crew:
        yield crew


@pytest.fixture
def writers() -> int:
    """The number of processes that race for a log."""
    return min(16 if IS_CAMPAIGN else 8, PROCESSES[connection.vendor])


@pytest.fixture
def callers() -> int:
    """The number of processes that race with one key."""
    return PROCESSES[connection.vendor]


@pytest.fixture
def quick_deadlocks() -> dict[str, str]:
    """Connection options with which deadlocks are found in 20 ms rather than in a second."""
    if connection.vendor != "postgresql":
        return {}
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        (superuser,) = cursor.fetchone()
    return {"options": "-c deadlock_timeout=20ms"} if superuser else {}


@pytest.fixture
def violations(transactional_db: None) -> Callable[..., list[Violation]]:
    """Return the violations in the database and in the answers to callers."""

    def check(outcomes: Iterable[Outcome] = (), **options: Any) -> list[Violation]:
        with connection.cursor() as cursor:
            return history.violations(cursor, outcomes, **options)

    return check


@pytest.fixture
def new_logs(transactional_db: None) -> Callable[..., list[LogId]]:
    """Create logs of some versions, by default 1, and return their ids."""

    def create(count: int, *, version: int = 1) -> list[LogId]:
        manager = races("portable")
        return [manager.create(*batch(name(), version)).log_id for _ in range(count)]

    return create


class Scratch:
    """Copies of the tables in a schema of their own, in which constraints can be dropped."""

    # pg_catalog comes last, so that a function of the schema can hide one of PostgreSQL's.
    options: ClassVar = {"options": "-c search_path=scratch,pg_catalog"}

    def __init__(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("CREATE SCHEMA scratch")
            for table in TABLES:
                cursor.execute(f"CREATE TABLE scratch.{table} (LIKE public.{table} INCLUDING ALL)")

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """Use the schema on this process' connection; yield a cursor."""
        with connection.cursor() as cursor:
            cursor.execute("SET search_path = scratch, pg_catalog")
            try:
                yield cursor
            finally:
                cursor.execute("RESET search_path")

    def drop_unique_constraints(self, table: str) -> None:
        with self.cursor() as cursor:
            cursor.execute(
                "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'u'",
                [f"scratch.{table}"],
            )
            for (name,) in cursor.fetchall():
                cursor.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')

    def make_the_clock_jump(self) -> None:
        """Let the clocks that an append may read run up to a minute behind, at random."""
        with self.cursor() as cursor:
            for clock in ("clock_timestamp", "statement_timestamp"):
                cursor.execute(
                    f"CREATE FUNCTION scratch.{clock}() RETURNS timestamptz VOLATILE"
                    f" LANGUAGE sql AS $$"
                    f" SELECT pg_catalog.{clock}() - random() * interval '1 minute' $$"
                )

    def new_logs(self, count: int) -> list[LogId]:
        manager = races("portable")
        with self.cursor():
            return [manager.create(*batch(name())).log_id for _ in range(count)]

    def violations(self, outcomes: Iterable[Outcome] = ()) -> list[Violation]:
        with self.cursor() as cursor:
            return history.violations(cursor, outcomes)


@pytest.fixture
def scratch(transactional_db: None) -> Iterator[Scratch]:
    yield Scratch()
    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA scratch CASCADE")
