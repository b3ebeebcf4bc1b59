"""
Leases: which worker may move a checkpoint.

A worker leases a partition before it applies anything. The lease carries a *fencing token*, a
number that each new lease raises. Every transaction of a worker begins with one UPDATE of the
checkpoint, whose condition is the worker's own token and the position that it knows. The UPDATE
does three things at once: it locks the row until the transaction ends, so transactions that
change rows of the partition run one after the other; it moves the checkpoint, which is thereby
committed with the rows; and it finds no row where another worker has taken over. So a worker
that was paused for longer than its lease changes nothing when it continues: its token is out of
date.

The lease expires by the database's clock. That only decides when another worker *may* take over.
That no event is applied twice does not depend on any clock. (The token is the one of Kleppmann,
https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html.)

A worker that is paused in the middle of a transaction would keep the row locked. PostgreSQL ends
such a session (``idle_in_transaction_session_timeout``, set for the transaction alone) and rolls
its transaction back. It also cancels a statement that takes longer than the lease
(``statement_timeout``): the server would finish it after its worker was killed, with the row
locked. MariaDB has the same limits for a session (``idle_transaction_timeout``,
``max_statement_time``): they are set before the transaction, and set back after it. MySQL and
SQLite have none.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Q

from eventlogs.models import Checkpoint
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.retries import run_in_transaction, undivided


def _host() -> str:
    """Return a name of this host's process ids: containers may share a host's name."""
    inside = ""
    with suppress(OSError):
        inside = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        inside += str(Path("/proc/self/ns/pid").readlink())
    mark = blake2b(inside.encode(), digest_size=4).hexdigest() if inside else ""
    return f"{socket.gethostname()[:50]}{'.' if mark else ''}{mark}"


HOST: Final = _host()
GRACE: Final = 2.0  # seconds that a lease outlasts what its holder may take for one step


# Both limits, because the server does not notice before the end of a statement that its client
# was killed. A shorter limit for statements stays.
LIMITS = """
SELECT set_config('idle_in_transaction_session_timeout', %(limit)s, true),
       set_config('statement_timeout', CASE
           WHEN current_setting('statement_timeout')::interval
                BETWEEN interval '1 ms' AND %(interval)s::interval
           THEN current_setting('statement_timeout') ELSE %(limit)s END, true)
"""
# The same for MariaDB: before the transaction, and after it. In whole seconds.
MARIADB_LIMITS = """
SET @eventlogs_idle = @@SESSION.idle_transaction_timeout,
    @eventlogs_longest = @@SESSION.max_statement_time,
    SESSION idle_transaction_timeout = %(limit)s,
    SESSION max_statement_time = IF(@@SESSION.max_statement_time > 0,
                                    LEAST(@@SESSION.max_statement_time, %(limit)s), %(limit)s)
"""
MARIADB_OWN = """
SET SESSION idle_transaction_timeout = @eventlogs_idle,
    SESSION max_statement_time = @eventlogs_longest
"""


class LeaseLost(Exception):
    """Another worker has the partition by now; nothing of the transaction is stored."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to move one checkpoint, as long as no other lease has a higher token."""

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
    """Return a unique name for a worker, with its host and process id."""
    return f"{HOST}:{os.getpid()}:{secrets.token_hex(4)}"


def is_dead(owner: str) -> bool:
    """
    Return whether a worker is known to be gone: it ran on this machine, and runs no more.

    A wrong answer (machines that share a name) costs only extra work, because of the token.
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
    leased = Checkpoint.objects.using(using).filter(pk=row.pk, leased_until__gte=UTCNow())
    return not is_dead(row.owner) and leased.exists()


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

    A worker that is known to be dead has no lease any more. A partition whose row is locked is in
    use, whatever its lease says: return None at once, without a wait.
    """
    renewed_at = time.monotonic()
    rows = Checkpoint.objects.using(using).filter(
        projection=name, is_rebuild=is_rebuild, partition=number
    )
    dead = [each for each in rows.values_list("owner", flat=True) if is_dead(each)]
    free = rows.filter(
        Q(leased_until=None) | Q(leased_until__lt=UTCNow()) | Q(owner__in=[owner, *dead])
    )
    skip_locked = connections[using].features.has_select_for_update_skip_locked

    def take() -> Checkpoint | None:
        row = free.select_for_update(skip_locked=skip_locked).first()
        if row is not None:
            rows.update(
                token=F("token") + 1,
                owner=owner,
                leased_until=UTCNow() + timedelta(seconds=seconds),
            )
        return row

    row = run_in_transaction(using, take)
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

    Call it at the beginning of a transaction. Raise LeaseLost where another worker has the lease.
    """
    renewed_at = time.monotonic()
    changed = own_checkpoint(lease).update(
        position=position, leased_until=UTCNow() + timedelta(seconds=lease.seconds), **figures
    )
    if not changed:
        raise LeaseLost(lease.projection)
    return replace(lease, position=position, renewed_at=renewed_at)


def count(lease: Lease, events: int) -> None:
    """Add to the number of events that were applied. Call it after ``move``."""
    Checkpoint.objects.using(lease.using).filter(pk=lease.pk).update(applied=F("applied") + events)


def abandon(lease: Lease) -> None:
    """Let others have a lease at once; they see that it was not given back in good order."""
    rows = Checkpoint.objects.using(lease.using).filter(pk=lease.pk, token=lease.token)
    rows.update(leased_until=None)


def release(lease: Lease, position: int | None = None) -> None:
    """
    Give a lease back, at a position up to which there was nothing to apply.

    The position is never lowered: what is above it is applied.
    """
    reached = lease.position if position is None else max(lease.position, position)
    given_back = own_checkpoint(lease).update(owner="", leased_until=None, position=reached)
    if not given_back:
        # The checkpoint may be at another position, where a transaction was rolled back.
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
    around = limited_session if alone and is_mariadb(connection) else nullcontext
    with around(lease), undivided(lease.using):
        if alone and connection.vendor == "postgresql":
            limit_idle_time(lease.using, lease.seconds)
        yield move(lease, lease.position if position is None else position, **figures)


def limit_idle_time(using: str, seconds: float) -> None:
    """Set idle_in_transaction_session_timeout and statement_timeout for this transaction."""
    limit = str(max(1, round(seconds * 1000)))
    with connections[using].cursor() as cursor:
        cursor.execute(LIMITS, {"limit": limit, "interval": f"{limit} ms"})


def is_mariadb(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a database is MariaDB, and not MySQL."""
    return bool(getattr(connection, "mysql_is_mariadb", False))


@contextmanager
def limited_session(lease: Lease) -> Iterator[None]:
    """Set idle_transaction_timeout and max_statement_time of MariaDB for the block."""
    connection = connections[lease.using]
    with connection.cursor() as cursor:
        cursor.execute(MARIADB_LIMITS, {"limit": max(1, math.ceil(lease.seconds))})
    raw = connection.connection
    try:
        yield
    finally:
        if connection.connection is raw:
            with suppress(Error), connection.cursor() as cursor:  # it may be lost
                cursor.execute(MARIADB_OWN)


def own_checkpoint(lease: Lease) -> Any:
    return Checkpoint.objects.using(lease.using).filter(
        pk=lease.pk, token=lease.token, position=lease.position
    )
