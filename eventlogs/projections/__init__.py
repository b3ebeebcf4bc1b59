"""
Projections: read models that are made of the feed, each event exactly once.

``base`` holds what a projection declares, ``kinds`` the classes to subclass, and ``operations``
the methods to call on them. The other modules are the engine; they import ``base`` and each other,
downwards only.
"""

from __future__ import annotations

from eventlogs.projections.base import handles
from eventlogs.projections.kinds import Projection, Reactor, ReductionProjection, projection
from eventlogs.projections.publisher import Publisher

__all__ = ["Projection", "Publisher", "Reactor", "ReductionProjection", "handles", "projection"]
