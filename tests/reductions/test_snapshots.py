"""Snapshots: entries of earlier versions of a long log, which the log must prove."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from eventlogs import Aggregate, EventRecord, LogManager, Reduction
from eventlogs.reductions import snapshots as module
from eventlogs.reductions.snapshots import Snapshots
from eventlogs.reductions.timeline import Unavailable
from eventlogs.testing import MemoryStore, RecordingCache
from tests.accounts import Account, Deposited, Opened


@pytest.fixture(autouse=True)
def _near(monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", 10)


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


def of(aggregate, store, cache):
    return Snapshots(aggregate, "default", store=store, cache=cache)


@pytest.fixture
def snapshots(cache, counting):
    return of(Account, counting, cache)


def fold(snapshots, start, store, version):
    """Fold, and write the snapshots at once."""
    state, writes = snapshots.fold(start, store, version=version)
    for write in writes:
        write()
    return state


def folded(snapshots, log_id, store, version):
    return fold(snapshots, Account.without_events(log_id), store, version)


def kept(cache):
    """The snapshots that were written: their keys, by their versions."""
    keys = {key for name, key in cache.calls if name == "set" and "@" in key}
    return {int(key.partition("@")[2]): key for key in sorted(keys)}


def test_a_fold_ends_at_the_version_asked_for(snapshots, log_id, counting):
    for version in (1, 9, 10, 11, 995):
        found = folded(snapshots, log_id, counting, version)
        assert (found.version, found.aggregate.balance) == (version, version - 1)


def test_a_fold_that_is_at_its_end_reads_no_events(snapshots, log_id, counting):
    for version in (0, 7, 20):
        start = folded(snapshots, log_id, counting, version)
        counting.read = 0
        assert snapshots.fold(start, counting, version=version) == (start, [])
        assert counting.read == 0


def test_a_fold_writes_a_limited_number_of_snapshots_and_the_last_possible_one(
    snapshots, log_id, counting, cache, monkeypatch
):
    monkeypatch.setattr(module, "MOST", 8)
    folded(snapshots, log_id, counting, 995)

    assert sorted(kept(cache)) == [160, 320, 480, 640, 800, 960, 990]


@pytest.mark.parametrize(("setting", "seconds"), [(None, 3_600), (60, 60), (86_400, 3_600)])
def test_snapshots_are_kept_no_longer_than_entries(
    snapshots, log_id, counting, cache, settings, monkeypatch, setting, seconds
):
    timeouts = []
    monkeypatch.setattr(cache, "set", lambda key, entry, *, timeout, **_: timeouts.append(timeout))
    settings.EVENTLOGS = {"CACHE_TIMEOUT": setting}
    folded(snapshots, log_id, counting, 10)

    assert timeouts == [seconds]


def test_a_later_fold_begins_at_the_nearest(snapshots, log_id, counting, cache):
    folded(snapshots, log_id, counting, 995)
    counting.read = 0

    near = snapshots.nearest(log_id, counting, upto=512)
    assert (near.version, near.aggregate.balance) == (500, 499)
    assert counting.read == 1  # the event that proves it
    found = fold(snapshots, near, counting, 512)
    assert (found.version, found.aggregate.balance) == (512, 511)
    assert counting.read == 13


@pytest.mark.parametrize("most", [1, 2, 5, 64])
def test_after_a_fold_a_snapshot_is_near_every_version(
    snapshots, log_id, counting, cache, monkeypatch, most
):
    monkeypatch.setattr(module, "MOST", most)
    folded(snapshots, log_id, counting, 995)
    step = min(kept(cache))

    for upto in range(step, 995, 7):
        assert upto - snapshots.nearest(log_id, counting, upto=upto).version < step


def test_before_the_first_snapshot_none_is_found(snapshots, log_id, counting):
    folded(snapshots, log_id, counting, 995)

    assert snapshots.nearest(log_id, counting, upto=9) is None


def test_the_latest_reduction_is_used_if_it_is_nearer(snapshots, log_id, counting, cache):
    accounts = LogManager(
        Account, store=counting, cache=cache, refresher="eventlogs.refreshers.ImmediateRefresher"
    )
    folded(snapshots, log_id, counting, 500)
    accounts.reduce(log_id)

    assert snapshots.nearest(log_id, counting, upto=994).version == 320
    assert snapshots.nearest(log_id, counting, upto=995).version == 995


def test_a_snapshot_that_the_log_does_not_prove_is_not_used(snapshots, log_id, counting, cache):
    """Another history under the same id, as after a restored backup."""
    folded(snapshots, log_id, counting, 20)
    other = MemoryStore()
    LogManager(Account, store=other, cache=None).create(
        Opened("Eve"), *(Deposited(7) for _ in range(30)), log_id=log_id
    )

    assert snapshots.nearest(log_id, other, upto=25) is None
    assert snapshots.nearest(log_id, counting, upto=25).version == 20


def test_a_snapshot_in_the_place_of_another_is_not_used(snapshots, log_id, counting, cache):
    folded(snapshots, log_id, counting, 30)
    keys = kept(cache)
    cache.replace(keys[10], cache.get(keys[30]), timeout=60)

    assert snapshots.nearest(log_id, counting, upto=15) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: raw.replace(b'"balance":29', b'"balance":99'),
    ],
)
def test_a_corrupt_snapshot_is_passed_over_for_an_earlier_one(
    snapshots, log_id, counting, cache, spoil
):
    folded(snapshots, log_id, counting, 30)
    last = kept(cache)[30]
    cache.replace(last, spoil(cache.get(last)), timeout=60)

    near = snapshots.nearest(log_id, counting, upto=35)
    assert (near.version, near.aggregate.balance) == (20, 19)
    fold(snapshots, near, counting, 35)
    assert snapshots.nearest(log_id, counting, upto=35).version == 30  # it was replaced


def test_an_unreachable_cache_only_costs_time(snapshots, log_id, counting, cache):
    cache.is_down = True

    assert snapshots.nearest(log_id, counting, upto=500) is None
    assert folded(snapshots, log_id, counting, 500).version == 500


def test_snapshots_of_large_states_are_no_more_bytes_than_a_fold_may_write(
    snapshots, log_id, counting, cache, monkeypatch
):
    monkeypatch.setattr(module, "BYTES", 1_000)
    folded(snapshots, log_id, counting, 995)

    sizes = [len(cache.get(key)) for key in kept(cache).values()]
    assert 1_000 < sum(sizes) < 1_000 + max(sizes)


def test_an_aggregate_that_cannot_be_cached_is_folded_all_the_same(
    log_id, counting, cache, scratch_registry
):
    class Odd(Aggregate, log_type="account", events=[Opened, Deposited]):
        def __init__(self):
            self.seen = 0

        def apply(self, record: EventRecord) -> None:
            self.seen += 1

    snapshots = of(Odd, counting, cache)
    found = fold(snapshots, Odd.without_events(log_id), counting, 100)

    assert found.aggregate.seen == 100
    assert cache.calls == []
    assert snapshots.nearest(log_id, counting, upto=100) is None


@dataclass
class Brittle(Aggregate, log_type="brittle", events=[Opened, Deposited]):
    seen: int = 0

    def apply(self, record: EventRecord) -> None:
        if record.index == 42:
            raise ValueError("a card number")
        self.seen += 1


def test_an_event_that_cannot_be_folded_ends_the_fold(log_id, counting, cache):
    snapshots = of(Brittle, counting, cache)
    found = fold(snapshots, Brittle.without_events(log_id), counting, 100)

    assert found == Unavailable("ValueError", 42)
    assert list(kept(cache)) == [10, 20, 30, 40]
    assert isinstance(snapshots.nearest(log_id, counting, upto=41), Reduction)
