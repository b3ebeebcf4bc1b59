"""Writers and readers behind a real PgBouncer, in transaction mode, while the table is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from threading import Event as Flag
from typing import Any
from uuid import uuid4

import pytest
from django.db import connections, transaction

from eventlogs import ANY, Feed, LogManager
from eventlogs.exceptions import CannotPartition
from eventlogs.feed.sources import source_in
from eventlogs.operations import partitioning
from eventlogs.operations.partitioning import copying, running, sessions
from eventlogs.stores import psycopg_connections, store_for
from tests.accounts import Account, Noted, Opened
from tests.operations.partitioning.logs import check_whole, partitions
from tests.servers import ServerError
from tests.stores.test_poolers import PgBouncer

pytestmark = [pytest.mark.postgresql, pytest.mark.fence]

WRITERS, READERS = 4, 2


@pytest.fixture
def pooled(second_database: str) -> Iterator[str]:
    """An alias of the second database, behind a pooler with two sessions."""
    alias, direct = f"pooled_{uuid4().hex[:8]}", connections[second_database]
    try:
        server = PgBouncer(direct.get_connection_params())
    except ServerError as error:
        pytest.skip(str(error))
    with server:
        connections.databases[alias] = {
            **direct.settings_dict,
            "HOST": "127.0.0.1",
            "PORT": str(server.port),
            "NAME": "pooled",
            "DISABLE_SERVER_SIDE_CURSORS": True,
        }
        try:
            yield alias
        finally:
            connections[alias].close()
            del connections[alias]
            del connections.databases[alias]
            store_for.cache_clear()
            source_in.cache_clear()
            psycopg_connections.unprepared.clear()


@pytest.mark.parametrize("through", ["a connection of its own", "the pooler"])
def test_no_writer_and_no_reader_behind_a_pooler_notices(
    second_database, pooled, race, monkeypatch, through
):
    using = pooled if through == "the pooler" else second_database
    monkeypatch.setattr(copying, "BATCH", 50)
    monkeypatch.setattr(sessions, "PAUSE", 0.05)
    monkeypatch.setattr(running, "POLL", 0.01)
    accounts = LogManager(Account, using=pooled)
    is_replaced, are_done = Flag(), Flag()
    running_writers = iter(range(WRITERS - 1, -1, -1))

    def write(seed: int) -> Any:
        def run() -> dict[Any, int]:
            random, mine = Random(seed), {}
            while not is_replaced.is_set():
                log_id = accounts.create(Opened("ada")).log_id
                with transaction.atomic(using=pooled):
                    accounts.append(log_id, Noted("a"), expected_version=ANY)
                    is_replaced.wait(0.02)  # others append, and commit before
                    if random.random() < 0.3:
                        transaction.set_rollback(True, using=pooled)
                accounts.append(log_id, Noted("b"), Noted("c"), expected_version=ANY)
                mine[log_id] = accounts.version(log_id)
            return mine

        def whole() -> Any:
            try:
                return run()
            finally:
                if next(running_writers) == 0:
                    are_done.set()

        return whole

    def read() -> dict[Any, int]:
        seen: dict[Any, int] = {}
        after, is_last = 0, False
        while True:
            page = Feed(using=pooled).read(after=after, limit=20, decode=False)
            for each in page:
                assert each.index == seen.get(each.log_id, 0)
                seen[each.log_id] = each.index + 1
            after = page.next_after
            if not page and is_last:
                return seen
            is_last = are_done.is_set()

    def replace() -> int:
        replaced = 0
        try:
            for wanted in (4, 0, 3):
                while partitions(using) != wanted:
                    try:
                        replaced += partitioning.partition(wanted, using=using).swapped
                    except CannotPartition as error:
                        if "nobody could" not in error.reason:
                            raise
                        # A lock was not granted in time: the next call goes on.
        finally:
            is_replaced.set()
        return replaced

    replaced, *answers = race(replace, *[write(seed) for seed in range(WRITERS)], *[read] * READERS)

    assert replaced >= 2
    check_whole(second_database)
    for each in answers:
        assert isinstance(each, dict), each
    written = {log_id: count for mine in answers[:WRITERS] for log_id, count in mine.items()}
    assert len(written) > WRITERS
    assert answers[WRITERS:] == [written] * READERS
