"""The counters of the reduction cache, and the signal beside them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from eventlogs.caches.backends import cache_used, statistics
from eventlogs.caches.counters import ABSENT, BEHIND, DROPPED, ERRORS, MISSES, Counters, counters
from tests.accounts import Account, Parcel


def test_each_use_is_counted_by_its_reason():
    ours = Counters()

    ours.count("hit", aggregate=Account)
    ours.count("miss", ABSENT, aggregate=Account)
    ours.count("miss", BEHIND, aggregate=Account)
    ours.count("miss", BEHIND, aggregate=Parcel)
    ours.count("refresh", aggregate=Account)
    ours.count("error", DROPPED, aggregate=Account)

    counted = ours.statistics()
    assert counted["hits"] == counted["refreshes"] == 1
    assert {reason: n for reason, n in counted["misses"].items() if n} == {ABSENT: 1, BEHIND: 2}
    assert {reason: n for reason, n in counted["errors"].items() if n} == {DROPPED: 1}


def test_unused_counters_are_0():
    counted = Counters().statistics()

    assert counted == {
        "hits": 0,
        "misses": dict.fromkeys(MISSES, 0),
        "refreshes": 0,
        "errors": dict.fromkeys(ERRORS, 0),
    }


def test_statistics_are_those_of_the_process_and_can_be_reset():
    counters.count("hit", aggregate=Account)
    assert statistics()["hits"] >= 1

    counters.reset()

    assert statistics()["hits"] == 0


def test_counting_from_several_threads_loses_nothing():
    ours = Counters()

    def count_hits() -> None:
        for _ in range(1_000):
            ours.count("hit", aggregate=Account)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(count_hits)

    assert ours.statistics()["hits"] == 8_000


def test_a_signal_is_sent_for_each_use():
    seen = []

    def receive(sender, outcome, reason, **kwargs):
        seen.append((sender, outcome, reason))

    cache_used.connect(receive, sender=Account)
    try:
        counters.count("miss", ABSENT, aggregate=Account)
        counters.count("hit", aggregate=Parcel)
    finally:
        cache_used.disconnect(receive, sender=Account)

    assert seen == [(Account, "miss", ABSENT)]


def test_an_error_of_a_signal_receiver_is_logged_and_not_raised(caplog):
    def receive(**kwargs):
        raise RuntimeError

    cache_used.connect(receive)
    try:
        counters.count("hit", aggregate=Account)
    finally:
        cache_used.disconnect(receive)

    assert "Error calling" in caplog.text
