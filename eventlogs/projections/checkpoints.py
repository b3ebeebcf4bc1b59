"""
Checkpoints and leases: how far each partition of a projection is, and who may move it.

A worker leases a partition before it applies anything. The lease carries a *fencing token*, a
number that each new lease raises. Every transaction of a worker begins with one UPDATE of the
checkpoint, which demands the worker's own token and the position that it believes in. It does
three things at once: it locks the row until the transaction ends, so whoever changes rows of the
partition does so one after the other; it moves the checkpoint, which so commits with the rows;
and it finds nothing where another worker has taken over. So a worker that was paused beyond its
lease changes nothing when it wakes, however late: its token is out of date.

That the lease runs out by the database's clock only decides when others *may* take over. That
nothing is applied twice does not depend on any clock. (The token is the one of Kleppmann,
https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html.)

A worker that is paused in the middle of a transaction would keep the row locked. PostgreSQL ends
such a session (``idle_in_transaction_session_timeout``, set for the transaction alone), which
takes everything back that it did. Likewise it breaks off a statement that takes longer than the
lease (``statement_timeout``): it goes on when its worker has been killed, with the row locked.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeVar

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Min, Q
from django.db.models.functions import Now

from eventlogs.exceptions import ProjectionUnavailable
from eventlogs.feed.sources import partition_of
from eventlogs.ids import LogId
from eventlogs.models import Checkpoint, ParkedEvent, ProjectionState
from eventlogs.stores.retries import run_again

T = TypeVar("T")


def _host() -> str:
    """Return a name for what process ids are unique in: containers may share a host's name."""
    inside = ""
    with suppress(OSError):
        inside = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        inside += str(Path("/proc/self/ns/pid").readlink())
    mark = blake2b(inside.encode(), digest_size=4).hexdigest() if inside else ""
    return f"{socket.gethostname()[:50]}{'.' if mark else ''}{mark}"


HOST: Final = _host()
LOOKS: Final = 3  # at checkpoints that are being replaced
GRACE: Final = 2.0  # seconds that a lease outlasts what its holder may take for one step


# The session of a client that says nothing ends, and so does a statement, whose client may have
# been killed: the server would not notice before its end. A shorter limit for statements stays.
LIMITS = """
SELECT set_config('idle_in_transaction_session_timeout', %(limit)s, true),
       set_config('statement_timeout', CASE
           WHEN current_setting('statement_timeout')::interval
                BETWEEN interval '1 ms' AND %(interval)s::interval
           THEN current_setting('statement_timeout') ELSE %(limit)s END, true)
"""


class LeaseLost(Exception):
    """Another worker has the partition by now; nothing of the transaction is stored."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to move one checkpoint, as long as nobody has a higher token."""

    using: str
    pk: int
    projection: str
    is_rebuild: bool
    partition: int
    partitions: int
    token: int
    position: int
    seconds: float  # how long it lasts each time it is renewed
    renewed_at: float  # time.monotonic(), before it was
    was_abandoned: bool = False  # the holder before did not give it back: it may have crashed

    @property
    def is_half_over(self) -> bool:
        """Whether it is time to renew it."""
        return time.monotonic() - self.renewed_at > self.seconds / 2

    @property
    def part(self) -> tuple[int, int] | None:
        """The partition as the feed wants it."""
        return None if self.partitions == 1 else (self.partition, self.partitions)


def new_owner() -> str:
    """Return a name for a worker that tells a person where it is; no other one has it."""
    return f"{HOST}:{os.getpid()}:{secrets.token_hex(4)}"


def is_dead(owner: str) -> bool:
    """
    Return whether a worker is known to be gone: it ran on this machine, and runs no more.

    To be wrong (machines that share a name) costs work, and nothing else: see the token.
    """
    host, _, rest = owner.rpartition(":")[0].rpartition(":")
    if host != HOST or not rest.isdigit():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def is_live(row: Checkpoint, *, using: str) -> bool:
    """Return whether a worker has a lease on a checkpoint, and may be at work."""
    leased = Checkpoint.objects.using(using).filter(pk=row.pk, leased_until__gte=Now())
    return not is_dead(row.owner) and leased.exists()


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

    ``start`` is asked for the position to begin behind, only then.
    """
    state = state_of(name, using)
    if state is not None:
        return state
    position = start()
    fresh = ProjectionState(name=name, version=version, mode=mode, partitions=partitions)

    def begin() -> ProjectionState:
        states = ProjectionState.objects.using(using)
        # Whoever is second waits here for the first one, and then finds its rows.
        states.bulk_create([fresh], ignore_conflicts=True)
        state = states.get(name=name)
        add_checkpoints(name, using=using, partitions=state.partitions, position=position)
        return state

    return _transact(using, begin)


def become_inline(name: str, *, using: str) -> None:
    """Let a projection be inline from now on: who applies its events from the feed stops."""

    def become() -> None:
        lock_all(name, using=using)
        rows = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
        rows.update(token=F("token") + 1, owner="", leased_until=None)
        ProjectionState.objects.using(using).filter(name=name).update(mode="inline")

    _transact(using, become)


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
    """Return the position up to which all partitions are; 0 at first."""
    found = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
    return found.aggregate(lowest=Min("position"))["lowest"] or 0


def positions(name: str, using: str) -> dict[int, int]:
    """Return the position of each partition."""
    found = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
    return dict(found.values_list("partition", "position"))


def acquire(
    name: str,
    number: int,
    *,
    using: str,
    owner: str,
    seconds: float,
    is_rebuild: bool = False,
) -> Lease | None:
    """
    Lease a partition for ``seconds``, or return None where another worker has it.

    A worker that is known to be dead has no lease any more. A partition whose row is locked is at
    work, whatever its lease says: nobody waits for it.
    """
    renewed_at = time.monotonic()
    rows = Checkpoint.objects.using(using).filter(
        projection=name, is_rebuild=is_rebuild, partition=number
    )
    dead = [each for each in rows.values_list("owner", flat=True) if is_dead(each)]
    free = rows.filter(
        Q(leased_until=None) | Q(leased_until__lt=Now()) | Q(owner__in=[owner, *dead])
    )
    skip_locked = connections[using].features.has_select_for_update_skip_locked

    def take() -> Checkpoint | None:
        row = free.select_for_update(skip_locked=skip_locked).first()
        if row is not None:
            rows.update(
                token=F("token") + 1, owner=owner, leased_until=Now() + timedelta(seconds=seconds)
            )
        return row

    row = _transact(using, take)
    if row is None:
        return None
    return Lease(
        using=using,
        pk=row.pk,
        projection=name,
        is_rebuild=is_rebuild,
        partition=number,
        partitions=row.partitions,
        token=row.token + 1,
        position=row.position,
        seconds=seconds,
        renewed_at=renewed_at,
        was_abandoned=row.owner != "",
    )


def move(lease: Lease, position: int, **figures: Any) -> Lease:
    """
    Move a checkpoint (or leave it where it is), lock it and renew its lease.

    It belongs at the beginning of a transaction. Raise LeaseLost where it is another's by now.
    """
    renewed_at = time.monotonic()
    changed = _mine(lease).update(
        position=position, leased_until=Now() + timedelta(seconds=lease.seconds), **figures
    )
    if not changed:
        raise LeaseLost(lease.projection)
    return replace(lease, position=position, renewed_at=renewed_at)


def count(lease: Lease, events: int) -> None:
    """Add to the number of events that were applied. It belongs behind ``move``."""
    Checkpoint.objects.using(lease.using).filter(pk=lease.pk).update(applied=F("applied") + events)


def abandon(lease: Lease) -> None:
    """Let others have a lease at once, and know that it was not given back in good order."""
    rows = Checkpoint.objects.using(lease.using).filter(pk=lease.pk, token=lease.token)
    rows.update(leased_until=None)


def release(lease: Lease, position: int | None = None) -> None:
    """
    Give a lease back, at a position up to which there was nothing to apply.

    The position is never lowered: what is above it is applied.
    """
    reached = lease.position if position is None else max(lease.position, position)
    given_back = _mine(lease).update(owner="", leased_until=None, position=reached)
    if not given_back:
        # It may stand elsewhere than we believe, where a transaction was taken back.
        rows = Checkpoint.objects.using(lease.using).filter(pk=lease.pk, token=lease.token)
        rows.update(owner="", leased_until=None)


@contextmanager
def fenced(lease: Lease, position: int | None = None, **figures: Any) -> Iterator[Lease]:
    """
    Open a transaction that moves the checkpoint, and give the lease as it is after it.

    The new lease holds only once the block has ended well. Raise LeaseLost as ``move`` does.
    """
    connection = connections[lease.using]
    alone = not connection.in_atomic_block
    with transaction.atomic(using=lease.using):
        if alone and connection.vendor == "postgresql":
            limit_standstill(lease.using, lease.seconds)
        yield move(lease, lease.position if position is None else position, **figures)


def limit_standstill(using: str, seconds: float) -> None:
    """Let PostgreSQL end what stands still for so long in this transaction."""
    limit = str(max(1, round(seconds * 1000)))
    with connections[using].cursor() as cursor:
        cursor.execute(LIMITS, {"limit": limit, "interval": f"{limit} ms"})


@contextmanager
def locked(name: str, log_id: LogId, *, using: str) -> Iterator[Checkpoint]:
    """
    Lock the checkpoint of a log's partition in a transaction, lease or no lease, and give its row.

    For who changes rows beside a worker: the worker's next transaction waits, and loads its
    rows after it.

    Raise ProjectionUnavailable where checkpoints are replaced again and again meanwhile.
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

    The state comes first, as where a release declares itself.
    """
    ProjectionState.objects.using(using).filter(name=name).update(version=F("version"))
    rows = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
    found = list(rows.order_by("partition").select_for_update())
    rows.update(position=F("position"))  # SQLite has no other way to lock
    return found


def repartition(name: str, partitions: int, *, using: str, owner: str) -> bool:
    """
    Divide a projection anew; return False where its partitions are not all at one position.

    It needs all checkpoints to be free or ``owner``'s, and takes their leases away.
    """

    def divide() -> bool:
        found = lock_all(name, using=using)
        rows = Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False)
        taken = rows.exclude(owner="").exclude(owner=owner).filter(leased_until__gte=Now())
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

    return _transact(using, divide)


def forget_rebuild(name: str, *, using: str) -> None:
    """Remove the checkpoints and parked events of a rebuild."""
    Checkpoint.objects.using(using).filter(projection=name, is_rebuild=True).delete()
    ParkedEvent.objects.using(using).filter(projection=name, is_rebuild=True).delete()


def _transact(using: str, work: Callable[[], T]) -> T:
    """Do ``work`` in a transaction, again where the database gives it up."""

    def attempt(_: BaseDatabaseWrapper) -> T:
        with transaction.atomic(using=using):
            return work()

    return run_again(using, attempt)


def _mine(lease: Lease) -> Any:
    return Checkpoint.objects.using(lease.using).filter(
        pk=lease.pk, token=lease.token, position=lease.position
    )
