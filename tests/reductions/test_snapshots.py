"""Waypoints: states along a long log, that are proven by it and never trusted."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from eventlogs import Aggregate, EventRecord, LogManager, Reduction
from eventlogs.aggregates import nothing
from eventlogs.reductions import snapshots as module
from eventlogs.reductions.snapshots import Waypoints
from eventlogs.reductions.timeline import Unavailable
from eventlogs.testing import MemoryStore, RecordingCache
from tests.accounts import Account, Deposited, Opened


@pytest.fixture(autouse=True)
def _near(monkeypatch):
    monkeypatch.setattr(module, "GRID", 10)


@pytest.fixture
def counting():
    class Counting(MemoryStore):
        read = 0

        def events(self, log_id, *, start, limit, reverse=False):
            found = super().events(log_id, start=start, limit=limit, reverse=reverse)
            self.read += len(found)
            return found

    return Counting()


@pytest.fixture
def cache():
    return RecordingCache()


@pytest.fixture
def log_id(counting):
    accounts = LogManager(Account, store=counting, cache=None)
    return accounts.create(Opened("Ada"), *(Deposited(1) for _ in range(994))).log_id


@pytest.fixture
def ways(cache, counting):
    # The alias under which a LogManager with this store has its entries.
    kind = type(counting)
    return Waypoints(Account, f"in {kind.__module__}.{kind.__qualname__}", cache=cache)


def walked(ways, log_id, store, version):
    return ways.walk(nothing(Account, log_id), store, version=version)


def kept(cache):
    """The waypoints that were left: their keys, by their versions."""
    keys = {key for name, key in cache.calls if name == "replace"}
    return {int(key.partition("@")[2]): key for key in sorted(keys)}


def test_a_walk_ends_where_it_is_asked_to(ways, log_id, counting):
    for version in (1, 9, 10, 11, 995):
        found = walked(ways, log_id, counting, version)
        assert (found.version, found.aggregate.balance) == (version, version - 1)


def test_a_walk_that_is_at_its_end_reads_nothing(ways, log_id, counting):
    for version in (0, 7, 20):
        start = walked(ways, log_id, counting, version)
        counting.read = 0
        assert ways.walk(start, counting, version=version) == start
        assert counting.read == 0


def test_a_walk_leaves_so_many_waypoints_and_the_last_that_there_can_be(
    ways, log_id, counting, cache, monkeypatch
):
    monkeypatch.setattr(module, "MOST", 8)
    walked(ways, log_id, counting, 995)

    assert sorted(kept(cache)) == [160, 320, 480, 640, 800, 960, 990]


@pytest.mark.parametrize(("setting", "seconds"), [(None, 3_600), (60, 60), (86_400, 3_600)])
def test_waypoints_are_kept_no_longer_than_entries(
    ways, log_id, counting, cache, settings, monkeypatch, setting, seconds
):
    timeouts = []
    monkeypatch.setattr(cache, "replace", lambda key, value, *, timeout: timeouts.append(timeout))
    settings.EVENTLOGS = {"CACHE_TIMEOUT": setting}
    walked(ways, log_id, counting, 10)

    assert timeouts == [seconds]


def test_a_later_walk_begins_at_the_nearest(ways, log_id, counting, cache):
    walked(ways, log_id, counting, 995)
    counting.read = 0

    near = ways.nearest(log_id, counting, upto=512)
    assert (near.version, near.aggregate.balance) == (500, 499)
    assert counting.read == 1  # the event that proves it
    found = ways.walk(near, counting, version=512)
    assert (found.version, found.aggregate.balance) == (512, 511)
    assert counting.read == 13


@pytest.mark.parametrize("most", [1, 2, 5, 64])
def test_wherever_a_walk_has_been_a_waypoint_is_near(
    ways, log_id, counting, cache, monkeypatch, most
):
    monkeypatch.setattr(module, "MOST", most)
    walked(ways, log_id, counting, 995)
    step = min(kept(cache))

    for upto in range(step, 995, 7):
        assert upto - ways.nearest(log_id, counting, upto=upto).version < step


def test_before_the_first_waypoint_there_is_none(ways, log_id, counting):
    walked(ways, log_id, counting, 995)

    assert ways.nearest(log_id, counting, upto=9) is None


def test_the_latest_reduction_is_taken_where_it_is_nearer(ways, log_id, counting, cache):
    accounts = LogManager(
        Account, store=counting, cache=cache, refresher="eventlogs.refreshers.ImmediateRefresher"
    )
    walked(ways, log_id, counting, 500)
    accounts.reduce(log_id)

    assert ways.nearest(log_id, counting, upto=994).version == 320
    assert ways.nearest(log_id, counting, upto=995).version == 995


def test_what_the_log_does_not_prove_is_no_waypoint(ways, log_id, counting, cache):
    """Another history under the same id, as after a restored backup."""
    walked(ways, log_id, counting, 20)
    other = MemoryStore()
    LogManager(Account, store=other, cache=None).create(
        Opened("Eve"), *(Deposited(7) for _ in range(30)), log_id=log_id
    )

    assert ways.nearest(log_id, other, upto=25) is None
    assert ways.nearest(log_id, counting, upto=25).version == 20


def test_a_waypoint_in_the_place_of_another_is_not_used(ways, log_id, counting, cache):
    walked(ways, log_id, counting, 30)
    keys = kept(cache)
    cache.replace(keys[10], cache.get(keys[30]), timeout=60)

    assert ways.nearest(log_id, counting, upto=15) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: raw.replace(b'"balance":29', b'"balance":99'),
    ],
)
def test_a_spoilt_waypoint_is_passed_over_for_an_earlier_one(ways, log_id, counting, cache, spoil):
    walked(ways, log_id, counting, 30)
    last = kept(cache)[30]
    cache.replace(last, spoil(cache.get(last)), timeout=60)

    near = ways.nearest(log_id, counting, upto=35)
    assert (near.version, near.aggregate.balance) == (20, 19)
    ways.walk(near, counting, version=35)
    assert ways.nearest(log_id, counting, upto=35).version == 30  # it was replaced


def test_a_cache_that_cannot_be_reached_costs_time_and_no_more(ways, log_id, counting, cache):
    cache.is_down = True

    assert ways.nearest(log_id, counting, upto=500) is None
    assert walked(ways, log_id, counting, 500).version == 500


def test_large_states_leave_no_more_than_a_walk_may(ways, log_id, counting, cache, monkeypatch):
    monkeypatch.setattr(module, "BYTES", 1_000)
    walked(ways, log_id, counting, 995)

    sizes = [len(cache.get(key)) for key in kept(cache).values()]
    assert 1_000 < sum(sizes) < 1_000 + max(sizes)


def test_an_aggregate_that_cannot_be_kept_is_walked_all_the_same(
    log_id, counting, cache, scratch_registry
):
    class Odd(Aggregate, log_type="account", events=[Opened, Deposited]):
        def __init__(self):
            self.seen = 0

        def apply(self, record: EventRecord) -> None:
            self.seen += 1

    ways = Waypoints(Odd, "default", cache=cache)
    found = ways.walk(nothing(Odd, log_id), counting, version=100)

    assert found.aggregate.seen == 100  # type: ignore[union-attr]
    assert cache.calls == []
    assert ways.nearest(log_id, counting, upto=100) is None


@dataclass
class Brittle(Aggregate, log_type="brittle", events=[Opened, Deposited]):
    seen: int = 0

    def apply(self, record: EventRecord) -> None:
        if record.index == 42:
            raise ValueError("a card number")
        self.seen += 1


def test_an_event_that_cannot_be_folded_ends_the_walk(log_id, counting, cache):
    ways = Waypoints(Brittle, "default", cache=cache)
    found = ways.walk(nothing(Brittle, log_id), counting, version=100)

    assert found == Unavailable("ValueError", 42)
    assert list(kept(cache)) == [10, 20, 30, 40]
    assert isinstance(ways.nearest(log_id, counting, upto=41), Reduction)
