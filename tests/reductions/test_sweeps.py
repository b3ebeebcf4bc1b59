"""Sweeps: cached reductions that are missing or behind, because a message got lost."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.cache import caches
from django.db import transaction

from eventlogs import CachingPolicy, LogAgePolicy, LogLengthPolicy, LogManager
from eventlogs.caches.backends import GuardedCache, cache_for, statistics
from eventlogs.caches.counters import counters
from eventlogs.exceptions import FeedUnavailable, Unreachable
from eventlogs.reductions.sweeps import sweep
from eventlogs.reductions.worker import worker
from eventlogs.testing import RecordingCache
from tests.accounts import Account, Deposited, Opened, Parcel, Sent


@pytest.fixture(autouse=True)
def _from_zero(db):
    caches["default"].clear()
    counters.reset()
    yield
    worker.flush(5)
    caches["default"].clear()


@pytest.fixture
def accounts():
    return LogManager(Account, using="default")


def hits(manager, *log_ids):
    before = statistics()["hits"]
    for log_id in log_ids:
        manager.reduce(log_id)
    return statistics()["hits"] - before


def test_missing_or_stale_entries_are_refreshed(accounts):
    states = [accounts.create(Opened("Ada")) for _ in range(5)]
    parcel = Parcel.logs.create(Sent("Rome"))

    swept = sweep()

    assert (swept.logs, swept.refreshed, swept.failed) == (6, 6, 0)
    assert hits(accounts, *(state.log_id for state in states)) == 5
    assert hits(Parcel.logs, parcel.log_id) == 1


def test_a_sweep_with_nothing_to_do_writes_nothing(accounts):
    accounts.create(Opened("Ada"))
    sweep()

    assert sweep(full=True).refreshed == 0


class Short(LogLengthPolicy):
    """A policy whose answers are counted."""

    asked = 0

    def should_cache(self, reduction):
        type(self).asked += 1
        return super().should_cache(reduction)


def test_a_log_whose_policy_declines_is_not_replayed_by_each_sweep(accounts, settings, monkeypatch):
    monkeypatch.setattr(Short, "asked", 0)
    settings.EVENTLOGS = {"CACHING_POLICY": Short.until(2)}
    short, long = accounts.create(Opened("Ada")), accounts.create(*[Opened("Ada")] * 3)
    assert sweep().refreshed == 1
    assert Short.asked == 2

    for _ in range(3):
        assert sweep(full=True).refreshed == 0
    assert Short.asked == 2

    accounts.append(long, Deposited(1))
    accounts.append(short, Deposited(1))
    assert sweep().refreshed == 1
    assert Short.asked == 4


def test_another_policy_is_asked_again(accounts, settings):
    settings.EVENTLOGS = {"CACHING_POLICY": LogLengthPolicy.at_least(3)}
    state = accounts.create(*[Opened("Ada")] * 2)
    assert sweep().refreshed == 0

    settings.EVENTLOGS = {"CACHING_POLICY": LogLengthPolicy.at_least(2)}

    assert sweep(full=True).refreshed == 1
    assert hits(accounts, state.log_id) == 1


class Flaky(CachingPolicy):
    """A policy that fails until ``is_well``."""

    is_well = False

    def should_cache(self, reduction):
        if not self.is_well:
            raise ConnectionError("the policy's own database is down")
        return True


def test_a_policy_that_failed_is_asked_again(accounts, settings, monkeypatch):
    settings.EVENTLOGS = {"CACHING_POLICY": Flaky()}
    state = accounts.create(Opened("Ada"))
    assert sweep(full=True).refreshed == 0

    monkeypatch.setattr(Flaky, "is_well", True)

    assert sweep(full=True).refreshed == 1
    assert hits(accounts, state.log_id) == 1


@pytest.mark.parametrize(
    "policy",
    [
        LogAgePolicy.starting_at(timedelta(hours=1)),
        LogAgePolicy.starting_at(timedelta(hours=1)) & LogLengthPolicy.at_least(1),
        LogLengthPolicy.at_least(5) | LogAgePolicy.starting_at(timedelta(hours=1)),
        ~LogAgePolicy.until(timedelta(hours=1)),
    ],
    ids=repr,
)
def test_a_policy_that_depends_on_the_time_is_asked_again(accounts, settings, monkeypatch, policy):
    settings.EVENTLOGS = {"CACHING_POLICY": policy}
    state = accounts.create(Opened("Ada"))
    assert sweep(full=True).refreshed == 0

    later = state.log_id.created_at + timedelta(hours=2)
    monkeypatch.setattr("eventlogs.policies.timezone.now", lambda: later)

    assert sweep(full=True).refreshed == 1
    assert hits(accounts, state.log_id) == 1


def test_later_sweeps_check_only_logs_with_newer_events(accounts):
    old = [accounts.create(Opened("Ada")) for _ in range(5)]
    sweep()
    sweep()
    accounts.append(old[0], Deposited(1))
    new = accounts.create(Opened("Eve"))

    swept = sweep()

    assert (swept.logs, swept.refreshed) == (2, 2)
    assert hits(accounts, old[0].log_id, new.log_id) == 2


def test_logs_that_were_swept_are_not_checked_again(accounts):
    accounts.create(Opened("Ada"))
    sweep()

    assert sweep().logs == 0


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_an_event_that_commits_late_is_swept_too(accounts, elsewhere):
    accounts.create(Opened("before"))
    with transaction.atomic():
        late = accounts.create(Opened("late"))
        elsewhere(lambda: accounts.create(Opened("overtakes it")))
        elsewhere(sweep)

    sweep()

    assert hits(accounts, late.log_id) == 1


def test_without_a_feed_all_logs_are_due(accounts, monkeypatch):
    def unavailable(self):
        raise FeedUnavailable("replica", using="default")

    monkeypatch.setattr("eventlogs.reductions.sweeps.Feed.settled", unavailable)
    accounts.create(Opened("Ada"))

    assert sweep().logs == 1
    assert sweep().logs == 1


def test_after_the_cache_was_emptied_all_logs_are_due(accounts):
    state = accounts.create(Opened("Ada"))
    for _ in range(3):
        sweep()
    caches["default"].clear()

    assert sweep().refreshed == 1
    assert hits(accounts, state.log_id) == 1


def test_a_full_sweep_finds_evicted_entries(accounts):
    states = [accounts.create(Opened("Ada")) for _ in range(3)]
    for _ in range(3):
        sweep()
    cache_for().delete(accounts._reductions().key(states[1].log_id))

    assert sweep().refreshed == 0
    assert sweep(full=True).refreshed == 1


def test_a_mark_that_is_corrupt_or_in_the_future_makes_all_logs_due(accounts):
    accounts.create(Opened("Ada"))
    for mark in (b"garbage", b"-1", b"", b"99999999"):
        cache_for().replace("eventlogs.sweep.default", mark, timeout=60)

        assert sweep().logs == 1, mark


def test_many_logs_are_swept_by_pages(accounts, monkeypatch):
    monkeypatch.setattr("eventlogs.reductions.sweeps.LOGS_AT_ONCE", 3)
    monkeypatch.setattr("eventlogs.reductions.sweeps.EVENTS_AT_ONCE", 4)
    for _ in range(10):
        accounts.create(Opened("Ada"), Deposited(1))

    assert sweep().refreshed == 10
    assert sweep(full=True).logs == 10
    assert sweep().logs >= 0


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_log_that_cannot_be_folded_does_not_stop_the_others(accounts, monkeypatch, error):
    good, bad = accounts.create(Opened("Ada")), accounts.create(Opened("poison"))
    apply = Account.apply

    def picky(self, record):
        if record.log_id == bad.log_id:
            raise error
        apply(self, record)

    monkeypatch.setattr(Account, "apply", picky)

    swept = sweep()

    assert (swept.refreshed, swept.failed) == (1, 1)
    assert hits(accounts, good.log_id) == 1


def test_an_unreachable_cache_is_an_error(accounts, monkeypatch):
    accounts.create(Opened("Ada"))
    down = RecordingCache()
    down.is_down = True
    monkeypatch.setattr("eventlogs.reductions.sweeps.cache_for", lambda cache: GuardedCache(down))

    with pytest.raises(Unreachable):
        sweep()


def test_without_a_cache_there_is_nothing_to_sweep(accounts, settings):
    settings.EVENTLOGS = {"CACHE": None}
    accounts.create(Opened("Ada"))

    assert sweep().refreshed == 0
