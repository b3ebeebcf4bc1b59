"""
A real PgBouncer in transaction mode: each transaction may run in another session.

Before 1.21 it does not track prepared statements: those of a client stay in the session that it had
at that time. It has two sessions here, for eight threads.
"""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from threading import Event as Flag
from typing import Any

import psycopg
import pytest
from django.db import connection, connections, transaction

from eventlogs import ConcurrentAppend, Feed, LogId
from eventlogs.stores import psycopg_connections, store_for
from eventlogs.testing.contracts.stores import amounts, append, create, new_key
from tests.servers import PrivateServer, ServerError

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]


class PgBouncer(PrivateServer):
    """A pooler before the test database."""

    name = "pgbouncer"

    def __init__(self, database: dict[str, Any]) -> None:
        self.database = database
        super().__init__()

    @classmethod
    def find_programs(cls) -> Path:
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            raise ServerError("there is no program pgbouncer: install the package of that name")
        return Path(program).parent

    @staticmethod
    def check(url: str) -> None:
        psycopg.connect(url, connect_timeout=5).close()

    @property
    def url(self) -> str:
        return f"postgresql://anybody@127.0.0.1:{self.port}/pooled"

    def prepare(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ("host", "port", "dbname", "user", "password")
        database = " ".join(
            f"{each}={self.database[each]}" for each in words if each in self.database
        )
        (self.directory / "pgbouncer.ini").write_text(
            f"[databases]\npooled = {database}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n"
            "server_round_robin = 1\nignore_startup_parameters = extra_float_digits\n"
            + "max_prepared_statements = 100\n"
            * self.knows_prepared_statements()
        )

    def command(self) -> list[str]:
        return [str(self.programs / "pgbouncer"), str(self.directory / "pgbouncer.ini")]

    def is_ready(self) -> bool:
        try:
            self.check(self.url)
        except psycopg.Error:
            return False
        return True

    def knows_prepared_statements(self) -> bool:
        """Return whether it may keep track of prepared statements: from 1.21 on."""
        answer = subprocess.run(
            [self.programs / "pgbouncer", "--version"], capture_output=True, text=True, check=True
        )
        major, minor = answer.stdout.split()[1].split(".")[:2]
        return (int(major), int(minor)) >= (1, 21)


@pytest.fixture
def pooler(transactional_db: None) -> Iterator[PgBouncer]:
    """Have all threads connect through the pooler."""
    database = connection.get_connection_params()
    before, wrapper = connections.databases["default"], connections["default"]
    try:
        server = PgBouncer(database)
    except ServerError as error:
        pytest.skip(str(error))
    with server:
        connections.databases["default"] = {
            **before,
            "HOST": "127.0.0.1",
            "PORT": str(server.port),
            "NAME": "pooled",
            "DISABLE_SERVER_SIDE_CURSORS": True,
        }
        del connections["default"]
        try:
            yield server
        finally:
            connections["default"].close()
            connections.databases["default"] = before
            connections["default"] = wrapper
            psycopg_connections.unprepared.clear()


def test_a_pooler_that_shares_sessions_changes_no_result(pooler, race, caplog):
    store = store_for("default")

    def work(seed: int) -> Any:
        def run() -> dict[LogId, list[int]]:
            random, mine = Random(seed), {}
            for number in range(25):
                log_id = create(store, 0, key=new_key()).log_id
                append(store, log_id, number, expected=1)
                append(store, log_id, 1, 2, expected=2)
                with transaction.atomic():
                    append(store, log_id, 3, expected=4, key=new_key())
                    if random.random() < 0.3:
                        append(store, log_id, 4, expected=5)
                        transaction.set_rollback(True)
                stored = [0, number, 1, 2, 3] if store.version(log_id) == 5 else [0, number, 1, 2]
                mine[log_id] = stored
            return mine

        return run

    with caplog.at_level(logging.WARNING, "eventlogs.stores"):
        answers = race(*[work(seed) for seed in range(8)])

    for mine in answers:
        assert isinstance(mine, dict), mine
        for log_id, expected in mine.items():
            assert amounts(store, log_id) == expected
    # The first thread with the session of another one switches preparing off for this process.
    is_noticed = not pooler.knows_prepared_statements()
    assert len(caplog.records) == is_noticed
    assert ("default" in psycopg_connections.unprepared) == is_noticed


def test_statements_that_are_always_lost_break_no_transaction(pooler, race):
    """Preparing is turned on again before each transaction, so that statements go on being lost."""
    store = store_for("default")

    def work(seed: int) -> Any:
        def run() -> dict[LogId, list[int]]:
            random, mine = Random(seed), {}
            for number in range(25):
                psycopg_connections.unprepared.clear()
                with transaction.atomic():
                    if random.random() < 0.5:
                        with connection.cursor() as cursor:
                            cursor.execute("SELECT 1")
                    log_id = create(store, number, key=new_key()).log_id
                    append(store, log_id, 1, expected=1)
                    if random.random() < 0.3:
                        with suppress(ConcurrentAppend):
                            append(store, log_id, 8, expected=7)
                    if random.random() < 0.3:
                        with suppress(ZeroDivisionError), transaction.atomic():
                            append(store, log_id, 9, expected=2)
                            raise ZeroDivisionError
                    append(store, log_id, 2, 3, expected=2)
                    append(store, log_id, 4, expected=4)
                mine[log_id] = [number, 1, 2, 3, 4]
            return mine

        return run

    answers = race(*[work(seed) for seed in range(8)])

    for mine in answers:
        assert isinstance(mine, dict), mine
        for log_id, expected in mine.items():
            assert amounts(store, log_id) == expected


@pytest.mark.parametrize("is_turned_on_again", [False, True])
def test_readers_of_the_feed_lose_statements_and_no_event(pooler, race, is_turned_on_again):
    """Also where preparing is turned on again before each page."""
    store = store_for("default")

    def write(seed: int) -> Any:
        def run() -> dict[LogId, int]:
            random, mine = Random(seed), {}
            for number in range(25):
                with transaction.atomic():
                    log_id = create(store, 0).log_id
                    for version in range(1, 1 + random.randrange(4)):
                        append(store, log_id, number, expected=version)
                mine[log_id] = store.version(log_id)
            return mine

        return run

    def read() -> dict[LogId, int]:
        seen: dict[LogId, int] = {}
        after, writers_are_done = 0, False
        while True:
            if is_turned_on_again:
                psycopg_connections.unprepared.clear()
            page = Feed().read(after=after, limit=7, decode=False)
            for each in page:
                assert each.index == seen.get(each.log_id, 0)
                seen[each.log_id] = each.index + 1
            after = page.next_after
            if not page and writers_are_done:
                return seen
            writers_are_done = done.is_set()

    done, left = Flag(), iter(range(4))

    def writing(seed: int) -> Any:
        def run() -> Any:
            try:
                return write(seed)()
            finally:
                if next(left) == 3:
                    done.set()

        return run

    answers = race(*[writing(seed) for seed in range(4)], *[read] * 4)

    for each in answers:
        assert isinstance(each, dict), each
    written = {log_id: count for mine in answers[:4] for log_id, count in mine.items()}
    assert answers[4:] == [written] * 4
