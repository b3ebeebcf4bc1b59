"""
Readers beside racing writers: late commits, rollbacks, savepoints, transactions of many appends.

The naive reader runs in the same race. On PostgreSQL it misses events; otherwise there was no race.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.db import connection

from eventlogs.models import Event
from tests.races import COMMITS, jobs

pytestmark = COMMITS

STORE = {"postgresql": "postgresql", "sqlite": "portable"}
WRITERS = {"postgresql": 8, "sqlite": 4}
COUNT = {"postgresql": 30, "sqlite": 15}  # transactions of each writer


def read_beside(readers: Sequence[Any], race: Callable[[], Any]) -> list[int]:
    """Have the readers read until the race is over, and once more; return all positions."""
    with ThreadPoolExecutor(1) as thread:
        racing = thread.submit(race)
        while not racing.done():
            for reader in readers:
                reader.read()
        racing.result()
    for reader in readers:
        reader.read()
    return list(Event.objects.order_by("position").values_list("position", flat=True))


@pytest.fixture
def run_race(crew, new_logs, quick_deadlocks) -> Callable[..., list[int]]:
    """A function that races writers, has readers read meanwhile, and returns what is stored."""
    return partial(_run_race, crew, new_logs, quick_deadlocks)


def _run_race(
    crew: Any, new_logs: Any, options: Any, readers: Sequence[Any], isolation: str = ""
) -> list[int]:
    log_ids = new_logs(12)
    vendor = connection.vendor
    return read_beside(
        readers,
        lambda: crew.race(
            WRITERS[vendor],
            jobs.append_in_transactions,
            STORE[vendor],
            log_ids,
            COUNT[vendor],
            isolation,
            **options,
        ),
    )


@pytest.mark.postgresql
@pytest.mark.parametrize("isolation", ["", "SERIALIZABLE"], ids=["default", "serializable"])
@pytest.mark.fence
def test_a_reader_beside_racing_writers_misses_nothing_and_the_naive_one_does(run_race, isolation):
    from tests.races.readers import NaiveReader, Reader

    ours, naive = Reader(), NaiveReader()

    stored = run_race([ours, naive], isolation)

    assert ours.seen == stored
    by_log: dict[object, list[int]] = defaultdict(list)
    for log_id, index in ours.places:
        by_log[log_id].append(index)
    assert all(indexes == list(range(len(indexes))) for indexes in by_log.values())
    assert set(naive.seen) < set(stored)


@pytest.mark.postgresql
@pytest.mark.fence
def test_a_reader_that_ignores_fences_is_found(run_race):
    from tests.races.feeds_postgresql import IgnoresFences
    from tests.races.readers import FeedOf, Reader

    variant = Reader(FeedOf(IgnoresFences("default")))

    stored = run_race([variant])

    assert set(variant.seen) < set(stored)


@pytest.mark.sqlite
def test_on_sqlite_a_reader_beside_racing_writers_misses_nothing(run_race):
    from eventlogs import Feed

    seen: list[int] = []

    class Follower:
        feed = Feed()

        def read(self) -> None:
            while page := self.feed.read(after=seen[-1] if seen else 0, limit=7):
                seen.extend(record.position for record in page)

    assert run_race([Follower()]) == seen
