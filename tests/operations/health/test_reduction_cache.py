"""Findings about the cache of reductions: unreachable, read-only or full."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event as Flag
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
from django.core.cache import caches

from eventlogs import health
from eventlogs.caches.backends import RedisReductionCache
from eventlogs.operations.health import reduction_cache
from tests.operations.health.wrong import of, one
from tests.reliability.redises import MORTAL, MortalRedis

# The cache


@pytest.fixture
def mortal(settings: Any) -> Iterator[MortalRedis]:
    """A private Redis, in which reductions are cached."""
    with MortalRedis() as server:
        settings.CACHES = server.caches
        settings.EVENTLOGS = {"CACHE": MORTAL}
        yield server
        caches[MORTAL].client.get_client().connection_pool.disconnect()  # type: ignore[attr-defined]


@pytest.mark.redis
def test_a_cache_that_accepts_writes_has_no_finding(db, mortal):
    found = health()

    assert not of(found, "cache")
    assert found.figures["cache_used_bytes"] > 0


@pytest.mark.redis
def test_a_cache_that_is_full_is_named_with_the_action(db, mortal):
    with mortal.client() as client:
        for number in range(100):
            client.set(f"filling {number}", b"x" * 10_000, ex=600)
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 300_000)
        with pytest.raises(Exception, match="maxmemory"):
            client.set("more", b"x", ex=600)

        finding = one(health(), "cache")
        assert finding.must_act
        assert "is full, and takes no writes" in finding.message
        assert "answers stay right" in finding.message
        address = f"redis-cli -s {client.connection_pool.connection_kwargs['path']} "
        assert finding.command.startswith(address), "another Redis may be where it looks first"
        client.execute_command(*finding.command.removeprefix(address).split())

        finding = one(health(), "cache")
        assert not finding.must_act
        assert "evicts entries" in finding.message


@pytest.mark.redis
@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("redis://ada:secret@cache.example:7000/3", "-h cache.example -p 7000 "),
        ("rediss://:secret@cache.example/0", "-h cache.example -p 6379 --tls "),
        ("redis://", ""),
    ],
)
def test_the_command_names_the_right_redis_and_shows_no_password(settings, location, address):
    backend = "django.core.cache.backends.redis.RedisCache"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": location}}

    assert reduction_cache._address(RedisReductionCache("default")) == address


@pytest.mark.redis
def test_a_cache_that_will_be_full_soon_is_named_before(db, mortal):
    with mortal.client() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", int(used * 1.03) + 50_000)

    finding = one(health(), "cache")

    assert finding.must_act
    assert "nearly full" in finding.message


@pytest.mark.redis
def test_a_cache_that_is_down_is_named(db, mortal):
    mortal.stop()

    finding = one(health(), "cache")

    assert finding.must_act
    assert "cannot be reached" in finding.message


@pytest.mark.redis
def test_a_cache_that_hangs_does_not_block_the_health_check(db, mortal, settings, monkeypatch):
    monkeypatch.setattr(reduction_cache, "PATIENCE", 0.2)
    settings.CACHES = {**mortal.caches, MORTAL: {**mortal.caches[MORTAL], "OPTIONS": {}}}
    mortal.hang()
    try:
        found = health()
        again = health()
        waiting = [each for each in enumerate_threads() if each.name == "eventlogs-health"]
        assert len(waiting) == 1, "one thread waits, however often somebody looks"
    finally:
        mortal.wake()

    for each in (found, again):
        assert "did not answer" in next(f for f in of(each, "cache") if f.must_act).message
    for _ in range(100):
        if not reduction_cache._under_way:
            break
        Flag().wait(0.05)
    assert not reduction_cache._under_way


def test_a_cache_that_would_pickle_is_named(db, settings):
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": "/nowhere",
        }
    }

    finding = one(health(), "cache")

    assert finding.must_act
    assert "pickle" in finding.message


def test_without_a_cache_there_is_no_finding(db, settings):
    settings.EVENTLOGS = {"CACHE": None}

    assert not of(health(), "cache")


def test_an_unknown_alias_of_a_cache_is_named(db, settings):
    settings.EVENTLOGS = {"CACHE": "elsewhere"}

    assert one(health(), "cache").must_act
