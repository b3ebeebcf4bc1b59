"""Catching up: what one call does, once. What goes on for good is in ``running.py``."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from django.db import Error, transaction
from django.db.models import Q

from eventlogs.exceptions import ProjectionFailed, ProjectionUnavailable
from eventlogs.feed.reader import Feed
from eventlogs.ids import LogId
from eventlogs.models import ProjectionAction, ProjectionState
from eventlogs.projections import actions, checkpoints, releases
from eventlogs.projections.batches import Advancer, following, parking_of
from eventlogs.projections.checkpoints import GRACE, Lease, LeaseLost
from eventlogs.projections.held_logs import pay_back

if TYPE_CHECKING:
    from eventlogs.projections.declarations import BaseProjection

NAP: Final = 0.02  # seconds between two looks at a partition that another worker has


def begin(projection: type[BaseProjection], using: str) -> ProjectionState:
    """
    Return the state of a projection that may run.

    Raise ProjectionUnavailable where its rows are of newer code, or were kept inline.
    """
    start = getattr(projection, "start", None)
    state = checkpoints.ensure(
        projection.name,
        using=using,
        version=projection.version,
        mode=projection.mode,
        partitions=projection.partitions,
        start=Feed(using).settled if start == "now" else int,
    )
    _refuse(projection, state)
    if state.mode != projection.mode:
        checkpoints.become_inline(projection.name, using=using)
    return state


def _refuse(projection: type[BaseProjection], state: ProjectionState) -> None:
    if state.version > projection.version:
        raise ProjectionUnavailable("newer", projection=projection.name)
    if state.mode != projection.mode and projection.mode != projection.INLINE:
        raise ProjectionUnavailable("mode", projection=projection.name)


def lease(projection: type[BaseProjection], number: int, *, using: str, owner: str) -> Lease | None:
    """
    Lease a partition for as long as one step may take.

    Raise ProjectionUnavailable where the projection has become another one since ``begin``.
    """
    taken = checkpoints.acquire(
        projection.name, number, using=using, owner=owner, seconds=projection.timeout + GRACE
    )
    if taken is not None:
        # With the lease in hand: whoever changes the state from now on takes it away.
        state = checkpoints.state_of(projection.name, using)
        try:
            if state is not None:
                _refuse(projection, state)
        except ProjectionUnavailable:
            checkpoints.release(taken)
            raise
    return taken


def catch_up(
    projection: type[BaseProjection],
    *,
    wait: bool = True,
    strict: bool = False,
    using: str | None = None,
) -> int:
    """
    Apply what is settled, and return how many events were applied here.

    Where another worker has a partition, wait until that is done, unless ``wait`` is False.
    With ``strict``, raise ProjectionFailed where any event is not applied; see
    ``BaseProjection.catch_up``.
    """
    using = projection._using(using)
    pay_back(using)
    state = begin(projection, using)
    releases.declare_run(projection, using)
    declared_at = time.monotonic()
    parking_of(projection, using).take_up(releases.reading_of(projection, using))
    feed, owner = Feed(using), checkpoints.new_owner()
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
            taken = lease(projection, number, using=using, owner=owner)
            if taken is not None:
                count, done = _settle(projection(), taken, feed, strict=strict)
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
    """Raise ProjectionFailed for the first event that a log is held by."""
    held = parking_of(projection, using).rows().order_by("position").first()
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
            f"is parked after {held.attempts} attempts, the last one with {held.error}. Mend the "
            f"cause, then retry({str(log_id)!r}) it"
        )
    else:
        why = "waits for another attempt, which another process makes. Do this again later"
    raise ProjectionFailed(
        name,
        log_id,
        held.position,
        message=f"Projection {name!r} has not applied all events: the one at position "
        f"{held.position} of {log_id} {why}.",
    )


def _settle(
    projection: BaseProjection, taken: Lease, feed: Feed, *, strict: bool
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
        or bool(parking_of(projection, using).due(target))
    )


def divide(
    projection: type[BaseProjection], state: ProjectionState, *, using: str, owner: str
) -> None:
    """Bring all partitions to one position, and divide there. Nothing, where one is at work."""
    feed = Feed(using)
    taken = [
        lease(projection, number, using=using, owner=owner) for number in range(state.partitions)
    ]
    held = [each for each in taken if each is not None]
    try:
        if len(held) == len(taken):
            upto = max(each.position for each in held)
            advancers = [Advancer(projection(), each, feed) for each in held]
            for number, advancer in enumerate(advancers):
                while advancer.position < upto and advancer.step(upto):
                    pass
                advancer.stand_at(upto)
                held[number] = advancer.lease
            checkpoints.repartition(
                projection.name, projection.partitions, using=using, owner=owner
            )
    except LeaseLost:
        pass
    finally:
        for each in held:
            checkpoints.release(each)


def retry(
    projection: type[BaseProjection],
    log_id: LogId | None = None,
    *,
    among: Q | None = None,
    by: str = "",
    note: str = "",
    using: str | None = None,
) -> int:
    """
    Make events that are held due; return how many.

    ``among`` chooses some by the fields of ParkedEvent, and ``note`` says which, for people.
    """
    using = projection._using(using)
    with transaction.atomic(using=using):
        count = parking_of(projection, using).try_again(log_id, among)
        if count:
            actions.add(
                projection.name,
                ProjectionAction.RETRIED,
                using=using,
                by=by,
                log_id=log_id,
                count=count,
                note=note,
            )
    return count


def skip(
    projection: type[BaseProjection], log_id: LogId, *, by: str = "", using: str | None = None
) -> bool:
    """Pass over the event that a log is held by; return whether there was one."""
    using = projection._using(using)
    begin(projection, using)
    parking = parking_of(projection, using)
    with checkpoints.locked(projection.name, log_id, using=using) as checkpoint:
        waiting = parking.rows().filter(log_id=log_id, position__lte=checkpoint.position).first()
        if waiting is None:
            return False
        reading = releases.reading_of(projection, using)
        upto = checkpoint.position
        next_one = following(reading, projection.name, log_id, waiting.index, upto, using)
        parking.skip(waiting, next_one)
        actions.add(
            projection.name,
            ProjectionAction.SKIPPED,
            using=using,
            by=by,
            log_id=log_id,
            index=waiting.index,
            count=1,
            note=f"{waiting.type}: {waiting.error}" if waiting.error else waiting.type,
        )
    return True
