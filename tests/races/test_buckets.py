"""Readers of the feed beside racing writers, where positions come from counters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction

from eventlogs import Feed
from tests.races import COMMITS, jobs
from tests.races.buckets import ignoring_open_appends
from tests.races.readers import FeedOf, NaiveReader, Reader
from tests.races.test_feed_races import read_beside

pytestmark = [pytest.mark.buckets, pytest.mark.locks, COMMITS]

STORE = {"postgresql": "postgresql", "mysql": "portable"}
WRITERS = {"postgresql": 8, "mysql": 4}
COUNT = {"postgresql": 30, "mysql": 12}  # transactions of each writer


@pytest.fixture
def run_race(crew, new_logs, quick_deadlocks) -> Callable[..., list[int]]:
    """A function that races writers, has readers read meanwhile, and returns what is stored."""

    def run(readers: list[Any], store: str = "", isolation: str = "") -> list[int]:
        log_ids = new_logs(12)
        return read_beside(
            readers,
            lambda: crew.race(
                WRITERS[connection.vendor],
                jobs.append_in_transactions,
                store or STORE[connection.vendor],
                log_ids,
                COUNT[connection.vendor],
                isolation,
                **quick_deadlocks,
            ),
        )

    return run


class ReaderInTransactions(Reader):
    """Reads each page in a transaction, as a reader does that stores what it makes of it."""

    def read(self) -> None:
        with transaction.atomic():
            super().read()


@pytest.mark.parametrize(
    "isolation",
    [
        "",
        pytest.param("SERIALIZABLE", marks=[pytest.mark.postgresql, pytest.mark.one_server]),
    ],
    ids=["default", "serializable"],
)
def test_a_reader_beside_racing_writers_misses_nothing_and_the_naive_one_does(run_race, isolation):
    ours, inside, naive = Reader(), ReaderInTransactions(), NaiveReader()

    stored = run_race([ours, inside, naive], isolation=isolation)

    assert ours.seen == inside.seen == stored
    by_log: dict[object, list[int]] = defaultdict(list)
    for log_id, index in ours.places:
        by_log[log_id].append(index)
    assert all(indexes == list(range(len(indexes))) for indexes in by_log.values())
    if not isolation:  # serializable transactions on one counter end one another
        assert set(naive.seen) < set(stored)


def test_several_readers_raise_the_counters_at_once(run_race):
    readers = [Reader(limit=limit) for limit in (1, 7, 1000)]

    stored = run_race(readers)

    assert [each.seen for each in readers] == [stored] * 3
    assert Feed().settled() == stored[-1]


def test_a_reader_that_ignores_open_appends_is_found(run_race):
    variant = Reader(FeedOf(ignoring_open_appends()))

    stored = run_race([variant])

    assert set(variant.seen) < set(stored)


def test_a_store_that_does_not_hold_its_counter_is_found(run_race):
    variant = Reader()

    stored = run_race([variant], store="tests.races.buckets.CountsApart")

    assert set(variant.seen) < set(stored)
