"""Reducing with a cache: hits, misses, proofs, and one replay for many readers."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, Event
from typing import Any, ClassVar

import pytest
from django.db import transaction
from msgspec.structs import replace

from eventlogs import (
    Aggregate,
    CachingPolicy,
    LogLengthPolicy,
    LogManager,
    LogNotFound,
    NeverCache,
    UnknownEventType,
    event,
)
from eventlogs.caches.backends import statistics
from eventlogs.caches.counters import counters
from eventlogs.reductions.reader import LONG
from eventlogs.reductions.single_flight import replays
from eventlogs.reductions.worker import worker
from eventlogs.testing import MemoryStore, RecordingCache
from tests.accounts import Account, Deposited, Noted, Opened
from tests.walks import listed, walked

IMMEDIATE = "eventlogs.refreshers.ImmediateRefresher"


class CountingStore(MemoryStore):
    """Counts the events that are read."""

    def __init__(self):
        super().__init__()
        self.read = 0
        self.pages_from = []
        self.slow = 0.0

    def events(self, log_id, *, start, limit, reverse=False):
        found = super().events(log_id, start=start, limit=limit, reverse=reverse)
        time.sleep(self.slow)
        self.read += len(found)
        self.pages_from.append(start)
        return found


@pytest.fixture(autouse=True)
def _from_zero():
    counters.reset()
    yield
    assert worker.flush(5)


@pytest.fixture
def cache():
    return RecordingCache()


@pytest.fixture
def counting():
    return CountingStore()


@pytest.fixture
def accounts(counting, cache):
    return LogManager(Account, store=counting, cache=cache, refresher=IMMEDIATE)


@pytest.fixture
def state(accounts):
    return accounts.create(Opened("Ada"), *(Deposited(n) for n in range(1, 10)))


@dataclass
class Sharing(Aggregate, log_type="sharing", events=[Opened]):
    seen: object = None

    def apply(self, record):
        self.seen = ("a tuple",)


@dataclass
class Notes(Aggregate, log_type="notes", events=[Opened, Deposited, Noted]):
    owner: str = ""
    balance: int = 0
    notes: int = 0

    def apply(self, record):
        self.notes += 1


def counted():
    found = statistics()
    return (
        found["hits"],
        {reason: n for reason, n in found["misses"].items() if n},
        found["refreshes"],
        {reason: n for reason, n in found["errors"].items() if n},
    )


def entries(cache):
    return {key: value for key, (value, _) in cache._values.items() if "reduction" in key}


def test_the_first_reduce_is_a_miss_and_the_next_ones_are_hits(accounts, state):
    first = accounts.reduce(state.log_id)
    others = [accounts.reduce(state.log_id) for _ in range(100)]

    assert all(other == first for other in others)
    assert first.version == 10
    assert counted() == (100, {"absent": 1}, 1, {})


def test_a_hit_reads_only_the_event_that_proves_it(accounts, state, counting):
    accounts.reduce(state.log_id)
    counting.read = 0

    accounts.reduce(state.log_id)

    assert counting.read == 1
    assert counting.pages_from[-1] == 9


def test_only_newer_events_are_folded(accounts, state, counting):
    accounts.reduce(state.log_id)
    accounts.append(state, Deposited(100), Deposited(200))
    counting.read = 0

    reduction = accounts.reduce(state.log_id)

    assert counting.read == 3
    assert (reduction.version, reduction.aggregate.balance) == (12, 345)
    assert counted() == (0, {"absent": 1, "behind": 1}, 2, {})
    assert accounts.reduce(state.log_id) == reduction


SMALL = {  # modules that the walk asks, and that docs/caching.md does not list
    *("conf", "ids", "policies", "caches/counters", "events/registry", "stores/retries"),
    *("utils/loaded_modules", "managers", "testing/memory", "testing/recording"),
    "events/used_keys",
}


def test_the_walk_of_a_cached_reduce_is_the_one_in_the_documentation(accounts, state):
    accounts.reduce(state.log_id)
    accounts.append(state, Deposited(100))
    reader = accounts._reductions()
    store = reader.store

    files = walked(lambda: reader.read(state.log_id, store))

    documented = listed("caching.md", "in this order:")
    assert len(documented) == len(set(documented)) <= 9
    of_the_walk = {"logs.py", *files} - {f"{each}.py" for each in SMALL}
    assert of_the_walk == set(documented) - {"stores/postgresql.py"}  # this store is in memory


def test_changes_of_a_caller_to_the_aggregate_are_not_shared(accounts, state):
    accounts.reduce(state.log_id).aggregate.balance = -1
    accounts.reduce(state.log_id).aggregate.balance = -2

    assert accounts.reduce(state.log_id).aggregate.balance == 45


def test_fresh_neither_reads_nor_writes_the_cache(accounts, state, cache):
    accounts.reduce(state.log_id)
    before, calls = dict(entries(cache)), len(cache.calls)

    reduction = accounts.reduce(state.log_id, fresh=True)

    assert reduction.aggregate == accounts.reduce(state.log_id).aggregate
    assert len(cache.calls) == calls + 1  # of the second reduce
    assert entries(cache) == before


def test_a_version_or_a_moment_is_not_cached(accounts, state, cache):
    accounts.reduce(state.log_id, version=3)
    at = accounts.load(state.log_id)[4].recorded_at
    accounts.reduce(state.log_id, at=at)

    assert cache.calls == []


def test_reducing_a_log_before_its_creation_caches_nothing(accounts, cache):
    log_id = accounts.new_id()
    with pytest.raises(LogNotFound):
        accounts.reduce(log_id)

    accounts.create(Opened("Ada"), log_id=log_id)

    assert accounts.reduce(log_id).version == 1
    assert accounts.reduce(log_id).version == 1


def test_execute_reads_the_cache_too(accounts, state, counting):
    accounts.reduce(state.log_id)
    counting.read = 0

    accounts.execute(state.log_id, lambda account: Deposited(account.balance))

    assert counting.read == 1
    assert accounts.reduce(state.log_id).aggregate.balance == 90


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda raw: b"garbage", "bad_signature"),
        (lambda raw: raw[:-3], "bad_signature"),
        (lambda raw: raw[:3] + b"\x7f\xff\xff\xff" + raw[7:], "bad_signature"),
        (lambda raw: b"", "bad_signature"),
    ],
)
def test_a_corrupt_entry_is_a_miss_and_is_replaced(accounts, state, cache, spoil, reason):
    reduction = accounts.reduce(state.log_id)
    [(key, raw)] = entries(cache).items()
    cache.replace(key, spoil(raw), timeout=60)

    assert accounts.reduce(state.log_id).aggregate == reduction.aggregate

    assert counted() == (0, {"absent": 1, reason: 1}, 2, {})
    assert accounts.reduce(state.log_id).aggregate == reduction.aggregate
    assert statistics()["hits"] == 1


def test_another_logs_entry_is_a_miss_and_is_replaced(accounts, state, cache):
    other = accounts.create(Opened("Eve"), Deposited(1_000_000))
    accounts.reduce(other.log_id)
    [raw] = entries(cache).values()
    cache.replace(accounts._reductions().key(state.log_id), raw, timeout=60)

    assert accounts.reduce(state.log_id).aggregate.owner == "Ada"

    assert statistics()["misses"]["foreign_log"] == 1
    assert accounts.reduce(state.log_id).aggregate.owner == "Ada"
    assert statistics()["hits"] == 1


def test_an_entry_of_a_lost_history_is_a_miss_and_is_replaced(cache):
    """Also where the log has as many events again, at the same positions."""
    lost = LogManager(Account, store=CountingStore(), cache=cache, refresher=IMMEDIATE)
    state = lost.create(Opened("Ada"), Deposited(5), Deposited(6))
    assert lost.reduce(state.log_id).aggregate.balance == 11

    restored = LogManager(Account, store=CountingStore(), cache=cache, refresher=IMMEDIATE)
    for longer in ((Deposited(70),), (Deposited(80),), (Deposited(90),)):
        if restored.exists(state.log_id):
            restored.append(state.log_id, *longer, expected_version=restored.version(state.log_id))
        else:
            restored.create(Opened("Ada"), log_id=state.log_id)
        expected = restored.reduce(state.log_id, fresh=True).aggregate
        assert restored.reduce(state.log_id).aggregate == expected
        assert restored.reduce(state.log_id).aggregate == expected

    assert statistics()["misses"]["foreign_history"] == 1
    assert restored.reduce(state.log_id).aggregate.balance == 170


def test_an_erased_log_is_not_found_even_if_it_is_cached(accounts, state, counting):
    accounts.reduce(state.log_id)
    counting._logs.clear()

    with pytest.raises(LogNotFound):
        accounts.reduce(state.log_id)


def test_newer_events_that_cannot_be_decoded_are_an_error_with_and_without_a_cache(
    accounts, state, counting
):
    accounts.reduce(state.log_id)
    log = counting._logs[state.log_id.uuid]
    row = log.events[-1]
    log.events.append(replace(row, index=10, position=11, type="account.unheard_of"))

    for fresh in (False, True):
        with pytest.raises(UnknownEventType):
            accounts.reduce(state.log_id, fresh=fresh)


@event("retired.long_ago")
@dataclass(frozen=True, slots=True)
class Retired:
    """An event in a module that the aggregate's modules do not import."""


def test_a_reduction_with_an_unknown_event_type_is_not_cached(
    accounts, state, counting, cache, caplog
):
    accounts.reduce(state.log_id)
    before = dict(entries(cache))
    log = counting._logs[state.log_id.uuid]
    log.events.append(
        replace(log.events[-1], index=10, position=11, type="retired.long_ago", data="{}")
    )

    for _ in range(3):
        assert accounts.reduce(state.log_id).version == 11

    assert entries(cache) == before
    assert statistics()["errors"]["unstorable"] == 3
    assert "do not import" in caplog.text
    cache.clear()
    assert accounts.reduce(state.log_id).version == 11
    assert entries(cache) == {}


def test_a_policy_decides_which_reductions_are_cached(counting, cache):
    policy = LogLengthPolicy.at_least(3)
    accounts = LogManager(
        Account, store=counting, cache=cache, caching_policy=policy, refresher=IMMEDIATE
    )
    state = accounts.create(Opened("Ada"), Deposited(1))

    accounts.reduce(state.log_id)
    assert entries(cache) == {}

    accounts.append(state, Deposited(1))
    accounts.reduce(state.log_id)
    assert len(entries(cache)) == 1


def test_with_never_cache_the_cache_is_not_used(counting, cache):
    accounts = LogManager(Account, store=counting, cache=cache, caching_policy=NeverCache())
    state = accounts.create(Opened("Ada"))

    assert accounts.reduce(state.log_id).version == 1
    assert cache.calls == []
    assert counted() == (0, {}, 0, {})


def test_a_policy_that_raises_is_counted_and_logged(counting, cache, caplog):
    class Broken(CachingPolicy):
        def should_cache(self, reduction):
            raise RuntimeError(f"secret {reduction.aggregate.owner}")

    accounts = LogManager(
        Account, store=counting, cache=cache, caching_policy=Broken(), refresher=IMMEDIATE
    )
    state = accounts.create(Opened("Ada"))

    assert accounts.reduce(state.log_id).version == 1
    assert statistics()["errors"]["failed"] >= 1
    assert "Broken" in caplog.text or "policy" in caplog.text
    assert "Ada" not in caplog.text


def test_an_aggregate_that_cannot_be_encoded_is_not_cached_and_is_logged_once(
    counting, cache, caplog
):
    logs = LogManager(Sharing, store=counting, cache=cache, refresher=IMMEDIATE)
    state = logs.create(Opened("Ada"))

    for _ in range(3):
        assert logs.reduce(state.log_id).aggregate.seen == ("a tuple",)

    assert entries(cache) == {}
    assert statistics()["errors"]["unstorable"] == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "$.seen" in caplog.text


def test_an_aggregate_that_is_no_dataclass_is_replayed(counting, cache, scratch_registry):
    class Plain(Aggregate, log_type="plain", events=[Opened]):
        def __init__(self):
            self.n = 0

        def apply(self, record):
            self.n += 1

    logs = LogManager(Plain, store=counting, cache=cache)
    state = logs.create(Opened("Ada"))

    assert logs.reduce(state.log_id).aggregate.n == 1
    assert cache.calls == []


def test_other_code_has_its_own_entries(counting, cache, monkeypatch):
    monkeypatch.setattr(Notes, "log_type", "account")
    accounts = LogManager(Account, store=counting, cache=cache, refresher=IMMEDIATE)
    notes = LogManager(Notes, store=counting, cache=cache, refresher=IMMEDIATE)
    state = accounts.create(Opened("Ada"), Deposited(5))

    for _ in range(2):
        assert accounts.reduce(state.log_id).aggregate == Account("Ada", 5, 0)
        assert notes.reduce(state.log_id).aggregate == Notes("", 0, 2)

    assert len(entries(cache)) == 2


def test_an_older_entry_is_folded_up_to_date(accounts, state, cache):
    accounts.reduce(state.log_id)
    [(key, old)] = entries(cache).items()
    accounts.append(state, Deposited(1_000))
    accounts.reduce(state.log_id)
    cache.replace(key, old, timeout=60)

    assert accounts.reduce(state.log_id).aggregate.balance == 1_045


class Together:
    """Many readers of one log, all with a cache miss."""

    def __init__(self, accounts, log_id, readers):
        self.accounts, self.log_id, self.readers = accounts, log_id, readers

    def run(self):
        barrier = Barrier(self.readers)

        def read():
            barrier.wait(10)
            return self.accounts.reduce(self.log_id)

        with ThreadPoolExecutor(self.readers) as pool:
            futures = [pool.submit(read) for _ in range(self.readers)]
            return [future.result(timeout=30) for future in futures]


@pytest.mark.parametrize("refresher", [IMMEDIATE, "eventlogs.refreshers.ThreadRefresher"])
@pytest.mark.parametrize("length", [20, LONG + 1_000])
def test_one_of_several_concurrent_misses_replays(counting, cache, refresher, length):
    accounts = LogManager(Account, store=counting, cache=cache, refresher=refresher)
    state = accounts.create(Opened("Ada"), *(Deposited(1) for _ in range(length - 1)))
    counting.slow = 0.02

    reductions = Together(accounts, state.log_id, readers=24).run()

    assert {reduction.aggregate.balance for reduction in reductions} == {length - 1}
    assert len({id(reduction.aggregate) for reduction in reductions}) == 24
    assert counting.pages_from.count(0) == 1


def test_readers_do_not_wait_for_an_entry_that_will_not_be_cached(counting, cache):
    accounts = LogManager(
        Account, store=counting, cache=cache, caching_policy=LogLengthPolicy.until(3)
    )
    state = accounts.create(Opened("Ada"), *(Deposited(1) for _ in range(9)))
    accounts.reduce(state.log_id)
    counting.slow = 0.2

    started = time.monotonic()
    Together(accounts, state.log_id, readers=16).run()

    assert time.monotonic() - started < 16 * 0.2


def test_after_a_replay_that_fails_the_other_readers_replay(cache):
    class Fragile(CountingStore):
        def events(self, log_id, *, start, limit, reverse=False):
            if len(self.pages_from) == 0:
                self.pages_from.append(start)
                time.sleep(0.2)
                raise ConnectionError("the first reader's connection")
            return super().events(log_id, start=start, limit=limit, reverse=reverse)

    store = Fragile()
    accounts = LogManager(Account, store=store, cache=cache, refresher=IMMEDIATE)
    state = accounts.create(Opened("Ada"))

    def read():
        try:
            return accounts.reduce(state.log_id).version
        except ConnectionError:
            return "failed"

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: read(), range(8)))

    assert sorted(map(str, answers)) == ["1"] * 7 + ["failed"]


def test_one_of_several_processes_replays_a_long_log(counting, cache):
    """The lock in the cache is another process': wait for its entry."""
    accounts = LogManager(Account, store=counting, cache=cache, refresher=IMMEDIATE)
    state = accounts.create(Opened("Ada"), *(Deposited(1) for _ in range(LONG)))
    accounts.reduce(state.log_id)
    [(key, entry)] = entries(cache).items()
    cache.clear()
    cache.add(f"{key}.lock", b"another process", timeout=60)
    counting.pages_from.clear()
    waiting = Event()

    def other_process():
        assert waiting.wait(10)
        time.sleep(0.1)
        cache.set(key, entry, timeout=60)
        cache.delete(f"{key}.lock")

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(other_process)
        waiting.set()
        assert accounts.reduce(state.log_id).version == LONG + 1
        other.result(10)

    # The first page was read before the log was known to be long; nothing was folded.
    assert counting.pages_from == [0, LONG]
    assert f"{key}.lock" not in cache._values


def test_a_lock_whose_holder_cached_nothing_is_not_waited_for(counting, cache):
    accounts = LogManager(Account, store=counting, cache=cache, refresher=IMMEDIATE)
    state = accounts.create(Opened("Ada"), *(Deposited(1) for _ in range(LONG)))
    key = accounts._reductions().key(state.log_id)
    cache.add(f"{key}.lock", b"declined", timeout=60)

    assert accounts.reduce(state.log_id).version == LONG + 1


def test_a_lock_is_released_when_the_entry_is_written_or_will_not_be(counting, cache):
    accounts = LogManager(Account, store=counting, cache=cache, refresher=IMMEDIATE)
    state = accounts.create(Opened("Ada"), *(Deposited(1) for _ in range(LONG)))
    key = f"{accounts._reductions().key(state.log_id)}.lock"

    accounts.reduce(state.log_id)
    assert cache.get(key) is None

    cache.clear()
    short = LogManager(
        Account,
        store=counting,
        cache=cache,
        refresher=IMMEDIATE,
        caching_policy=LogLengthPolicy.until(3),
    )
    short.reduce(state.log_id)
    assert cache.get(key) == b"declined"


@pytest.fixture
def locked(counting, cache):
    """A manager, and a long log that another process replays without end."""
    accounts = LogManager(Account, store=counting, cache=cache, refresher=IMMEDIATE)
    state = accounts.create(Opened("Ada"), *(Deposited(1) for _ in range(LONG)))
    cache.add(f"{accounts._reductions().key(state.log_id)}.lock", b"another process", timeout=600)
    return accounts, state.log_id


def test_a_reader_inside_of_a_transaction_does_not_wait_long_for_another_process(
    locked, transactional_db, elsewhere
):
    """Not for another process, and also where the transaction is in another database."""
    accounts, log_id = locked

    def read():
        with transaction.atomic():
            return accounts.reduce(log_id).version

    assert elsewhere(read) == LONG + 1  # the read gives up after 20 s


def test_a_reader_inside_of_a_transaction_does_not_wait_long_for_another_thread(
    locked, transactional_db, elsewhere
):
    accounts, log_id = locked
    key = accounts._reductions().key(log_id)
    replay, _ = replays.join(key)  # the replay exists while it is referred to

    def read():
        with transaction.atomic():
            return accounts.reduce(log_id).version

    assert elsewhere(read) == LONG + 1
    assert not replay.done.is_set()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_reader_does_not_wait_long_before_a_deadline(locked):
    """A projection's handler that waited would be interrupted, and count as failed."""
    accounts, log_id = locked

    def interrupt(*args):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        assert accounts.reduce(log_id).version == LONG + 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_coroutines_do_not_wait_long_in_the_thread_that_they_share(locked, elsewhere):
    accounts, log_id = locked

    assert elsewhere(lambda: asyncio.run(accounts.areduce(log_id))).version == LONG + 1


def test_a_refresh_does_not_wait_long_for_another_process(locked, counting, elsewhere):
    """Jobs queued behind it would wait as well."""
    accounts, log_id = locked

    assert elsewhere(lambda: accounts._reductions().refresh(log_id))


class Asking(CachingPolicy):
    """A policy that reduces a log, or calls ``ask``, before it decides."""

    def __init__(self):
        self.asked = 0
        self.ask = lambda reduction: None

    def should_cache(self, reduction):
        self.asked += 1
        self.ask(reduction)
        return True


@pytest.fixture
def asking(counting, cache):
    policy = Asking()
    accounts = LogManager(
        Account, store=counting, cache=cache, caching_policy=policy, refresher=IMMEDIATE
    )
    return policy, accounts


def test_a_policy_that_reduces_the_same_log_does_not_wait_for_itself(asking, elsewhere, cache):
    policy, accounts = asking
    state = accounts.create(Opened("Ada"), Deposited(1))
    policy.ask = lambda reduction: accounts.reduce(reduction.log_id)

    assert elsewhere(lambda: accounts.reduce(state.log_id)).version == 2
    state = accounts.append(state, Deposited(2))
    assert elsewhere(lambda: accounts.reduce(state.log_id)).aggregate.balance == 3

    assert policy.asked == 2
    assert len(entries(cache)) == 1
    assert accounts._reductions().versions([state.log_id]) == {state.log_id: 3}


@dataclass
class Summing(Aggregate, log_type="summing", events=[Opened]):
    """An aggregate whose apply reduces another log."""

    n: int = 0
    other: ClassVar[Any] = None

    def apply(self, record):
        self.n += self.other().version


def test_a_log_that_is_reduced_inside_of_apply_is_cached(counting, cache, monkeypatch):
    parts = {"store": counting, "cache": cache, "refresher": IMMEDIATE}
    accounts, sums = LogManager(Account, **parts), LogManager(Summing, **parts)
    state, total = accounts.create(Opened("Ada"), Deposited(1)), sums.create(Opened("Eve"))
    monkeypatch.setattr(Summing, "other", staticmethod(lambda: accounts.reduce(state.log_id)))

    assert sums.reduce(total.log_id).aggregate.n == 2

    assert accounts._reductions().versions([state.log_id]) == {state.log_id: 2}


def test_a_refresh_that_a_policy_causes_marks_nothing_as_declined(asking):
    policy, accounts = asking
    state, other = accounts.create(Opened("Ada")), accounts.create(Opened("Eve"))
    reader = accounts._reductions()
    policy.ask = lambda reduction: reader.refresh(other.log_id)

    accounts.reduce(state.log_id)

    assert reader.declined({other.log_id: 1}) == set()


def test_a_reader_that_waited_for_a_failed_replay_replaces_the_corrupt_entry(counting, cache):
    accounts = LogManager(Account, store=counting, cache=cache, refresher=IMMEDIATE)
    state = accounts.create(Opened("Ada"))
    reader = accounts._reductions()
    key = reader.key(state.log_id)
    accounts.reduce(state.log_id)
    good = cache.get(key)
    assert good is not None
    cache.replace(key, good[:6] + b"\x09" + good[7:], timeout=60)  # a higher version, and corrupt
    replay, _ = replays.join(key)
    replay.done.set()  # its leader failed

    assert accounts.reduce(state.log_id).version == 1

    assert reader.versions([state.log_id]) == {state.log_id: 1}


def test_two_policies_that_reduce_each_others_logs_do_not_wait_for_each_other(asking):
    policy, accounts = asking
    logs = [accounts.create(Opened(owner)).log_id for owner in ("Ada", "Eve")]
    others = dict(zip(logs, reversed(logs), strict=True))
    both = Barrier(2)
    local = threading.local()

    def ask(reduction):
        if not getattr(local, "is_asking", False):
            local.is_asking = True
            both.wait(10)  # both replays are under way
            accounts.reduce(others[reduction.log_id])

    policy.ask = ask
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(accounts.reduce, log_id) for log_id in logs]
        assert [each.result(20).aggregate.owner for each in answers] == ["Ada", "Eve"]


@dataclass
class Exiting(Aggregate, log_type="exiting", events=[Opened, Deposited]):
    n: int = 0

    def apply(self, record):
        if record.type == "account.deposited":
            raise SystemExit(3)
        self.n += 1


def test_system_exit_in_apply_ends_no_append_and_no_refresh(cache):
    logs = LogManager(
        Exiting, store=MemoryStore(), cache=cache, refresher=IMMEDIATE, refresh_on_append=True
    )
    state = logs.create(Opened("Ada"))

    assert logs.append(state, Deposited(1)).version == 2

    assert statistics()["errors"]["failed"] == 1
    with pytest.raises(SystemExit):
        logs.reduce(state.log_id)


def test_system_exit_in_a_policy_ends_no_reduction(asking):
    policy, accounts = asking
    state = accounts.create(Opened("Ada"))

    def leave(reduction):
        raise SystemExit

    policy.ask = leave

    assert accounts.reduce(state.log_id).version == 1
    assert statistics()["errors"]["failed"] >= 1


def test_refresh_brings_an_entry_up_to_date(accounts, state, counting):
    reader = accounts._reductions()

    assert reader.refresh(state.log_id)
    assert not reader.refresh(state.log_id)
    accounts.append(state, Deposited(1))
    assert reader.refresh(state.log_id)

    assert reader.versions([state.log_id, accounts.new_id()]) == {state.log_id: 11}
    accounts.reduce(state.log_id)
    assert statistics()["hits"] == 1


def test_refresh_of_an_erased_log_removes_its_entry(accounts, state, counting, cache):
    reader = accounts._reductions()
    reader.refresh(state.log_id)
    counting._logs.clear()

    assert reader.refresh(state.log_id)
    assert entries(cache) == {}
    assert not reader.refresh(state.log_id)


def test_corrupt_entries_have_no_version(accounts, state, cache):
    accounts.reduce(state.log_id)
    [key] = entries(cache)
    cache.replace(key, b"garbage", timeout=60)

    assert accounts._reductions().versions([state.log_id]) == {}
