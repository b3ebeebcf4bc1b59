"""The caches of eventlogs, each held to the contract of caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from django.core.cache import caches

from eventlogs.caches.backends import (
    BaseReductionCache,
    DjangoReductionCache,
    RedisReductionCache,
)
from eventlogs.testing import RecordingCache
from eventlogs.testing.contracts.caches import ReductionCacheContract


class InThisProcess(ReductionCacheContract):
    @pytest.fixture
    def passing(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        """Set the clocks of this process forward."""

        def move(seconds: float) -> None:
            for name in ("time", "monotonic"):
                clock = getattr(time, name)
                monkeypatch.setattr(time, name, lambda clock=clock: clock() + seconds)

        return move


class TestRecordingCache(InThisProcess):
    @pytest.fixture
    def cache(self) -> BaseReductionCache:
        return RecordingCache()


class TestLocalMemory(InThisProcess):
    @pytest.fixture
    def cache(self) -> Iterator[BaseReductionCache]:
        yield DjangoReductionCache("default")
        caches["default"].clear()


@pytest.mark.redis
@pytest.mark.parametrize("alias", ["redis", "redis of Django"])
class TestRedis(ReductionCacheContract):
    @pytest.fixture
    def cache(self, alias: str) -> Iterator[BaseReductionCache]:
        cache = RedisReductionCache(alias)
        yield cache
        for key in ("a", "b", "flag", "mark"):
            cache.delete(key)

    def test_keys_have_the_prefix_of_the_alias(self, cache: BaseReductionCache, alias: str):
        cache.replace("a", b"1", timeout=60)

        assert isinstance(cache, RedisReductionCache)
        client, name = cache.client_for("a", write=False)
        assert name == caches[alias].make_key("a")
        assert client.get(name) == b"1"
