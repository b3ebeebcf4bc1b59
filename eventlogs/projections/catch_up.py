"""Catching up: apply all settled events once, in one call. Workers are in ``workers.py``."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

from django.db import Error

from eventlogs.exceptions import ProjectionFailed, PublishingFailed
from eventlogs.feed.reader import Feed
from eventlogs.models import ProjectionState
from eventlogs.projections import checkpoints, leases, releases
from eventlogs.projections.base import BaseProjection
from eventlogs.projections.batches import Advancer
from eventlogs.projections.feeds import feed_of
from eventlogs.projections.held_logs import HeldLogs, uncount_lost_attempts
from eventlogs.projections.leases import Lease, LeaseLost
from eventlogs.projections.starting import begin, lease_partition

NAP: Final = 0.02  # seconds between two looks at a partition that another worker has


def catch_up_projection(
    projection: type[BaseProjection],
    *,
    wait: bool = True,
    strict: bool = False,
    using: str | None = None,
) -> int:
    """
    Apply all settled events, and return how many were applied here.

    Where another worker has a partition, wait until that is done, unless ``wait`` is False.
    With ``strict``, raise ProjectionFailed where any event is not applied; see
    ``Operations.catch_up``.
    """
    using = projection.database_alias(using=using)
    uncount_lost_attempts(using)
    state = begin(projection, using)
    releases.declare_run(projection, using)
    declared_at = time.monotonic()
    HeldLogs(projection, using).make_readable_due(releases.reading_of(projection, using))
    feed, owner = feed_of(projection, using), leases.new_owner()
    target = feed.settled()
    applied = 0
    if not strict and not _has_work(projection, state, using, target):
        return 0
    if state.partitions != projection.partitions:
        divide(projection, state, using=using, owner=owner)
        state = begin(projection, using)
    pending = set(range(state.partitions))
    while pending:
        for number in sorted(pending):
            if time.monotonic() - declared_at > releases.RENEWED:
                releases.declare_run(projection, using)
                declared_at = time.monotonic()
            taken = lease_partition(projection, number, using=using, owner=owner)
            if taken is not None:
                count, done = _settle(projection(), taken, feed, target, strict=strict)
                applied += count
                if done:
                    pending.discard(number)
        if not wait:
            break
        if pending:
            reached = checkpoints.positions(projection.name, using)
            pending = {each for each in pending if reached.get(each, target) < target}
            if pending:
                time.sleep(NAP)
    if strict:
        _refuse_held(projection, using)
    return applied


def _refuse_held(projection: type[BaseProjection], using: str) -> None:
    """Raise ProjectionFailed for the first event that holds a log."""
    held = HeldLogs(projection, using).rows().order_by("position").first()
    if held is None:
        return
    name, log_id = projection.name, held.log_id
    if held.awaits_release:
        why = (
            f"waits for a release that can apply {held.type} version {held.schema_version}. Import "
            f"the module that declares it, or declare retired_event()"
        )
    elif held.is_parked:
        why = (
            f"is parked after {held.attempts} attempts, the last one with {held.error}. Fix the "
            f"cause, then retry({str(log_id)!r}) it"
        )
    else:
        why = "waits for a retry by another process. Try again later"
    raise ProjectionFailed(
        name,
        log_id,
        held.position,
        message=f"Projection {name!r} has not applied all events: the one at position "
        f"{held.position} of {log_id} {why}.",
    )


def _settle(
    projection: BaseProjection, taken: Lease, feed: Feed, target: int, *, strict: bool
) -> tuple[int, bool]:
    cls = type(projection)
    advancer = Advancer(
        projection,
        taken,
        feed,
        is_strict=strict,
        renew=lambda: releases.declare_run(cls, taken.using),
    )
    try:
        advancer.settle()
        if advancer.position < target:  # a replica does not have the last events yet
            advancer.feed = Feed(using=taken.using)
            advancer.settle()
        advancer.close()
    except LeaseLost:
        return advancer.applied, False
    except Error:
        with suppress(Error):
            advancer.abandon()
        raise
    except BaseException:
        with suppress(Error):
            advancer.close()
        raise
    return advancer.applied, True


def _has_work(
    projection: type[BaseProjection], state: ProjectionState, using: str, target: int
) -> bool:
    return (
        state.partitions != projection.partitions
        or checkpoints.position(projection.name, using) < target
        or bool(HeldLogs(projection, using).due(target))
    )


def divide(
    projection: type[BaseProjection], state: ProjectionState, *, using: str, owner: str
) -> None:
    """
    Bring all partitions to one position, then change their number.

    Do nothing if another worker has leased one of them.
    """
    feed = Feed(using=using)
    taken = [
        lease_partition(projection, number, using=using, owner=owner)
        for number in range(state.partitions)
    ]
    held = [each for each in taken if each is not None]
    try:
        if len(held) == len(taken):
            upto = max(each.position for each in held)
            advancers = [Advancer(projection(), each, feed) for each in held]
            for number, advancer in enumerate(advancers):
                while advancer.position < upto and advancer.step(upto):
                    pass
                advancer.move_to(upto)
                held[number] = advancer.lease
            checkpoints.repartition(
                projection.name, projection.partitions, using=using, owner=owner
            )
    except (LeaseLost, PublishingFailed):
        pass  # tried again later
    finally:
        for each in held:
            leases.release(each)
