"""The health of the reduction cache: reachable, writable, and with free memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from shlex import quote
from threading import Lock, Thread
from typing import Any, Final, NamedTuple

from django.core.cache import caches

from eventlogs import conf
from eventlogs.caches.backends import (
    NoReductionCache,
    RedisReductionCache,
    cache_for,
    is_raw_redis,
)
from eventlogs.checks.reductions import check_reduction_cache
from eventlogs.operations.health.findings import ACT, INFO, Finding
from eventlogs.operations.health.look import Look
from eventlogs.utils.words import counted

KEY: Final = "eventlogs.health"
VALUE: Final = b"1"
KEPT: Final = 10.0  # seconds that the tiny entry of a probe lives
PATIENCE: Final = 2.0  # seconds that a probe may take
NEARLY: Final = 0.95  # share of the memory above which a cache counts as full

MORE_MEMORY: Final = "Cache administrator: add memory, or let the cache evict old entries:"


class Answer(NamedTuple):
    """The result of a probe: the error of a read or a write, and Redis' own figures."""

    error: Exception | None = None
    is_readable: bool = False
    info: dict[str, Any] | None = None
    address: str = ""  # options of redis-cli that lead to it


def look_at_cache(look: Look) -> Iterator[Finding]:
    """Yield the findings about the cache that EVENTLOGS["CACHE"] names."""
    alias = conf.cache()
    if alias is None:
        return
    for check in check_reduction_cache():
        level = ACT if check.id in ("eventlogs.E003", "eventlogs.E009") else INFO
        yield Finding("cache", level, alias, str(check.msg), action=f"Developer: {check.hint}")
        if level == ACT:
            return
    cache = cache_for(alias).cache
    named = f"The cache of reductions, CACHES[{alias!r}],"
    level, command, figures = INFO, "", dict[str, float]()
    if isinstance(cache, NoReductionCache):
        message = f"CACHES[{alias!r}] keeps nothing: each reduction replays its log."
        action = 'No action needed. A developer may set EVENTLOGS["CACHE"] to another alias.'
    elif not cache.shared:
        message = (
            f"Reductions are cached in the memory of each process (CACHES[{alias!r}]): each "
            "replays logs for itself."
        )
        action = (
            "No action needed. For many processes, set EVENTLOGS['CACHE'] to an alias of Redis."
        )
    elif (answer := _probe(alias)) is None or answer.error is not None:
        level = ACT
        why, is_full = _why(answer)
        is_readable = answer is not None and answer.is_readable
        effect = "its entries get out of date" if is_readable else "each reduction replays its log"
        message = f"{named} {why}: answers stay right, and {effect}."
        action = "Cache administrator: start the cache, or repair the network or its settings."
        if answer is not None:
            figures = _figures(answer)
            if is_full:
                action, command = MORE_MEMORY, _evict(answer)
    else:
        figures = _figures(answer)
        look.figures.update({f"cache_{name}": value for name, value in figures.items()})
        limit = figures.get("maxmemory_bytes", 0)
        if not limit or figures.get("used_bytes", 0) < NEARLY * limit:
            return
        if (answer.info or {}).get("maxmemory_policy") == "noeviction":
            level, action, command = ACT, MORE_MEMORY, _evict(answer)
            message = (
                f"{named} is nearly full, and its maxmemory-policy is noeviction: it will take no "
                "writes."
            )
        else:
            evicted = counted(figures.get("evicted_keys", 0), "entry", "entries")
            message = (
                f"{named} is full and evicts entries ({evicted} since it started): logs are "
                "replayed more often."
            )
            action = "No action needed. Add memory, or use a caching policy that keeps less."
    yield Finding("cache", level, alias, message, None, action, command, figures)


def _why(answer: Answer | None) -> tuple[str, bool]:
    """Return why a cache fails, and whether the reason is that it is full."""
    if answer is None:
        return f"did not answer within {PATIENCE:.0f} seconds", False
    kind = type(answer.error).__name__
    if kind == "OutOfMemoryError" or str(answer.error).startswith("OOM"):
        return "is full, and takes no writes (its maxmemory-policy evicts nothing)", True
    if answer.is_readable:
        return f"can be read and takes no writes ({kind})", False
    return f"cannot be reached ({kind})", False


def _evict(answer: Answer) -> str:
    """Return the command that lets Redis evict entries, which all have a time-out."""
    # Not allkeys-lru: it may evict messages of a broker in the same Redis. Only entries expire.
    if conf.cache_timeout() is None:
        return ""
    return f"redis-cli {answer.address}CONFIG SET maxmemory-policy volatile-lru"


def _figures(answer: Answer) -> dict[str, float]:
    info = answer.info or {}
    names = {
        "used_memory": "used_bytes",
        "maxmemory": "maxmemory_bytes",
        "evicted_keys": "evicted_keys",
    }
    return {ours: info[name] for name, ours in names.items() if isinstance(info.get(name), int)}


# A probe runs in a thread of its own, since a cache without time-outs may hang


_under_way: set[str] = set()
_lock = Lock()


def _probe(alias: str) -> Answer | None:
    """Return the result of a read and a write, or None if there is no answer in time."""
    with _lock:
        if alias in _under_way:
            return None  # the previous probe still hangs
        _under_way.add(alias)
    answers: SimpleQueue[Answer] = SimpleQueue()
    Thread(target=_ask, args=(alias, answers), daemon=True, name="eventlogs-health").start()
    try:
        return answers.get(timeout=PATIENCE)
    except Empty:
        return None


def _ask(alias: str, answers: SimpleQueue[Answer]) -> None:
    is_readable, info, address = False, None, ""
    try:
        cache = cache_for(alias).cache
        cache.get(KEY)
        is_readable = True
        info, address = _info(cache), _address(cache)
        cache.replace(KEY, VALUE, timeout=KEPT)
        answers.put(Answer(None, is_readable, info, address))
    except Exception as error:
        answers.put(Answer(error, is_readable, info, address))
    finally:
        with _lock:
            _under_way.discard(alias)
        with suppress(Exception):
            _close(alias)


def _info(cache: Any) -> dict[str, Any] | None:
    """Return Redis' figures about its memory, or None."""
    if not isinstance(cache, RedisReductionCache):
        return None
    with suppress(Exception):
        client, _ = cache.client_for(KEY, write=True)
        return {**client.info("memory"), **client.info("stats")}
    return None


def _address(cache: Any) -> str:
    """Return the options of redis-cli for this server; never its user or password."""
    if not isinstance(cache, RedisReductionCache):
        return ""
    with suppress(Exception):
        client, _ = cache.client_for(KEY, write=True)
        pool = client.connection_pool
        settings = pool.connection_kwargs
        if settings.get("path"):
            return f"-s {quote(str(settings['path']))} "
        if "host" in settings:
            kinds = {each.__name__ for each in pool.connection_class.__mro__}
            tls = "--tls " if "SSLConnection" in kinds else ""
            port = settings.get("port", 6379)
            return f"-h {quote(str(settings['host']))} -p {quote(str(port))} {tls}"
    return ""


def _close(alias: str) -> None:
    """Close the connections that Django keeps for this thread alone."""
    cache: Any = caches[alias]
    if is_raw_redis(cache):
        client, _ = RedisReductionCache(alias).client_for(KEY, write=True)
        client.close()
        client.connection_pool.disconnect()
