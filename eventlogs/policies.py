"""
Caching policies: they decide which reductions are written to the cache.

A policy never changes an answer, only how long it takes. Combine policies with ``&``, ``|``
and ``~``, or write one: a class with ``should_cache``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import timedelta
from functools import lru_cache
from typing import Any

from django.utils import timezone
from django.utils.module_loading import import_string

from eventlogs.conf import MAX_VERSION
from eventlogs.utils.bounds import check_int
from eventlogs.values import Reduction

__all__ = ["AlwaysCache", "CachingPolicy", "LogAgePolicy", "LogLengthPolicy", "NeverCache"]


class CachingPolicy(ABC):
    """Decide which reductions are kept in the cache."""

    depends_on_time: bool = False
    """
    Whether the answer for one reduction may be another one later.

    Sweeps skip a log whose reduction a policy declined, until it has newer events, and at most for
    two days or ``EVENTLOGS["CACHE_TIMEOUT"]``, whichever is shorter. If this is True they do not
    skip it: they replay the log and ask the policy each time.
    """

    @abstractmethod
    def should_cache(self, reduction: Reduction[Any]) -> bool:
        """
        Return whether to keep ``reduction``.

        It is called after a fold of newer events. It should be quick, and must not change the
        aggregate. An exception is counted and logged, and the reduction is not kept.
        """

    def __and__(self, other: CachingPolicy) -> CachingPolicy:
        return _Combined(self, "&", other) if isinstance(other, CachingPolicy) else NotImplemented

    def __or__(self, other: CachingPolicy) -> CachingPolicy:
        return _Combined(self, "|", other) if isinstance(other, CachingPolicy) else NotImplemented

    def __invert__(self) -> CachingPolicy:
        return _Not(self)


class AlwaysCache(CachingPolicy):
    """Keep every reduction: the default."""

    def should_cache(self, reduction: Reduction[Any]) -> bool:
        """Return True."""
        return True

    def __repr__(self) -> str:
        return "AlwaysCache()"


class NeverCache(CachingPolicy):
    """Keep none; the cache is not read either."""

    def should_cache(self, reduction: Reduction[Any]) -> bool:
        """Return False."""
        return False

    def __repr__(self) -> str:
        return "NeverCache()"


class LogLengthPolicy(CachingPolicy):
    """Keep the reductions of logs with so many events; both bounds are included."""

    def __init__(self, *, shortest: int = 0, longest: int = MAX_VERSION) -> None:
        check_int("shortest", shortest)
        check_int("longest", longest)
        if shortest > longest:
            raise ValueError(f"No log is {shortest} to {longest} events long. Swap the bounds.")
        self.shortest = shortest
        self.longest = longest

    @classmethod
    def at_least(cls, events: int) -> LogLengthPolicy:
        """Keep reductions of ``events`` events or more."""
        return cls(shortest=events)

    @classmethod
    def until(cls, events: int) -> LogLengthPolicy:
        """Keep reductions of ``events`` events or fewer."""
        return cls(longest=events)

    @classmethod
    def between(cls, shortest: int, longest: int) -> LogLengthPolicy:
        """Keep reductions of ``shortest`` to ``longest`` events."""
        return cls(shortest=shortest, longest=longest)

    def should_cache(self, reduction: Reduction[Any]) -> bool:
        """Return whether the number of events folded in is within the bounds."""
        return self.shortest <= reduction.version <= self.longest

    def __repr__(self) -> str:
        return f"LogLengthPolicy(shortest={self.shortest}, longest={self.longest})"


class LogAgePolicy(CachingPolicy):
    """
    Keep the reductions of logs of some age; both bounds are included.

    The age is that of the log's id (``LogId.created_at``), by this process' clock. A log whose id
    holds no time counts as older than any age: such ids are those of entities that were there
    before their logs.
    """

    depends_on_time = True

    def __init__(
        self, *, youngest: timedelta = timedelta.min, oldest: timedelta = timedelta.max
    ) -> None:
        for name, bound in (("youngest", youngest), ("oldest", oldest)):
            if not isinstance(bound, timedelta):
                raise ValueError(f"{name} is {bound!r}. It must be a datetime.timedelta.")
        if youngest > oldest:
            raise ValueError(f"No log is {youngest} to {oldest} old. Swap the bounds.")
        self.youngest = youngest
        self.oldest = oldest

    @classmethod
    def starting_at(cls, age: timedelta) -> LogAgePolicy:
        """Keep reductions of logs that are ``age`` old or older."""
        return cls(youngest=age)

    @classmethod
    def until(cls, age: timedelta) -> LogAgePolicy:
        """Keep reductions of logs that are ``age`` old or younger."""
        return cls(oldest=age)

    @classmethod
    def between(cls, youngest: timedelta, oldest: timedelta) -> LogAgePolicy:
        """Keep reductions of logs that are ``youngest`` to ``oldest`` old."""
        return cls(youngest=youngest, oldest=oldest)

    def should_cache(self, reduction: Reduction[Any]) -> bool:
        """Return whether the log's age is within the bounds."""
        created_at = reduction.log_id.created_at
        if created_at is None:
            return self.oldest == timedelta.max
        return self.youngest <= timezone.now() - created_at <= self.oldest

    def __repr__(self) -> str:
        return f"LogAgePolicy(youngest={self.youngest!r}, oldest={self.oldest!r})"


class _Combined(CachingPolicy):
    """Two policies: both must keep a reduction (``&``), or one of them (``|``)."""

    def __init__(self, one: CachingPolicy, symbol: str, other: CachingPolicy) -> None:
        self.one, self.symbol, self.other = one, symbol, other
        self.depends_on_time = one.depends_on_time or other.depends_on_time

    def should_cache(self, reduction: Reduction[Any]) -> bool:
        keeps = self.one.should_cache(reduction)
        if keeps if self.symbol == "|" else not keeps:
            return keeps
        return self.other.should_cache(reduction)

    def __repr__(self) -> str:
        return f"({self.one!r} {self.symbol} {self.other!r})"


class _Not(CachingPolicy):
    def __init__(self, policy: CachingPolicy) -> None:
        self.policy = policy
        self.depends_on_time = policy.depends_on_time

    def should_cache(self, reduction: Reduction[Any]) -> bool:
        return not self.policy.should_cache(reduction)

    def __repr__(self) -> str:
        return f"~{self.policy!r}"


def policy_from(value: Any) -> CachingPolicy:
    """
    Return the policy that a setting means: a policy, a class of one, or a dotted path to either.

    Raise ImportError for a path that cannot be imported, and TypeError for anything else.
    """
    found = _imported(value) if isinstance(value, str) else value
    if isinstance(found, type):
        found = _instance(found)
    if not isinstance(found, CachingPolicy):
        raise TypeError(
            f"{type(found).__name__} is not a caching policy. Derive it from "
            f"eventlogs.policies.CachingPolicy."
        )
    return found


_imported = lru_cache(maxsize=16)(import_string)


@lru_cache(maxsize=16)
def _instance(cls: type) -> Any:
    return cls()
