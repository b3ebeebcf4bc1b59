"""
Rebuilds beside writers, readers and workers, killed and resumed.

The result is what a replay from zero gives, and no reader ever sees a part of it.
"""

from __future__ import annotations

import random
import subprocess
import time
from typing import Any

import pytest
from django.db import connection, connections

from eventlogs import Feed
from tests.projections.conftest import tables  # noqa: F401 (a fixture)
from tests.projections.readmodels import Balance, Balances
from tests.races import COMMITS
from tests.reliability.projections import (
    append_some,
    eventually,
    new_accounts,
    workers,
    write,
    wrong,
)
from tests.reliability.team import Team

pytestmark = [COMMITS, pytest.mark.postgresql, pytest.mark.usefixtures("tables")]

PLACES = [
    *("before read", "before rows", "after rows", "before commit", "after commit"),
    *("before swap", "after swap"),
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(Balances, "timeout", 2.0)


def look(stop: Any, number: int, count: int) -> tuple[int, float]:
    """Count rows all the time; return the fewest that were there, and the longest that it took."""
    fewest, longest = count, 0.0
    while not stop.is_set():
        began = time.monotonic()
        fewest = min(fewest, Balance.objects.count())
        longest = max(longest, time.monotonic() - began)
    connections.close_all()
    return fewest, longest


def settle() -> None:
    settled = Feed().settled()
    assert eventually(lambda: (Balances.catch_up(), Balances.wait_for(settled, 0))[1])


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_rebuild_beside_writers_readers_and_a_worker(rounds):
    log_ids = new_accounts(50)
    append_some(log_ids, 500, random.Random(1))
    Balances.catch_up()
    database = dict(connection.settings_dict)
    with workers() as crew, Team(database, {}) as writers, Team(database, {}) as readers:
        crew.start(batch_size=20)
        writers.add(4, write, log_ids)
        readers.add(2, look, len(log_ids))
        writers.go()
        readers.go()
        for _ in range(rounds):
            Balance.objects.filter(pk__in=log_ids[:10]).update(balance=-1)
            rebuild = crew.start(rebuild="balances", batch_size=50)
            assert rebuild.wait(60) == 0
            crew.running.remove(rebuild)
        appended = sum(writers.finish())
        seen = readers.finish()
        crew.stop()

    settle()
    assert wrong() == []
    assert appended > 0
    assert [fewest for fewest, _ in seen] == [len(log_ids)] * 2
    assert max(longest for _, longest in seen) < 5  # seconds: they queue up for no longer


@pytest.mark.parametrize("rounds", [1, pytest.param(8, marks=pytest.mark.long)])
def test_a_rebuild_that_is_killed_anywhere_is_resumed(rounds):
    log_ids, choices = new_accounts(10), random.Random(2)
    append_some(log_ids, 300, choices)
    Balances.catch_up()
    with workers() as crew:
        for number in range(rounds * len(PLACES)):
            Balance.objects.update(balance=-1)
            rebuild = crew.start(
                rebuild="balances",
                batch_size=40,
                at=PLACES[number % len(PLACES)],
                after=0 if "swap" in PLACES[number % len(PLACES)] else choices.randrange(6),
            )
            try:
                rebuild.wait(10)
            except subprocess.TimeoutExpired:
                rebuild.kill()
            rebuild.wait()
            append_some(log_ids, 10, choices)
            assert eventually(lambda: Balances.rebuild() >= 0)
            settle()
            assert wrong() == [], PLACES[number % len(PLACES)]


def test_a_swap_that_leaves_the_checkpoint_where_it_was_is_found():
    log_ids = new_accounts(5)
    append_some(log_ids, 100, random.Random(3))
    with workers() as crew:
        assert crew.start(rebuild="balances", twin="checkpoint_stays_behind").wait(30) == 0

    settle()
    assert wrong() != []
