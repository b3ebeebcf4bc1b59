"""
Processes whose tasks append at the same time, and are killed, disconnected and cancelled.

No acknowledged event is lost, none is stored twice, no log has a hole, each key is used
once: the checker is that of the races.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import Error, connection
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs import ANY, LogManager
from eventlogs.stores import group_commit
from tests.proxy import CountingProxy
from tests.races import COMMITS
from tests.races.events import Race, batch
from tests.reliability.async_writers import write, write_with_mixed_answers
from tests.reliability.test_kills import stop_one_backend
from tests.reliability.writers import Writers

pytestmark = [pytest.mark.postgresql, pytest.mark.fence, COMMITS]


@pytest.mark.parametrize("rounds", [4, pytest.param(40, marks=pytest.mark.long)])
def test_killed_writers_and_sessions_lose_and_double_no_event(violations, new_logs, rounds):
    database = dict(connection.settings_dict)

    with Writers(database, "", new_logs(30), count=3, job=write) as writers:
        while rounds > 0 or not writers.taken_over:
            rounds -= 1
            writers.work_until(len(writers.outcomes) + 50)
            stop_one_backend("pg_cancel_backend")
            writers.work_until(len(writers.outcomes) + 50)
            stop_one_backend("pg_terminate_backend")
            writers.work_until(len(writers.outcomes) + 50)
            writers.kill_one()
        writers.finish()

    assert violations(writers.outcomes) == []


def test_answers_that_are_mixed_up_are_found(violations, new_logs):
    database = dict(connection.settings_dict)

    with Writers(database, "", new_logs(30), count=1, job=write_with_mixed_answers) as writers:
        writers.work_until(100)
        found = violations(writers.outcomes)

    assert {each.kind for each in found} & {"lost", "wrong answer"}


class LossyProxy(CountingProxy):
    """
    A proxy that loses an answer on request: it waits for the answer, and closes both sides.

    So the server has done its work, and the client does not know.
    """

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.loses = threading.Event()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self._end.is_set():
                for key, _ in selector.select(timeout=0.05):
                    source, target = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    data = source.recv(65_536)
                    if not data:
                        return
                    if source is server and self.loses.is_set():
                        self.loses.clear()
                        return
                    target.sendall(data)


@pytest.fixture
def proxy() -> Iterator[LossyProxy]:
    connection.ensure_connection()
    info = connection.connection.info
    path = f"{info.host}/.s.PGSQL.{info.port}"
    with LossyProxy(path if info.host.startswith("/") else (info.host, info.port)) as proxy:
        before = {key: connection.settings_dict[key] for key in ("HOST", "PORT")}
        connection.close()
        connection.settings_dict.update(HOST="127.0.0.1", PORT=proxy.port)
        yield proxy
        connection.close()
        connection.settings_dict.update(before)


def answers_that_are_lost(proxy: LossyProxy, logs: list[Any]) -> Counter[str]:
    """Append without keys, and lose the answer; return how often each answer came."""
    manager = LogManager(Race)

    async def main() -> list[Any]:
        await manager.aversion(logs[0])  # connects
        proxy.loses.set()
        appends = (
            manager.aappend(each, *batch(f"marker {number}", 2), expected_version=ANY)
            for number, each in enumerate(logs)
        )
        return [*await asyncio.gather(*appends, return_exceptions=True)]

    answers = async_to_sync(main)()
    connection.close()
    return Counter(type(each).__name__ for each in answers)


def test_appends_whose_answers_are_lost_are_stored_once_or_not(
    proxy, violations, new_logs, settings
):
    settings.EVENTLOGS = {"PREPARED_STATEMENTS": False}  # one trip
    logs = new_logs(5)

    assert answers_that_are_lost(proxy, logs) == {"OperationalError": 5}

    assert violations() == []
    assert [LogManager(Race).version(each) for each in logs] == [3] * 5


def test_a_broken_version_that_retries_blindly_is_found(
    proxy, violations, new_logs, settings, monkeypatch
):
    """The broken version of the test above."""

    def is_refused(error: Error, connection: BaseDatabaseWrapper) -> bool:
        connection.close()
        return True

    monkeypatch.setattr(group_commit, "_is_refused", is_refused)
    settings.EVENTLOGS = {"PREPARED_STATEMENTS": False}
    logs = new_logs(5)

    assert answers_that_are_lost(proxy, logs) == {"LogState": 5}

    assert [LogManager(Race).version(each) for each in logs] == [5] * 5
    assert {each.kind for each in violations()} == {"doubled"}
