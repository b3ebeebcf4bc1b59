"""
Many concurrent misses of one log, in several processes: at most two readers replay it.

That holds if the first one is killed in the middle. No reader waits for a result that is not
cached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import pytest
from django.core.cache import caches
from django.db import connections
from django.test import override_settings
from django.utils.module_loading import import_string

from eventlogs import LogId, LogLengthPolicy, LogManager
from eventlogs.reductions.single_flight import LOCK
from eventlogs.reductions.worker import worker
from eventlogs.stores.base import STREAM_PAGE
from eventlogs.stores.postgresql import PostgreSQLStore
from eventlogs.values import StoredEvent
from tests.processes import Place, Processes, until
from tests.races import COMMITS
from tests.reliability.cache_jobs import READER
from tests.reliability.ledgers import Entered, Ledger
from tests.reliability.redises import MORTAL, MortalRedis

pytestmark = [pytest.mark.redis, COMMITS]

BROKEN = "tests.reliability.broken."
LONG = pytest.mark.long
CONNECTIONS = 3  # to the database, for each process: not one for each of its threads


class Missed(NamedTuple):
    """The answers to the threads of a process, and the time of the slowest."""

    answers: set[tuple[int, str]]
    slowest: float  # seconds


@lru_cache(maxsize=1)
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CONNECTIONS)


class CountingStore(PostgreSQLStore):
    """Counts in Redis which pages are read of a log that is replayed."""

    pause = 0.0  # seconds for each page

    def events(
        self, log_id: LogId, *, start: int, limit: int, reverse: bool = False
    ) -> Sequence[StoredEvent]:
        client = caches[MORTAL].client.get_client()  # type: ignore[attr-defined]
        client.incr(f"page {start // STREAM_PAGE}")
        time.sleep(self.pause)
        read: Callable[..., Sequence[StoredEvent]] = super().events
        return pool().submit(read, log_id, start=start, limit=limit, reverse=reverse).result()

    def since(self, log_id: LogId, *, start: int, limit: int) -> Sequence[StoredEvent]:
        read: Callable[..., Sequence[StoredEvent]] = super().since
        return pool().submit(read, log_id, start=start, limit=limit).result()


def miss(
    place: Place, log_id: LogId, threads: int, pause: float, variant: str, declines: bool
) -> Missed:
    """Reduce one log in ``threads`` threads at once."""
    store = CountingStore("default")
    store.pause = pause
    policy = LogLengthPolicy.until(10) if declines else None
    manager = LogManager(Ledger, store=store, cache=MORTAL, caching_policy=policy)
    manager._reduction_readers["default"] = import_string(variant)(
        Ledger, using="default", store=store, cache=MORTAL, policy=policy
    )
    barrier = threading.Barrier(threads)

    def reduce(_: int) -> tuple[int, str, float]:
        barrier.wait()
        began = time.monotonic()
        found = manager.reduce(log_id)
        return found.version, found.aggregate.chain, time.monotonic() - began

    with ThreadPoolExecutor(threads) as readers:
        found = list(readers.map(reduce, range(threads)))
    worker.flush(20)
    list(pool().map(lambda _: connections.close_all(), range(CONNECTIONS)))
    return Missed({each[:2] for each in found}, max(each[2] for each in found))


@pytest.fixture
def server() -> Iterator[MortalRedis]:
    with MortalRedis() as server, override_settings(CACHES=server.caches):
        yield server


@pytest.fixture
def team(server: MortalRedis) -> Iterator[Processes]:
    with Processes(settings={"CACHES": server.caches}) as team:
        yield team


def new_log(length: int) -> tuple[LogId, set[tuple[int, str]]]:
    """Create a log, and return its id and the one right answer."""
    manager = LogManager(Ledger)
    state = manager.create(Entered("0"))
    while state.version < length:
        some = range(state.version, min(length, state.version + 5_000))
        state = manager.append(state, *(Entered(f"{number}") for number in some))
    truth = manager.reduce(state.log_id, fresh=True)
    return state.log_id, {(truth.version, truth.aggregate.chain)}


def replays(server: MortalRedis) -> int:
    """Return how many replays went past the first page, after which processes agree on one."""
    with server.client() as client:
        return int(client.get("page 1") or 0)


SIZES = [
    pytest.param(4_500, 4, 10, id="short"),  # events, processes, threads
    pytest.param(50_000, 8, 25, id="long", marks=LONG),
]


@pytest.mark.parametrize(("length", "processes", "threads"), SIZES)
def test_at_most_two_of_many_concurrent_misses_replay(server, team, length, processes, threads):
    log_id, truth = new_log(length)
    team.line_up(processes, miss, log_id, threads, 0.05, READER, False)

    team.go()
    reports = team.reports()

    assert [report.answers for report in reports] == [truth] * processes
    assert 1 <= replays(server) <= 2


@pytest.mark.parametrize("variant", ["WithoutWaiting", "WithoutLocks"])
def test_a_broken_version_whose_readers_do_not_wait_is_found(server, team, variant):
    log_id, truth = new_log(4_500)
    # A replay lasts longer than the processes may begin after one another on a busy machine.
    team.line_up(4, miss, log_id, 10, 0.4, BROKEN + variant, False)

    team.go()
    reports = team.reports()

    assert [report.answers for report in reports] == [truth] * 4
    assert replays(server) > 2


def kill_the_first(
    server: MortalRedis, team: Processes, length: int, processes: int, threads: int, variant: str
) -> list[Missed]:
    """Kill the reader that replays, while the others wait; return the reports of the others."""
    log_id, truth = new_log(length)
    (first,) = team.line_up(1, miss, log_id, threads, 0.3, variant, False)
    team.go()
    until(lambda: replays(server))
    others = Processes(settings={"CACHES": server.caches})
    with others:
        others.line_up(processes, miss, log_id, threads, 0.0, variant, False)
        others.go()
        until(lambda: int(server.client().get("page 0") or 0) >= 2)
        first.kill()
        reports = others.reports()
    assert [report.answers for report in reports] == [truth] * processes
    return reports


@LONG
def test_when_the_first_reader_is_killed_one_other_replays(server, team):
    kill_the_first(server, team, 50_000, 7, 25, READER)

    assert replays(server) == 2


@LONG
def test_a_broken_version_whose_lock_does_not_expire_is_found(server, team):
    kill_the_first(server, team, 9_000, 3, 2, BROKEN + "WaitsForEver")

    assert replays(server) > 2


@pytest.mark.parametrize(
    ("variant", "waits"),
    [(READER, False), pytest.param(BROKEN + "SaysNothingOfItsFailure", True, marks=LONG)],
)
def test_readers_do_not_wait_for_an_entry_that_will_not_be_cached(server, team, variant, waits):
    log_id, truth = new_log(2_500)
    team.line_up(4, miss, log_id, 10, 0.0, variant, True)

    team.go()
    reports = team.reports()

    assert [report.answers for report in reports] == [truth] * 4
    assert (max(report.slowest for report in reports) >= LOCK - 1) == waits
