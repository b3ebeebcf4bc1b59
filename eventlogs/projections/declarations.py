"""The old import path of these names; import them from ``eventlogs.projections``."""

from eventlogs.projections import Projection, Reactor, ReductionProjection, handles, projection

__all__ = ["Projection", "Reactor", "ReductionProjection", "handles", "projection"]
