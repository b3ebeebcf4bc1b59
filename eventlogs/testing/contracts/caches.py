"""The contract of reduction caches, which keep bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventlogs.caches.backends import BaseReductionCache
from eventlogs.caches.entries import MAGIC, SIGNATURE_BYTES, version_in


def entry(version: int, text: bytes = b"") -> bytes:
    """Return bytes with the header of an entry of this version."""
    return MAGIC + version.to_bytes(4, "big") + text + b"s" * SIGNATURE_BYTES


class ReductionCacheContract:
    """
    Derive from it, and define the fixture ``cache``, which is empty for each test.

    ``passing`` is a function that lets seconds pass; override it if the clock can be set.
    """

    @pytest.fixture
    def cache(self) -> BaseReductionCache:
        raise NotImplementedError

    @pytest.fixture
    def passing(self) -> Callable[[float], None]:
        return time.sleep

    def test_a_missing_key_is_none(self, cache: BaseReductionCache) -> None:
        assert cache.get("a") is None

    @pytest.mark.parametrize("value", [b"", b"\x00\xff\n'\"", entry(3, b"x" * 100_000)])
    def test_bytes_come_back_as_they_are(self, cache: BaseReductionCache, value: bytes) -> None:
        assert cache.set("a", value, timeout=60)

        assert cache.get("a") == value
        assert type(cache.get("a")) is bytes

    def test_forget_deletes_all_keys_that_contain_a_text(self, cache: BaseReductionCache) -> None:
        names = ["eventlogs.reduction.a.1", "eventlogs.reduction.a.1@1000"]
        for key in [*names, "eventlogs.reduction.b.1"]:
            cache.set(key, entry(1), timeout=60)

        found = cache.forget("eventlogs.reduction.a.")

        if found is None:  # the cache cannot search for keys
            assert cache.get(names[0]) is not None
            return
        assert found == 2
        assert dict(cache.get_many(names)) == {}
        assert cache.get("eventlogs.reduction.b.1") == entry(1)
        assert cache.forget("eventlogs.reduction.a.") == 0

    def test_get_many_finds_several_keys_at_once(self, cache: BaseReductionCache) -> None:
        cache.set("a", entry(1), timeout=60)
        cache.set("b", entry(2), timeout=None)

        assert dict(cache.get_many(["a", "b", "c"])) == {"a": entry(1), "b": entry(2)}
        assert dict(cache.get_many([])) == {}

    @pytest.mark.parametrize("there", [1, 255, 256, 65_535, 2**24, 2**31 - 2])
    def test_a_newer_entry_replaces_an_older_one(
        self, cache: BaseReductionCache, there: int
    ) -> None:
        cache.set("a", entry(there), timeout=60)

        assert cache.set("a", entry(there + 1), timeout=60)
        assert version_in(cache.get("a") or b"") == there + 1

    @pytest.mark.parametrize("there", [2, 256, 65_536, 2**24 + 1, 2**31 - 1])
    def test_an_older_or_equal_entry_is_not_stored(
        self, cache: BaseReductionCache, there: int
    ) -> None:
        cache.set("a", entry(there, b"first"), timeout=60)

        assert not cache.set("a", entry(there - 1), timeout=60)
        assert not cache.set("a", entry(there, b"second"), timeout=60)
        assert cache.get("a") == entry(there, b"first")

    def test_an_entry_that_was_found_wrong_is_replaced_by_any_version(
        self, cache: BaseReductionCache
    ) -> None:
        wrong = entry(9, b"wrong")
        cache.set("a", wrong, timeout=60)

        assert not cache.set("a", entry(3), timeout=60, replaces=entry(9, b"another"))
        assert cache.set("a", entry(3), timeout=60, replaces=wrong)
        assert cache.get("a") == entry(3)

    @pytest.mark.parametrize("garbage", [b"", b"E", b"EL1", b"EL1\xff\xff\xff", b"garbage" * 9])
    def test_garbage_is_replaced_by_an_entry(
        self, cache: BaseReductionCache, garbage: bytes
    ) -> None:
        cache.replace("a", garbage, timeout=60)

        assert cache.set("a", entry(1), timeout=60)
        assert cache.get("a") == entry(1)

    def test_an_entry_expires(
        self, cache: BaseReductionCache, passing: Callable[[float], None]
    ) -> None:
        cache.set("a", entry(1), timeout=0.2)
        cache.set("b", entry(1), timeout=None)
        passing(1.3)

        assert cache.get("a") is None
        assert cache.get("b") == entry(1)

    def test_one_of_several_concurrent_adds_succeeds(self, cache: BaseReductionCache) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: cache.add("flag", b"%d" % n, timeout=60), range(32)))

        assert answers.count(True) == 1
        assert cache.get("flag") == b"%d" % answers.index(True)

    def test_a_deleted_flag_can_be_added_again(self, cache: BaseReductionCache) -> None:
        cache.add("flag", b"1", timeout=60)
        cache.delete("flag")
        cache.delete("flag")

        assert cache.add("flag", b"2", timeout=60)

    def test_a_flag_expires(
        self, cache: BaseReductionCache, passing: Callable[[float], None]
    ) -> None:
        cache.add("flag", b"1", timeout=0.2)
        passing(1.3)

        assert cache.add("flag", b"2", timeout=60)

    def test_replace_overwrites_a_value(self, cache: BaseReductionCache) -> None:
        cache.replace("mark", b"1", timeout=60)
        cache.replace("mark", b"2", timeout=60)

        assert cache.get("mark") == b"2"

    def test_the_newest_of_several_concurrent_writes_stays(self, cache: BaseReductionCache) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: cache.set("a", entry(n), timeout=60), range(1, 200)))

        assert version_in(cache.get("a") or b"") == 199
