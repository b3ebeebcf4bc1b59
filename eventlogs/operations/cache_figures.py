"""
Figures of the reduction cache for ``eventlogs stats``: whether it keeps up with the logs.

Hits and misses are counted in each process (``eventlogs.caches.statistics()``), and a command
is a process of its own. So these figures compare what all processes share: the versions of the
logs that have the newest events, with the versions that the cache has of them. That takes two
queries, and one look at the cache for each aggregate class; nothing is folded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from django.core.cache import InvalidCacheBackendError, caches
from django.db.models import Max

from eventlogs import conf
from eventlogs.aggregates import Aggregate, aggregates
from eventlogs.caches.backends import cache_for
from eventlogs.caches.entries import Untrusted, opened
from eventlogs.exceptions import Unreachable
from eventlogs.ids import LogId
from eventlogs.models import Event, EventLog
from eventlogs.policies import policy_from
from eventlogs.reductions.reader import ReductionReader

NEWEST: Final = 5_000  # positions whose events' logs are checked
LOGS: Final = 500  # of each log type, at most


@dataclass(frozen=True, slots=True)
class Caching:
    """
    The cached reductions of one aggregate class.

    ``logs`` were checked; ``current`` of them are cached at their version, ``behind`` at an
    earlier one, so that a reader folds some events, and ``absent`` not at all. ``bytes`` is
    the size of all their entries.
    """

    aggregate: str
    logs: int
    current: int
    behind: int
    absent: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """
    The cache of the EVENTLOGS setting, and its entries of the newest logs.

    ``is_shared`` is False for a cache in the memory of one process: it has no figures.
    """

    alias: str | None
    backend: str
    policy: str
    is_shared: bool
    is_reachable: bool
    aggregates: list[Caching]


def cache_figures(using: str) -> CacheFigures:
    """Return the figures of the cache; ``is_reachable`` is False if it does not answer."""
    alias = conf.cache()
    try:
        cache = cache_for()
        backend = "" if alias is None else _name(type(caches[alias]))
        policy = str(policy_from(conf.caching_policy()))
    except (InvalidCacheBackendError, ImportError, TypeError):  # a system check has the details
        return CacheFigures(alias, "", "misconfigured", True, False, [])
    found = CacheFigures(alias, backend, policy, cache.shared, True, [])
    if not cache.shared:
        return found
    logs = _newest_logs(using)
    try:
        for cls in aggregates:
            reader = ReductionReader(cls, using=using)
            if logs.get(cls.log_type) and reader.is_caching:
                found.aggregates.append(_look(cls, reader, logs[cls.log_type]))
    except Unreachable:
        return CacheFigures(found.alias, found.backend, found.policy, True, False, [])
    return found


def _look(cls: type[Aggregate], reader: ReductionReader[Any], logs: dict[LogId, int]) -> Caching:
    keys = {reader.key(log_id): (log_id, version) for log_id, version in logs.items()}
    current = behind = size = 0
    for key, raw in reader.cache.get_many(keys).items():
        log_id, version = keys[key]
        try:
            head, _ = opened(raw)
        except Untrusted:
            continue
        if head.log_id != str(log_id):
            continue
        size += len(raw)
        # It may be ahead of what was read here a moment ago.
        current += head.version >= version
        behind += head.version < version
    return Caching(
        _name(cls),
        len(logs),
        current,
        behind,
        len(logs) - current - behind,
        size,
    )


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _newest_logs(using: str) -> dict[str, dict[LogId, int]]:
    """Return the logs of the newest events and their versions, by log type."""
    events = Event.objects.using(using)
    last = events.aggregate(last=Max("position"))["last"] or 0
    ids = events.filter(position__gt=last - NEWEST).order_by("-position")
    # In the order of their events; a dict keeps each once.
    wanted = list(dict.fromkeys(ids.values_list("log_id", flat=True)))
    rows = EventLog.objects.using(using).filter(pk__in=wanted)
    versions = {
        pk: (log_type, version)
        for pk, log_type, version in rows.values_list("pk", "log_type", "version")
    }
    found: dict[str, dict[LogId, int]] = {}
    for pk in wanted:
        if pk not in versions:
            continue  # its log was erased
        log_type, version = versions[pk]
        of_type = found.setdefault(log_type, {})
        if len(of_type) < LOGS:
            of_type[LogId.stored(log_type, pk)] = version
    return found
