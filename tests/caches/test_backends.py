"""The choice of the cache, and the handling of one that cannot be reached."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import pytest
from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.locmem import LocMemCache

from eventlogs import LogManager
from eventlogs.caches import backends as ours
from eventlogs.caches.backends import (
    DjangoReductionCache,
    GuardedCache,
    NoReductionCache,
    RedisReductionCache,
    cache_for,
    is_safe,
)
from eventlogs.exceptions import Unreachable
from eventlogs.testing import MemoryStore, RecordingCache
from tests.accounts import Account, Deposited, Opened
from tests.processes import exit_of_fork

LOCAL = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}


class Mine(LocMemCache):
    """A project's own subclass of a cache of Django."""


def test_the_setting_names_the_cache(settings):
    settings.CACHES = {"default": LOCAL, "reductions": LOCAL}
    settings.EVENTLOGS = {"CACHE": "reductions"}

    found = cache_for().cache

    assert isinstance(found, DjangoReductionCache)
    assert found.alias == "reductions"


def test_none_switches_the_cache_off(settings):
    settings.EVENTLOGS = {"CACHE": None}

    assert isinstance(cache_for().cache, NoReductionCache)


def test_an_alias_or_a_cache_object_overrides_the_setting(settings):
    settings.CACHES = {"default": LOCAL, "reductions": LOCAL}
    mine = RecordingCache()

    chosen = cache_for("reductions").cache
    assert isinstance(chosen, DjangoReductionCache)
    assert chosen.alias == "reductions"
    assert cache_for(mine).cache is mine
    assert cache_for(mine) is cache_for(mine)


def test_an_unknown_alias_is_djangos_error():
    with pytest.raises(InvalidCacheBackendError):
        cache_for("nowhere")


@pytest.mark.parametrize(
    ("backend", "is_used"),
    [
        ({"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}, True),
        ({"BACKEND": f"{__name__}.Mine"}, True),
        ({"BACKEND": "django.core.cache.backends.dummy.DummyCache"}, True),
        ({"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "x"}, False),
        ({"BACKEND": "django.core.cache.backends.filebased.FileBasedCache"}, False),
    ],
)
def test_caches_that_pickle_are_not_used(settings, tmp_path, backend, is_used, caplog):
    settings.CACHES = {"default": {"LOCATION": str(tmp_path), **backend}}

    assert is_safe(caches["default"]) == is_used
    assert isinstance(cache_for().cache, NoReductionCache) == (
        not is_used or "Dummy" in backend["BACKEND"]
    )
    assert ("eventlogs.E009" in caplog.text) == (not is_used)


@pytest.mark.redis
@pytest.mark.parametrize("alias", ["redis", "redis of Django"])
def test_redis_is_used_by_its_raw_client(alias):
    assert isinstance(cache_for(alias).cache, RedisReductionCache)
    assert cache_for(alias).shared


@pytest.mark.redis
@pytest.mark.parametrize("client", ["ShardClient", "HerdClient"])
def test_clients_of_django_redis_without_a_raw_client_are_not_used(settings, client):
    redis = settings.CACHES["redis"]
    settings.CACHES = {
        "default": {
            **redis,
            "LOCATION": [redis["LOCATION"]] if client == "ShardClient" else redis["LOCATION"],
            "OPTIONS": {"CLIENT_CLASS": f"django_redis.client.{client}"},
        }
    }

    used = not isinstance(cache_for().cache, NoReductionCache)

    assert used == (client == "HerdClient")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.redis
@pytest.mark.parametrize("alias", ["redis", "redis of Django"])
def test_a_pickle_bomb_under_our_key_does_nothing(db, alias, tmp_path):
    accounts = LogManager(Account, cache=alias)
    state = accounts.create(Opened("Ada"), Deposited(5))
    fuse = tmp_path / "exploded"
    raw = cache_for(alias).cache
    key = accounts._reductions().key(state.log_id)
    raw.replace(key, pickle.dumps(Bomb(fuse)), timeout=60)

    reduction = accounts.reduce(state.log_id)

    assert reduction.aggregate.balance == 5
    assert not fuse.exists()
    # Check of the test itself: reading the value as Django does executes it.
    raw.replace("bomb", pickle.dumps(Bomb(fuse)), timeout=60)
    caches[alias].get("bomb")
    assert fuse.exists()


class Failing(RecordingCache):
    def get(self, key):
        raise OSError("no route to host")


class TestGuarded:
    def test_every_failure_is_raised_as_unreachable_with_its_cause(self):
        with pytest.raises(Unreachable) as caught:
            GuardedCache(Failing()).get("a")

        assert isinstance(caught.value.__cause__, OSError)

    def test_a_cache_that_failed_is_not_used_for_a_while(self, monkeypatch):
        cache = RecordingCache()
        careful = GuardedCache(cache)
        cache.is_down = True
        for _ in range(3):
            with pytest.raises(Unreachable):
                careful.get("a")
        assert len(cache.calls) == 1

        cache.is_down = False
        now = time.monotonic() + ours.PAUSE
        monkeypatch.setattr(time, "monotonic", lambda: now)

        assert careful.get("a") is None

    @pytest.mark.parametrize(
        "call",
        [
            lambda cache: cache.get("a"),
            lambda cache: cache.get_many(["a"]),
            lambda cache: cache.set("a", b"", replaces=None, timeout=1),
            lambda cache: cache.add("a", b"", timeout=1),
            lambda cache: cache.replace("a", b"", timeout=1),
            lambda cache: cache.delete("a"),
        ],
    )
    def test_every_method_raises_unreachable_if_the_cache_is_down(self, call):
        cache = RecordingCache()
        cache.is_down = True

        with pytest.raises(Unreachable):
            call(GuardedCache(cache))

    def test_a_value_that_is_not_bytes_raises_unreachable(self):
        class Decoding(RecordingCache):
            def get(self, key):
                return "text"

        with pytest.raises(Unreachable):
            GuardedCache(Decoding()).get("a")

    def test_add_fails_only_if_the_cache_answers_false(self):
        class Ignoring(RecordingCache):
            def add(self, key, value, *, timeout):
                return None

        assert GuardedCache(Ignoring()).add("a", b"", timeout=1)

    def test_the_log_message_does_not_quote_the_error(self, caplog):
        with pytest.raises(Unreachable):
            GuardedCache(Failing()).get("a")

        assert "OSError" in caplog.text
        assert "no route" not in caplog.text


def test_a_manager_reads_from_the_database_while_its_cache_is_down():
    cache = RecordingCache()
    accounts = LogManager(Account, store=MemoryStore(), cache=cache)
    state = accounts.create(Opened("Ada"), Deposited(5))
    cache.is_down = True

    assert accounts.reduce(state.log_id).aggregate.balance == 5


def test_the_empty_cache_stores_nothing():
    nothing = NoReductionCache()
    nothing.replace("a", b"1", timeout=1)
    nothing.delete("a")

    assert not nothing.set("a", b"1", timeout=1)
    assert nothing.add("a", b"1", timeout=1)
    assert nothing.get("a") is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_lock_of_its_parents_threads():
    cache = DjangoReductionCache("default")
    with DjangoReductionCache._lock:  # as a writing thread does
        assert exit_of_fork(lambda: cache.set("key", b"entry", timeout=60)) == 0
