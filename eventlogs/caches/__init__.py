"""Reduction caches: where reductions are kept, and the proof that an entry can be trusted."""

from __future__ import annotations

from eventlogs.caches.backends import (
    BaseReductionCache,
    DjangoReductionCache,
    NoReductionCache,
    RedisReductionCache,
    cache_used,
    forget,
    statistics,
)
from eventlogs.exceptions import Unreachable

__all__ = [
    "BaseReductionCache",
    "DjangoReductionCache",
    "NoReductionCache",
    "RedisReductionCache",
    "Unreachable",
    "cache_used",
    "forget",
    "statistics",
]
