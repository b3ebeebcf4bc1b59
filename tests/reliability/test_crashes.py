"""A server that is stopped without warning while writers append: acknowledged events are stored."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from django.db import connection

from eventlogs import LogId
from tests.processes import Crew, until
from tests.races import history, jobs
from tests.races.history import Outcome, Violation, kinds
from tests.reliability.writers import Writers
from tests.servers import START_TIMEOUT, PostgreSQL, ServerError

pytestmark = pytest.mark.postgresql

LONG = pytest.mark.long


class MortalPostgreSQL(PostgreSQL):
    """A private server, with fsync, that can be stopped without warning and started again."""

    def __init__(self) -> None:
        super().__init__(durable=True)

    def prepare(self) -> None:
        if not self.data.exists():
            super().prepare()

    def is_ready(self) -> bool:
        # The file of a server that crashed stays where it is.
        return self._pid() == self.process.pid and super().is_ready()

    def _pid(self) -> int | None:
        try:
            return int((self.data / "postmaster.pid").read_text().splitlines()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None

    def crash(self, how: str) -> None:
        """Stop at once: all of it, its main process only, or one that serves a client"""
        if how == "backend":
            # The main process then ends the others, and recovers by itself.
            with self.connect() as own:
                os.kill(own.info.backend_pid, signal.SIGKILL)
                with suppress(psycopg.Error):
                    own.execute("SELECT")
            return
        self.process.send_signal({"immediate": signal.SIGQUIT, "kill": signal.SIGKILL}[how])
        self.process.wait()
        self._start_again()

    def _start_again(self) -> None:
        def has_started() -> bool:
            try:
                self._start()
            except ServerError:  # the last process of the previous server is still ending
                return False
            return True

        until(has_started, seconds=START_TIMEOUT, what="the start of the server")

    @property
    def database(self) -> dict[str, Any]:
        """Django's settings of its database."""
        return {
            **connection.settings_dict,
            "NAME": "race_crash",
            "USER": "postgres",
            "PASSWORD": "",
            "HOST": str(self.directory),
            "PORT": "5432",
            "OPTIONS": {},
        }

    def connect(self, name: str = "race_crash") -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.directory), port=5432, user="postgres", dbname=name, autocommit=True
        )


@pytest.fixture
def server(django_db_setup: None) -> Iterator[MortalPostgreSQL]:
    with MortalPostgreSQL() as server:
        with server.connect("postgres") as admin:
            admin.execute("CREATE DATABASE race_crash")
        yield server


def prepare(server: MortalPostgreSQL, logs: int) -> list[LogId]:
    """Migrate in a process of its own, and create logs there."""
    with Crew(2, server.database) as crew:
        return crew.race(2, jobs.migrate_and_create_logs, logs)


def violations(server: MortalPostgreSQL, outcomes: list[Outcome]) -> list[Violation]:
    with server.connect() as private, private.cursor() as cursor:
        return history.violations(cursor, outcomes)


@pytest.mark.parametrize(
    ("store", "crashes", "outcomes"),
    [
        ("postgresql", ["immediate", "kill"], 50),
        pytest.param("postgresql", ["immediate", "kill", "backend"] * 5, 200, marks=LONG),
        pytest.param("mixed", ["immediate", "kill", "backend"] * 3, 200, marks=LONG),
    ],
    ids=["short", "long", "long-mixed"],
)
def test_acknowledged_appends_survive_a_crash_of_the_server(server, store, crashes, outcomes):
    log_ids = prepare(server, 3)

    with Writers(server.database, store, log_ids, count=8) as writers:
        for how in crashes:
            writers.work_until(len(writers.outcomes) + outcomes)
            server.crash(how)
        writers.work_until(len(writers.outcomes) + outcomes)
        writers.finish()

    assert violations(server, writers.outcomes) == []


def test_answers_before_the_commit_do_not_survive_a_crash(server):
    log_ids = prepare(server, 8)
    variant = "tests.races.broken.AcknowledgesBeforeCommit"

    with Writers(server.database, variant, log_ids, count=2) as writers:
        for how in ("immediate", "kill"):
            # Ten answers lead to a commit: a few more, and some are not committed.
            writers.work_until(len(writers.outcomes) + 25)
            server.crash(how)
        writers.work_until(len(writers.outcomes) + 25)

    assert kinds(violations(server, writers.outcomes))["lost"] > 0
