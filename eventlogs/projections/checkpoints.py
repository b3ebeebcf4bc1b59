"""
Checkpoints: how far each partition of a projection is, and the stored state of the projection.

``leases.py`` says which worker may move one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from django.db import transaction
from django.db.models import F, Min

from eventlogs.exceptions import ProjectionUnavailable
from eventlogs.feed.sources import partition_of
from eventlogs.ids import LogId
from eventlogs.models import Checkpoint, ParkedEvent, ProjectionState
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.retries import run_in_transaction

T = TypeVar("T")

LOOKS: Final = 3  # tries to lock checkpoints that a rebuild replaces at the same time


def state_of(name: str, using: str) -> ProjectionState | None:
    """Return the state of a projection, or None where it has never run."""
    return ProjectionState.objects.using(using).filter(name=name).first()


def ensure(
    name: str,
    *,
    using: str,
    version: int,
    mode: str,
    partitions: int,
    start: Callable[[], int] = int,
) -> ProjectionState:
    """
    Return the state of a projection, made with its checkpoints where there is none yet.

    ``start`` returns the position after which to begin; it is called only if there is none yet.
    """
    state = state_of(name, using)
    if state is not None:
        return state
    position = start()
    fresh = ProjectionState(name=name, version=version, mode=mode, partitions=partitions)

    def begin() -> ProjectionState:
        states = ProjectionState.objects.using(using)
        # A second process waits here for the first one, and then finds its rows.
        states.bulk_create([fresh], ignore_conflicts=True)
        state = states.get(name=name)
        add_checkpoints(name, using=using, partitions=state.partitions, position=position)
        return state

    return run_in_transaction(using, begin)


def become_inline(name: str, *, using: str) -> None:
    """Make a projection inline; workers that apply its events from the feed lose their leases."""

    def become() -> None:
        lock_all(name, using=using)
        rows = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
        rows.update(token=F("token") + 1, owner="", leased_until=None)
        ProjectionState.objects.using(using).filter(name=name).update(mode="inline")

    run_in_transaction(using, become)


def add_checkpoints(
    name: str, *, using: str, partitions: int, is_rebuild: bool = False, position: int = 0
) -> None:
    """Add the checkpoints of all partitions that are missing."""
    Checkpoint.objects.using(using).bulk_create(
        [
            Checkpoint(
                projection=name,
                is_rebuild=is_rebuild,
                partition=number,
                partitions=partitions,
                position=position,
            )
            for number in range(partitions)
        ],
        ignore_conflicts=True,
    )


def position(name: str, using: str) -> int:
    """Return the position of the partition that is furthest behind; 0 at first."""
    found = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
    return found.aggregate(lowest=Min("position"))["lowest"] or 0


def positions(name: str, using: str) -> dict[int, int]:
    """Return the position of each partition."""
    found = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
    return dict(found.values_list("partition", "position"))


@contextmanager
def locked(name: str, log_id: LogId, *, using: str) -> Iterator[Checkpoint]:
    """
    Lock the checkpoint of a log's partition in a transaction, leased or not, and yield its row.

    Changes of rows beside a worker need this lock: the worker's next transaction waits for it,
    and loads its rows afterwards.

    Raise ProjectionUnavailable where a rebuild replaces the checkpoints three times meanwhile.
    """
    with transaction.atomic(using=using):
        for _ in range(LOOKS):
            state = ProjectionState.objects.using(using).get(name=name)
            rows = Checkpoint.objects.using(using).filter(
                projection=name,
                is_rebuild=False,
                partition=partition_of(log_id.uuid, state.partitions),
                partitions=state.partitions,
            )
            # None is found where a rebuild has just put others in their places.
            if rows.update(position=F("position")):
                yield rows.get()
                return
        raise ProjectionUnavailable("busy", projection=name)


def lock_all(name: str, *, using: str) -> list[Checkpoint]:
    """
    Lock a projection's state and all of its checkpoints, in order, until the transaction ends.

    The state is locked first, as it is when a release declares itself.
    """
    ProjectionState.objects.using(using).filter(name=name).update(version=F("version"))
    rows = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
    found = list(rows.order_by("partition").select_for_update())
    rows.update(position=F("position"))  # SQLite has no other way to lock
    return found


def repartition(name: str, partitions: int, *, using: str, owner: str) -> bool:
    """
    Change the number of partitions; return False where they are not all at one position.

    All checkpoints must be free or leased by ``owner``; their leases end.
    """

    def divide() -> bool:
        found = lock_all(name, using=using)
        rows = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
        taken = rows.exclude(owner="").exclude(owner=owner).filter(leased_until__gte=UTCNow())
        if len({each.position for each in found}) != 1 or taken.exists():
            return False
        applied = sum(each.applied for each in found)
        tokens = max(each.token for each in found)
        rows.delete()
        add_checkpoints(name, using=using, partitions=partitions, position=found[0].position)
        # Higher than any token that was given out, for a worker that still holds one.
        rows.update(token=tokens + 1)
        rows.filter(partition=0).update(applied=applied)
        ProjectionState.objects.using(using).filter(name=name).update(partitions=partitions)
        return True

    return run_in_transaction(using, divide)


def forget_rebuilds(using: str) -> None:
    """Do what ``forget_rebuild`` does, for all projections: those that run begin anew."""
    Checkpoint.objects.using(using).filter(is_rebuild=True).delete()
    ParkedEvent.objects.using(using).filter(is_rebuild=True).delete()


def forget_rebuild(name: str, *, using: str) -> None:
    """Remove the checkpoints and parked events of a rebuild."""
    Checkpoint.objects.using(using).filter(projection=name, is_rebuild=True).delete()
    ParkedEvent.objects.using(using).filter(projection=name, is_rebuild=True).delete()
