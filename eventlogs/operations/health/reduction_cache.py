"""Whether the cache of reductions can be reached, takes what is written, and has room."""

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
from eventlogs.operations.health.findings import ACT, INFO, Finding, counted
from eventlogs.operations.health.look import Look

KEY: Final = "eventlogs.health"
VALUE: Final = b"1"
KEPT: Final = 10.0  # seconds that the tiny entry of a probe lives
PATIENCE: Final = 2.0  # seconds that a probe may take
NEARLY: Final = 0.95  # of the memory, from which on a cache is said to be full

MORE_MEMORY: Final = (
    "Whoever runs the cache gives it more memory, or lets it throw out old entries:"
)


class Answer(NamedTuple):
    """What a probe has found: the error of a read or a write, and what Redis says of itself."""

    error: Exception | None = None
    is_readable: bool = False
    info: dict[str, Any] | None = None
    address: str = ""  # options of redis-cli that lead to it


def look_at_cache(look: Look) -> Iterator[Finding]:
    """Yield what is found in the cache that EVENTLOGS["CACHE"] names."""
    alias = conf.cache()
    if alias is None:
        return
    for message in check_reduction_cache():
        level = ACT if message.id in ("eventlogs.E003", "eventlogs.E009") else INFO
        yield Finding(
            "cache", level, alias, str(message.msg), action=f"A developer acts: {message.hint}"
        )
        if level == ACT:
            return
    cache = cache_for(alias).cache
    if isinstance(cache, NoReductionCache):
        yield Finding(
            "cache",
            INFO,
            alias,
            f"CACHES[{alias!r}] keeps nothing: each reduction replays its log.",
            action='Nobody has to act. A developer may name another alias in EVENTLOGS["CACHE"].',
        )
        return
    if not cache.shared:
        yield Finding(
            "cache",
            INFO,
            alias,
            f"Reductions are cached in the memory of each process (CACHES[{alias!r}]): each "
            "replays logs for itself.",
            action="Nobody has to act. For many processes, a developer names an alias of Redis in "
            'EVENTLOGS["CACHE"].',
        )
        return
    answer = _probe(alias)
    if answer is None:
        yield _failing(alias, f"did not answer within {PATIENCE:.0f} seconds", is_readable=False)
    elif answer.error is not None:
        yield _failing(
            alias, *_why(answer), is_readable=answer.is_readable, figures=_figures(answer)
        )
    elif answer.info:
        look.figures.update({f"cache_{name}": value for name, value in _figures(answer).items()})
        yield from _filling(alias, answer)


def _why(answer: Answer) -> tuple[str, str]:
    kind = type(answer.error).__name__
    if kind == "OutOfMemoryError" or str(answer.error).startswith("OOM"):
        return (
            "is full, and takes no writes (its maxmemory-policy throws nothing out)",
            _let_go(answer),
        )
    if answer.is_readable:
        return f"can be read and takes no writes ({kind})", ""
    return f"cannot be reached ({kind})", ""


def _let_go(answer: Answer) -> str:
    # Not allkeys-lru: messages of a broker in the same Redis have no time-out, entries have one.
    if conf.cache_timeout() is None:
        return ""
    return f"redis-cli {answer.address}CONFIG SET maxmemory-policy volatile-lru"


def _failing(
    alias: str,
    what: str,
    command: str = "",
    *,
    is_readable: bool,
    figures: dict[str, float] | None = None,
) -> Finding:
    effect = "what is in it grows old" if is_readable else "each reduction replays its log"
    return Finding(
        "cache",
        ACT,
        alias,
        f"The cache of reductions, CACHES[{alias!r}], {what}: answers stay right, and {effect}.",
        action=MORE_MEMORY
        if "is full" in what
        else "Whoever runs the cache starts it, or mends the network or its settings.",
        command=command,
        figures=figures or {},
    )


def _filling(alias: str, answer: Answer) -> Iterator[Finding]:
    figures = _figures(answer)
    limit, used = figures.get("maxmemory_bytes", 0), figures.get("used_bytes", 0)
    if not limit or used < NEARLY * limit:
        return
    policy = str((answer.info or {}).get("maxmemory_policy", ""))
    if policy == "noeviction":
        yield Finding(
            "cache",
            ACT,
            alias,
            f"The cache of reductions, CACHES[{alias!r}], is nearly full, and its "
            "maxmemory-policy is noeviction: it will take no writes.",
            action=MORE_MEMORY,
            command=_let_go(answer),
            figures=figures,
        )
    else:
        evicted = counted(figures.get("evicted_keys", 0), "entry", "entries")
        yield Finding(
            "cache",
            INFO,
            alias,
            f"The cache of reductions, CACHES[{alias!r}], is full and throws entries out to make "
            f"room ({evicted} since it started): logs are replayed more often.",
            action="Nobody has to act. More memory, or a caching policy that keeps less, helps.",
            figures=figures,
        )


def _figures(answer: Answer) -> dict[str, float]:
    info = answer.info or {}
    names = {
        "used_memory": "used_bytes",
        "maxmemory": "maxmemory_bytes",
        "evicted_keys": "evicted_keys",
    }
    return {ours: info[name] for name, ours in names.items() if isinstance(info.get(name), int)}


# A probe: in a thread of its own, since a cache without time-outs may hang


_under_way: set[str] = set()
_lock = Lock()


def _probe(alias: str) -> Answer | None:
    """Return what a read and a write have found; None where there is no answer in time."""
    with _lock:
        if alias in _under_way:
            return None  # the probe before still hangs
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
    """Return what Redis says of its memory, where it may be asked."""
    if not isinstance(cache, RedisReductionCache):
        return None
    with suppress(Exception):
        client, _ = cache.client_for(KEY, write=True)
        return {**client.info("memory"), **client.info("stats")}
    return None


def _address(cache: Any) -> str:
    """Return the options of redis-cli that lead to a server; never its user or password."""
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
