"""Starting to run a projection: its stored state, and the lease of a partition."""

from __future__ import annotations

from eventlogs.exceptions import ProjectionUnavailable
from eventlogs.feed.reader import Feed
from eventlogs.models import ProjectionState
from eventlogs.projections import checkpoints, leases
from eventlogs.projections.base import BaseProjection
from eventlogs.projections.leases import GRACE, Lease


def begin(projection: type[BaseProjection], using: str) -> ProjectionState:
    """
    Return the state of a projection that may run.

    Raise ProjectionUnavailable where its rows are of newer code, or were kept inline.
    """
    state = checkpoints.ensure(
        projection.name,
        using=using,
        version=projection.version,
        mode=projection.mode,
        partitions=projection.partitions,
        start=Feed(using=using).settled if projection.starts_now() else int,
    )
    _refuse(projection, state)
    if state.mode != projection.mode:
        checkpoints.become_inline(projection.name, using=using)
    return state


def lease_partition(
    projection: type[BaseProjection], number: int, *, using: str, owner: str
) -> Lease | None:
    """
    Lease a partition for as long as one step may take; return None where another worker has it.

    Raise ProjectionUnavailable where newer code has taken over the rows since ``begin``.
    """
    taken = leases.acquire(
        projection.name, number, using=using, owner=owner, seconds=projection.timeout + GRACE
    )
    if taken is not None:
        # After the lease is taken: any later change of the state takes it away.
        state = checkpoints.state_of(projection.name, using)
        try:
            if state is not None:
                _refuse(projection, state)
        except ProjectionUnavailable:
            leases.release(taken)
            raise
    return taken


def _refuse(projection: type[BaseProjection], state: ProjectionState) -> None:
    if state.version > projection.version:
        raise ProjectionUnavailable("newer", projection=projection.name)
    if state.mode != projection.mode and projection.mode != projection.INLINE:
        raise ProjectionUnavailable("mode", projection=projection.name)
