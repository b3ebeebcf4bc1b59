"""The path of these names in the first layout; import them from ``eventlogs.projections``."""

from eventlogs.projections import Projection, Reactor, ReductionProjection, handles, projection

__all__ = ["Projection", "Reactor", "ReductionProjection", "handles", "projection"]
