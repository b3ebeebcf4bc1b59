"""
Cache backends for reductions: byte strings by key, in a Django cache or one of your own.

Nothing that a cache returns is trusted. ``eventlogs.caches.entries`` signs an entry before it is
written, and checks it after it was read; the log proves it. A cache that cannot be reached is a
miss for a reader, not an error.

Bytes go to Redis by its raw client, past the serializer of the Django cache. django-redis and
Django itself would read them with ``pickle``, which runs any code that somebody has put there
(https://docs.python.org/3/library/pickle.html).
"""

from __future__ import annotations

import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from threading import Lock
from typing import Any, Final

from django.core.cache import BaseCache, caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache
from django.core.signals import setting_changed

from eventlogs import conf
from eventlogs.caches.counters import cache_used, counters
from eventlogs.caches.entries import version_in
from eventlogs.exceptions import Unreachable
from eventlogs.ids import LogId

__all__ = [
    "BaseReductionCache",
    "DjangoReductionCache",
    "NoReductionCache",
    "RedisReductionCache",
    "cache_for",
    "cache_used",
    "forget",
    "statistics",
]

logger = logging.getLogger("eventlogs.caches")

ENTRY: Final = "eventlogs.reduction."  # with which the keys of entries begin; the log id follows
PAUSE: Final = 1.0  # seconds for which a cache that failed is not called

# Keep the newer of two entries. The version is in bytes 4 to 7 (see entries.py). It is big-endian,
# so comparing the bytes from the first on compares the numbers. A value that is not an entry of
# ours (a list, say: therefore pcall) is replaced by any entry, and so is the entry that the caller
# found to be wrong.
# https://redis.io/docs/latest/develop/programmability/eval-intro/ (a script runs alone)
SET_IF_NEWER: Final = """
local there = redis.pcall('GET', KEYS[1])
local is_entry = type(there) == 'string' and #there > 38 and string.sub(there, 1, 3) == 'EL1'
if is_entry and there ~= ARGV[2] then
    for at = 4, 7 do
        local old, new = string.byte(there, at), string.byte(ARGV[1], at)
        if old > new then return 0 end
        if old < new then break end
        if at == 7 then return 0 end
    end
end
if ARGV[3] == '' then
    redis.call('SET', KEYS[1], ARGV[1])
else
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
end
return 1
"""


def statistics() -> dict[str, Any]:
    """
    Return the counters of the reduction caches in this process, since it started.

    ``hits`` counts reductions that were cached, with nothing newer to fold; ``misses`` counts
    the others by reason: absent, behind (newer events were folded on top), foreign_fingerprint,
    foreign_log, foreign_history, bad_signature, undecodable, unreachable. ``refreshes`` are
    entries written. ``errors`` counts failures by reason (no answer was wrong):
    unwritable, unstorable, dropped, unsent, failed.
    """
    return counters.statistics()


class BaseReductionCache(ABC):
    """
    A cache of reductions: the interface for your own.

    Keys are up to 200 characters of ASCII without spaces, values are bytes. It may lose any
    value at any time, and what it returns is checked. Any method may raise any exception: the
    cache then counts as unreachable. It must pass the contract suite in
    ``eventlogs.testing.contracts``.
    """

    shared = True
    """Whether other processes see what is written here."""

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return the value of ``key``, or None."""

    def get_many(self, keys: Iterable[str]) -> Mapping[str, bytes]:
        """Return the values of ``keys``, without those that are not there."""
        found = {key: self.get(key) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    @abstractmethod
    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        """
        Write an entry, unless one of the same or a higher version is there.

        ``eventlogs.caches.entries.version_in`` returns the version in an entry. ``replaces``
        is an entry that was found to be wrong: it is replaced whatever version it has.
        ``timeout`` is in seconds, None for no limit. Return whether the entry was written.
        """

    @abstractmethod
    def add(self, key: str, value: bytes, *, timeout: float) -> bool:
        """
        Write ``value`` (a flag) for ``timeout`` seconds, unless ``key`` has a value.

        Return False only if it has one. Of several callers at once, exactly one gets True.
        """

    @abstractmethod
    def replace(self, key: str, value: bytes, *, timeout: float) -> None:
        """Write ``value`` (a flag, or a mark) for ``timeout`` seconds, whatever is there."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete the value of ``key``, if it has one."""

    def forget(self, part: str) -> int | None:
        """
        Delete all values whose keys contain ``part``, e.g. a log's id; return their number.

        Return None if the cache cannot search keys: its entries stay until they expire.
        """
        return None

    def forget_many(self, parts: Collection[str]) -> int:
        """Do the same for several parts; a cache that can do it in one search overrides this."""
        return sum(self.forget(part) or 0 for part in parts)

    def count(self, parts: Collection[str]) -> int:
        """Return the number of values whose keys contain one of ``parts``; 0 where unknown."""
        return 0


class NoReductionCache(BaseReductionCache):
    """A cache that stores nothing: for ``EVENTLOGS["CACHE"] = None``."""

    shared = False

    def get(self, key: str) -> bytes | None:
        return None

    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        return False

    def add(self, key: str, value: bytes, *, timeout: float) -> bool:
        return True

    def replace(self, key: str, value: bytes, *, timeout: float) -> None:
        return None

    def delete(self, key: str) -> None:
        return None

    def forget(self, part: str) -> int | None:
        return 0


class DjangoReductionCache(BaseReductionCache):
    """
    Entries in a Django cache, by its ordinary methods: for the local memory of one process.

    A lock makes the comparison and the write one step: only threads of this process write here.
    """

    shared = False
    _lock = Lock()

    def __init__(self, alias: str) -> None:
        self.alias = alias

    @classmethod
    def unlock(cls) -> None:
        """Make a new lock: after a fork, the thread that holds the old one does not exist."""
        cls._lock = Lock()

    @property
    def _cache(self) -> BaseCache:
        return caches[self.alias]  # one for each thread

    def get(self, key: str) -> bytes | None:
        found = self._cache.get(key)
        return found if isinstance(found, bytes) else None

    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        with self._lock:
            there = self.get(key)
            if there is not None and there != replaces and version_in(there) >= version_in(entry):
                return False
            self._cache.set(key, entry, timeout)
            return True

    def add(self, key: str, value: bytes, *, timeout: float) -> bool:
        return self._cache.add(key, value, timeout) is not False

    def replace(self, key: str, value: bytes, *, timeout: float) -> None:
        self._cache.set(key, value, timeout)

    def delete(self, key: str) -> None:
        self._cache.delete(key)

    def forget(self, part: str) -> int | None:
        names = self._names()
        if names is None:
            return None
        with self._lock:
            wanted = [key for key in names if part in key]
            for key in wanted:
                self._cache.delete(key)
        return len(wanted)

    def count(self, parts: Collection[str]) -> int:
        return sum(any(part in key for part in parts) for key in self._names() or ())

    def _names(self) -> list[str] | None:
        names = getattr(self._cache, "_cache", None)  # LocMemCache has no method for this
        if names is None:
            return None
        # A name is "prefix:version:key".
        return [name.partition(":")[2].partition(":")[2] for name in list(names)]


class RedisReductionCache(BaseReductionCache):
    """Entries in Redis, through the raw client of django-redis or of Django's own RedisCache."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def client_for(self, key: str, *, write: bool) -> tuple[Any, str]:
        """Return the client that has a key, and the key as it is stored."""
        cache: Any = caches[self.alias]
        if isinstance(cache, RedisCache):
            return cache._cache.get_client(key, write=write), cache.make_key(key)
        return cache.client.get_client(write=write), str(cache.client.make_key(key))

    def get(self, key: str) -> bytes | None:
        client, name = self.client_for(key, write=False)
        # Not GET, which is an error where somebody has put anything but a string.
        found: bytes | None = client.mget([name])[0]
        return found

    def get_many(self, keys: Iterable[str]) -> Mapping[str, bytes]:
        keys = list(keys)
        if not keys:
            return {}
        client, _ = self.client_for(keys[0], write=False)
        found = client.mget([self.client_for(key, write=False)[1] for key in keys])
        return {key: value for key, value in zip(keys, found, strict=True) if value is not None}

    def set(
        self, key: str, entry: bytes, *, replaces: bytes | None = None, timeout: float | None
    ) -> bool:
        client, name = self.client_for(key, write=True)
        milliseconds = "" if timeout is None else str(max(1, round(timeout * 1000)))
        return bool(client.eval(SET_IF_NEWER, 1, name, entry, replaces or b"", milliseconds))

    def add(self, key: str, value: bytes, *, timeout: float) -> bool:
        client, name = self.client_for(key, write=True)
        return bool(client.set(name, value, px=max(1, round(timeout * 1000)), nx=True))

    def replace(self, key: str, value: bytes, *, timeout: float) -> None:
        client, name = self.client_for(key, write=True)
        client.set(name, value, px=max(1, round(timeout * 1000)))

    def delete(self, key: str) -> None:
        client, name = self.client_for(key, write=True)
        client.delete(name)

    def forget(self, part: str) -> int | None:
        client, _ = self.client_for(part, write=True)
        # Under each prefix and version: also those that the settings had before.
        found = list(client.scan_iter(match=f"*{part}*", count=1_000))
        for start in range(0, len(found), 500):
            client.unlink(*found[start : start + 500])
        return len(found)

    def forget_many(self, parts: Collection[str]) -> int:
        if len(parts) == 1:
            return sum(self.forget(part) or 0 for part in parts)
        found = list(self._with(parts))
        client, _ = self.client_for("", write=True)
        for start in range(0, len(found), 500):
            client.unlink(*found[start : start + 500])
        return len(found)

    def count(self, parts: Collection[str]) -> int:
        return sum(1 for _ in self._with(parts))

    def _with(self, parts: Collection[str]) -> Iterator[bytes]:
        """Yield the keys that contain one of ``parts``, found in one walk over all keys."""
        client, _ = self.client_for("", write=True)
        pattern = re.compile(b"|".join(re.escape(part).encode() for part in parts))
        for key in client.scan_iter(match=f"*{ENTRY}*", count=1_000):
            if pattern.search(key):
                yield key


class GuardedCache:
    """
    A cache behind circuit breakers: after a failure it is not called for a second.

    Every method raises Unreachable, and nothing else. Without the breakers each reader would
    wait for the time-outs of a server that is down. Reads and writes have a breaker each, so
    that a cache that refuses writes (it is full, or has become a replica) is still read.
    """

    def __init__(self, cache: BaseReductionCache) -> None:
        self.cache = cache
        self.shared = cache.shared
        self._reading = CircuitBreaker("reached", "logs are replayed")
        self._writing = CircuitBreaker("written", "its entries are not renewed")

    def get(self, key: str) -> bytes | None:
        found = self._read(self.cache.get, key)
        if found is not None and not isinstance(found, bytes):
            raise Unreachable from TypeError(f"the cache returned a {type(found).__name__}")
        return found

    def get_many(self, keys: Iterable[str]) -> Mapping[str, bytes]:
        found: Mapping[str, Any] = self._read(self.cache.get_many, keys)
        return {key: value for key, value in found.items() if isinstance(value, bytes)}

    def set(self, key: str, entry: bytes, *, replaces: bytes | None, timeout: float | None) -> bool:
        return bool(self._write(self.cache.set, key, entry, replaces=replaces, timeout=timeout))

    def add(self, key: str, value: bytes, *, timeout: float) -> bool:
        # django-redis returns None where it ignores an exception: only False means a value.
        return self._write(self.cache.add, key, value, timeout=timeout) is not False

    def replace(self, key: str, value: bytes, *, timeout: float) -> None:
        self._write(self.cache.replace, key, value, timeout=timeout)

    def delete(self, key: str) -> None:
        self._write(self.cache.delete, key)

    def _read(self, method: Any, *args: Any) -> Any:
        return self._reading.call(method, *args)

    def _write(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        if self._reading.is_open:
            raise Unreachable
        return self._writing.call(method, *args, **kwargs)


class CircuitBreaker:
    """Calls methods of a cache, but not for a second after one failed."""

    def __init__(self, what: str, meanwhile: str) -> None:
        self._what, self._meanwhile = what, meanwhile
        self._until = 0.0  # by the monotonic clock
        self._is_down = False

    @property
    def is_open(self) -> bool:
        """Return whether calls are refused for now."""
        return time.monotonic() < self._until

    def call(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what ``method`` returns. Raise Unreachable if it fails, or one has just failed."""
        if self.is_open:
            raise Unreachable
        try:
            answer = method(*args, **kwargs)
        except Exception as error:
            self._until = time.monotonic() + PAUSE
            if not self._is_down:
                self._is_down = True
                logger.warning(
                    "The reduction cache cannot be %s (%s): %s. It is tried again every %s s.",
                    self._what,
                    type(error).__name__,
                    self._meanwhile,
                    PAUSE,
                )
            raise Unreachable from error
        if self._is_down:
            self._is_down = False
            logger.warning("The reduction cache is %s again.", self._what)
        return answer


def is_raw_redis(cache: BaseCache) -> bool:
    """Return whether a Django cache has a raw Redis client."""
    if isinstance(cache, RedisCache):
        return True
    client = getattr(cache, "client", None)  # as django-redis has it, in most of its clients
    return hasattr(client, "get_client") and not hasattr(client, "get_server_name")


def is_safe(cache: BaseCache) -> bool:
    """Return whether entries in a Django cache are never read with pickle from a server."""
    return isinstance(cache, LocMemCache | DummyCache) or is_raw_redis(cache)


@lru_cache(maxsize=64)
def _for_alias(alias: str) -> GuardedCache:
    cache = caches[alias]
    if isinstance(cache, DummyCache):
        return GuardedCache(NoReductionCache())
    if is_raw_redis(cache):
        return GuardedCache(RedisReductionCache(alias))
    if isinstance(cache, LocMemCache):
        return GuardedCache(DjangoReductionCache(alias))
    logger.error(
        "CACHES[%r] would pickle reductions, so they are not cached. See eventlogs.E009.", alias
    )
    return GuardedCache(NoReductionCache())


@lru_cache(maxsize=64)
def _guarded(cache: BaseReductionCache) -> GuardedCache:
    return GuardedCache(cache)


def cache_for(cache: str | BaseReductionCache | None = None) -> GuardedCache:
    """
    Return the guarded cache of an alias in CACHES, or of a cache of your own.

    None is ``EVENTLOGS["CACHE"]``. Raise InvalidCacheBackendError for an unknown alias.
    """
    if isinstance(cache, BaseReductionCache):
        return _guarded(cache)
    alias = conf.cache() if cache is None else cache
    return _NONE if alias is None else _for_alias(alias)


def _setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting in ("CACHES", "EVENTLOGS"):
        _for_alias.cache_clear()


def forget(log_id: LogId | str) -> int:
    """
    Delete all cached reductions and snapshots of a log; return how many there were.

    All of CACHES that can hold reductions are searched, under each prefix and version. Of a
    cache in the memory of processes, only this process' one is. A process that has just read
    the log may write an entry afterwards: call it again a minute later.

    Raise Unreachable if a cache does not answer.
    """
    return forget_many([log_id])


def forget_many(log_ids: Iterable[LogId | str]) -> int:
    """Do what ``forget`` does for many logs, with one search of each cache for all of them."""
    parts = _parts(log_ids)
    return _in_all(lambda cache: cache.forget_many(parts))


def count(log_ids: Iterable[LogId | str]) -> int:
    """Return how many entries ``forget_many`` would delete. Raise Unreachable."""
    parts = _parts(log_ids)
    return _in_all(lambda cache: cache.count(parts))


def _parts(log_ids: Iterable[LogId | str]) -> list[str]:
    return [f"{ENTRY}{log_id}." for log_id in log_ids]


def _in_all(method: Callable[[BaseReductionCache], int]) -> int:
    found = 0
    for alias in caches.settings:
        try:
            found += method(_for_alias(alias).cache)
        except Exception as error:
            raise Unreachable(alias=alias) from error
    return found


_NONE: Final = GuardedCache(NoReductionCache())
os.register_at_fork(after_in_child=DjangoReductionCache.unlock)
setting_changed.connect(_setting_changed)
