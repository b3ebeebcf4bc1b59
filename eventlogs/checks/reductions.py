"""
System checks of the cache of reductions.

    E003  EVENTLOGS["CACHE"] names no cache
    E009  the cache would pickle reductions
    W010  the cache is the memory of one process (with --deploy)
    W020  a worker refreshes reductions in a cache that only its own process sees
    W021  the cache is Redis without time-outs
    W022  reductions of an aggregate cannot be cached
    W023  reductions are not cached, because the code that computes them is not known
    E047  EVENTLOGS["REFRESHER"] names an option that its refresher does not have
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured

from eventlogs import conf
from eventlogs.aggregates import Aggregate, aggregates
from eventlogs.caches.backends import is_raw_redis, is_safe
from eventlogs.caches.entries import why_not
from eventlogs.caches.fingerprints import covers, why_unknown
from eventlogs.checks.settings import is_refresher
from eventlogs.events.registry import registry
from eventlogs.refreshers import MessageRefresher, refresher_for
from eventlogs.utils.names import dotted

NO_BACKEND: Final = (
    ImportError,
    InvalidCacheBackendError,
)  # Django raises these when the cache is first used


@register(Tags.caches)
def check_reduction_cache(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that reductions have a cache, and that it stores their bytes unchanged."""
    alias = conf.cache()
    if not isinstance(alias, str):
        return  # None: no cache is wanted; anything else is E001
    if alias not in caches.settings:
        yield Error(
            f"EVENTLOGS['CACHE'] names {alias!r}, which is not in CACHES.",
            hint=f"Add CACHES[{alias!r}], or set EVENTLOGS['CACHE'] to one of: "
            f"{', '.join(caches)}.",
            id="eventlogs.E003",
        )
        return
    configured = caches.settings[alias]
    backend = str(configured.get("BACKEND"))
    try:
        cache = caches[alias]
    except NO_BACKEND:
        return
    if not is_safe(cache):
        yield Error(
            f"CACHES[{alias!r}] ({backend}) would pickle reductions, so they are not cached: "
            f"anybody who can write to that cache could run code in your processes.",
            hint="Use Redis (django_redis.cache.RedisCache, or Django's own RedisCache), to which "
            'eventlogs writes bytes without pickle; or set EVENTLOGS["CACHE"] = None.',
            id="eventlogs.E009",
        )
    elif is_raw_redis(cache):
        options = configured.get("OPTIONS") or {}
        names = {str(name).lower() for name in options}
        names |= {str(name).lower() for name in options.get("CONNECTION_POOL_KWARGS") or ()}
        wanted = ("socket_timeout", "socket_connect_timeout")  # as Django's own RedisCache has them
        if not set(wanted) <= names:
            is_django_redis = backend.startswith("django_redis.")
            lines = [f'"{name.upper() if is_django_redis else name}": 1' for name in wanted]
            yield Warning(
                f"CACHES[{alias!r}] has no time-outs: while Redis does not answer, each "
                f"reduce() waits for it.",
                hint=f'Add to CACHES[{alias!r}]["OPTIONS"]: {", ".join(lines)} (seconds).',
                id="eventlogs.W021",
            )


@register(Tags.caches, deploy=True)
def check_processes(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that processes share the cache; asked for by ``check --deploy``."""
    alias = conf.cache()
    if isinstance(alias, str) and alias in caches.settings and _is_local(alias):
        yield Warning(
            f"CACHES[{alias!r}], which holds reductions, is the memory of one process: each "
            f"process replays every log for itself.",
            hint='Set EVENTLOGS["CACHE"] to the alias of a Redis cache. Results are right either '
            "way.",
            id="eventlogs.W010",
        )


@register(Tags.caches)
def check_refresher(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check the refresher's options, and that this process sees what a worker caches."""
    alias = conf.cache()
    if not is_refresher(conf.refresher()):
        return  # E001 reports it
    try:
        refresher = refresher_for()
    except ImproperlyConfigured as error:
        yield Error(
            f"EVENTLOGS['REFRESHER'] cannot be used. {error}",
            hint=f'Set EVENTLOGS["REFRESHER"] = "{_backend()}", which has the default options, or '
            "another allowed value.",
            id="eventlogs.E047",
        )
        return
    if not isinstance(alias, str) or alias not in caches.settings:
        return
    if isinstance(refresher, MessageRefresher) and _is_local(alias):
        yield Warning(
            f"{dotted(type(refresher))} refreshes reductions in worker processes, but "
            f"CACHES[{alias!r}] is the memory of one process: other processes do not see what a "
            f"worker writes.",
            hint='Set EVENTLOGS["CACHE"] to the alias of a Redis cache, or set '
            'EVENTLOGS["REFRESHER"] = "eventlogs.refreshers.ThreadRefresher".',
            id="eventlogs.W020",
        )


@register()
def check_aggregates(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that the reductions of each aggregate can be cached."""
    if conf.cache() is None:
        return
    for aggregate in aggregates:
        reason = why_not(aggregate)
        if reason is not None:
            yield Warning(
                f"Reductions of {dotted(aggregate)} cannot be cached: {reason}. Each reduce() "
                f"replays the whole log.",
                hint="Put @dataclass above the class, and declare its state as fields.",
                id="eventlogs.W022",
            )
        else:
            yield from _check_code(aggregate)


def _check_code(aggregate: type[Aggregate]) -> Iterable[CheckMessage]:
    """Check that the code that computes an aggregate's reductions is known."""
    name = dotted(aggregate)
    if (why := why_unknown(aggregate)) is not None:
        yield Warning(
            f"Reductions of {name} are not cached, because the code that computes them is not "
            f"known: {why}. Each reduce() replays the whole log.",
            hint="See docs/caching.md, Code that is not known.",
            id="eventlogs.W023",
        )
        return
    named = {event_type for each in aggregates for event_type in each.event_types}
    for event_type in registry:
        prefix = event_type.name.partition(".")[0]
        if event_type in named or prefix != aggregate.log_type:
            continue
        if not covers(aggregate, event_type.name):
            yield Warning(
                f"Reductions of {name} are not cached where the log holds {event_type.name!r}: "
                f"{dotted(event_type.cls)} or one of its upcasters is in a module that the "
                f"aggregate's modules do not import.",
                hint=f"Import {event_type.cls.__module__}, and the modules of its upcasters, in "
                f"{aggregate.__module__}.",
                id="eventlogs.W023",
            )


def _backend() -> str:
    """Return the dotted path to the refresher of the setting, or that of the default one."""
    value = conf.refresher()
    path = value.get("BACKEND") if isinstance(value, Mapping) else value
    return path if isinstance(path, str) else str(conf.DEFAULTS["REFRESHER"])


def _is_local(alias: str) -> bool:
    try:
        return isinstance(caches[alias], LocMemCache)
    except NO_BACKEND:
        return False
