"""
Deliberately broken versions of projections: each lacks one part that keeps read models right.

Each function breaks its process. The campaigns must find the defect of each; a test that
cannot fail proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

from django.db import connection, transaction
from django.db.models import F
from django.utils.module_loading import import_string

from eventlogs.feed.sources import BY_VENDOR, Watermark
from eventlogs.models import Checkpoint, EventLog
from eventlogs.projections import (
    checkpoints,
    inline,
    inline_bulk,
    leases,
    partitions,
    rebuild,
    workers,
)
from eventlogs.projections.batches import Advancer
from eventlogs.projections.held_logs import HeldLogs
from eventlogs.projections.reactions import Reactions
from tests.overriding import override
from tests.processes.stops import passing


def rows_and_checkpoint_apart() -> None:
    """Rows are committed, and then, in another transaction, the checkpoint."""

    @contextmanager
    def apart(lease: Any, position: Any = None, **figures: Any) -> Iterator[Any]:
        reached = lease.position if position is None else position
        with transaction.atomic():
            yield replace(lease, position=reached)
        passing("between the commits")
        with transaction.atomic():
            leases.move(lease, reached, **figures)

    override(partitions, fenced=apart)


def reacts_afterwards() -> None:
    """A reactor is called when the checkpoint has moved: at most once."""
    original = Reactions.before_transaction

    def later(self: Reactions, row: Any) -> Any:
        advancing_past = self.partition.transact(lambda lease: None, row.position)
        return advancing_past or original(self, row)

    override(Reactions, before_transaction=later)


def without_fencing_token() -> None:
    """A worker moves a checkpoint even if it has lost its lease."""
    leases.own_checkpoint = lambda lease: Checkpoint.objects.filter(pk=lease.pk)


def without_limit_of_idleness() -> None:
    """A transaction that stalls is not ended."""
    leases.limit_idle_time = lambda using, seconds: None
    override(leases, limited_session=nullcontext)


def without_crash_detection() -> None:
    """The death of the previous worker is ignored."""
    original = leases.acquire

    def acquire(*args: Any, **options: Any) -> Any:
        taken = original(*args, **options)
        return taken and replace(taken, was_abandoned=False)

    leases.acquire = acquire


def without_holding() -> None:
    """The later events of a log do not wait for the one that is parked."""
    override(HeldLogs, held=lambda self, among=None: set())


def rebuilds_in_place() -> None:
    """A rebuild empties the table and starts from the beginning."""

    def steps(self: Any, *, restart: bool) -> Any:
        yield from ()
        with transaction.atomic():
            checkpoints.lock_all(self._cls.name, using=self._using)
            self._cls.model.objects.all().delete()
            rows = Checkpoint.objects.filter(projection=self._cls.name)
            rows.update(position=0, token=F("token") + 1, owner="", leased_until=None)
        return 1

    override(rebuild._ShadowRebuild, steps=steps)


def swaps_as_it_is() -> None:
    """A swap omits events that came after the rebuild had caught up."""
    original = Advancer.step

    def step(self: Advancer, upto: int | None = None) -> bool:
        return False if upto is not None else original(self, upto)

    override(Advancer, step=step)


def without_leases() -> None:
    """Every worker takes every partition, without a lease."""

    def acquire(name: str, number: int, *, using: str, owner: str, seconds: float) -> Any:
        row = Checkpoint.objects.get(projection=name, is_rebuild=False, partition=number)
        return leases.Lease(
            using=using,
            pk=row.pk,
            projection=name,
            is_rebuild=False,
            partition=number,
            partitions=row.partitions,
            token=row.token,
            position=row.position,
            seconds=seconds,
            renewed_at=time.monotonic(),
        )

    without_fencing_token()
    override(leases, acquire=acquire)
    workers.divided = lambda places, shares: dict.fromkeys(places, mock.ANY)


def without_lock_of_the_log() -> None:
    """A sweep reads the version of a log without a lock against appends."""

    def versions(log_ids: Any, using: str) -> dict[Any, int]:
        logs = EventLog.objects.filter(pk__in=[each.uuid for each in log_ids])
        return {log.log_id: log.version for log in logs}

    inline.lock_log = lambda log_id, using: versions([log_id], using)[log_id]
    inline_bulk.lock_free = versions


def without_applied_versions() -> None:
    """An append applies only its own events, even if the row lacks earlier ones."""
    original = inline._apply

    def apply(*args: Any, upto: int, since: int | None = None, **options: Any) -> None:
        if since is not None:
            projection, log_id, using = args
            inline.note(projection, log_id, since, using, made_by=projection.version)
        original(*args, upto=upto, since=since, **options)

    inline._apply = apply


def waits_for_every_transaction() -> None:
    """An event is settled when no transaction is open that is older than it."""

    def watermark(self: Any) -> Watermark:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT coalesce(max(position), 0), coalesce(max(position) FILTER (WHERE"
                " xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint), 0)"
                " FROM eventlogs_event"
            )
            return Watermark(*cursor.fetchone())

    import_string(BY_VENDOR["postgresql"]).watermark = watermark
