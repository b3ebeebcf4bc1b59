"""
Projections: read models that are made of the feed, each event exactly once.

The public names are loaded when they are first used, so that the modules of this package can
import one another.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventlogs.projections.declarations import (
        Projection,
        Reactor,
        ReductionProjection,
        handles,
        projection,
    )

__all__ = ["Projection", "Reactor", "ReductionProjection", "handles", "projection"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("eventlogs.projections.declarations"), name)
    globals()[name] = value
    return value
