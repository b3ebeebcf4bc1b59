"""
Positions from counters: the layout ``EVENTLOGS["LAYOUT"] = "buckets"``.

Each log is in one of 64 *buckets*, by the last bits of its UUID. A bucket has a counter, one row of
its own. An append raises the counter of its log's bucket in its own transaction, and its events
have the positions ``number * 64 + bucket``, with the numbers that it took. The row's lock is held
until the transaction ends. So in one bucket the order of numbers is the order of commits: whoever
sees the counter at a number sees all events of the bucket up to there, and there will never be
others. That needs nothing but row locks, so it holds on any database that has them, on a replica,
and in every snapshot; ``feed/buckets.py`` has the argument for a reader of all buckets.

The numbers that an append takes are above

- that of its bucket, under the lock: this alone is what the feed needs;
- those of all buckets that its statement can see: an append that began after another one was
  committed has higher positions, whatever their logs are. SQLite, with one writer at a time, needs
  no more than this;
- the time of the database's clock, in 125 µs since 2025: after a restore or a failover that lost
  events, others do not get their positions, so that states and checkpoints of the lost time are
  found out. And positions sort by time, as they do with a sequence. Nothing else depends on the
  clock: one that is slow or set back changes nothing, a fast one leaves a gap. (More than 8,000
  events a second, one after the other, run ahead of it.)

What it costs: an append waits for an open transaction that has appended to *any* log of its bucket,
and two transactions that append to several logs each may be a deadlock, which the database ends:
outside of a transaction the append is run again, inside of one it is TransactionMustRetry. So an
append takes its number last, when nothing can refuse it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.apps import apps
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Max, Q, QuerySet, Sum
from django.utils import timezone

from eventlogs.exceptions import LayoutDiffers, TransactionMustRetry
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.retries import in_transaction

BUCKETS: Final = 64  # a power of two; the tables' positions are made with it

EPOCH: Final = datetime(2025, 1, 1, tzinfo=UTC)
TICK: Final = timedelta(microseconds=125)


def bucket_of(log: UUID) -> int:
    """Return the bucket of a log; the same on every database."""
    return log.int % BUCKETS


def position_at(number: int, bucket: int) -> int:
    """Return the position that a number is in a bucket."""
    return number * BUCKETS + bucket


def last_position_at(number: int) -> int:
    """Return the highest position of a number, that of the last bucket."""
    return position_at(number, BUCKETS - 1)


def number_at(position: int) -> int:
    """Return the number that a position was made of."""
    return position // BUCKETS


def take_positions(using: str, logs: Sequence[UUID]) -> list[int]:
    """
    Take a position for each of some events, given by their logs, in their order.

    Raise LayoutDiffers where the database has no counters.
    """
    # Events of higher and higher buckets share a number: their positions increase all the same.
    places, number, before = [], 0, -1
    for log in logs:
        bucket = bucket_of(log)
        if bucket <= before:
            number += 1
        before = bucket
        places.append((number, bucket))
    first = take_numbers(using, logs, number + 1)
    return [position_at(first + number, bucket) for number, bucket in places]


def take_numbers(using: str, logs: Iterable[UUID], count: int) -> int:
    """
    Take ``count`` numbers in the buckets of some logs, and return the first of them.

    The counters are locked until the caller's transaction ends, in the order of the buckets, so
    that two callers that need several do not deadlock.

    Raise LayoutDiffers where the database has no counters, and TransactionMustRetry in a
    transaction whose snapshot does not show the last number of a bucket. PostgreSQL refuses to
    change such a row; MariaDB before 11.6.2 and MySQL do not. The transaction would see its own
    number, and not the events below it: a feed that it reads would skip them.
    """
    connection, buckets = connections[using], sorted({bucket_of(log) for log in logs})
    rows = _rows(using).filter(bucket__in=buckets)
    no_key = connection.features.has_select_for_no_key_update
    locked = list(
        rows.order_by("bucket").select_for_update(no_key=no_key).values_list("number", UTCNow())
    )
    if len(locked) != len(buckets):
        # The caller has written the log's version already: it must not be committed without events.
        if connection.in_atomic_block:
            connection.set_rollback(True)
        raise LayoutDiffers("fence", using=using)
    numbers, moments = zip(*locked, strict=True)
    ours = Sum("number", filter=Q(bucket__in=buckets))
    visible = _rows(using).aggregate(highest=Max("number"), ours=ours)
    if visible["ours"] != sum(numbers):  # they are only raised
        if connection.in_atomic_block:
            connection.set_rollback(True)
        raise TransactionMustRetry(using=using, sqlstate=None)
    first = 1 + max(visible["highest"], *numbers, _number_of(moments[0]) - 1)
    rows.update(number=first + count - 1)
    note_held(connection, buckets)
    return int(first)


def note_held(connection: BaseDatabaseWrapper, buckets: Iterable[int]) -> None:
    """Note that the open transaction, if there is one, holds the counters of some buckets."""
    if in_transaction(connection):
        held(connection).update(buckets)


def held(connection: BaseDatabaseWrapper) -> set[int]:
    """
    Return the buckets whose counters the open transaction may hold: all that it noted.

    There may be others among them: those of a savepoint that was rolled back, or of an earlier
    transaction. So look which are still behind after all that are free were raised.
    """
    # Django makes a new list of hooks for each transaction, and for each rollback to a savepoint,
    # in the same outermost block. (A decorated function has one block for all its calls.) The
    # references that are kept here have Python give their identities to no others.
    hooks, block = connection.run_on_commit, next(iter(connection.atomic_blocks), None)
    known = connection.__dict__.get("_eventlogs_buckets")
    if known is None or not (known[0] is hooks or (block is not None and known[1] is block)):
        known = connection.__dict__["_eventlogs_buckets"] = (hooks, block, set())
    found: set[int] = known[2]
    return found


def _number_of(moment: datetime) -> int:
    """Return the number that the database's time stands for."""
    if timezone.is_naive(moment):  # where USE_TZ is off, Django reads it in TIME_ZONE
        moment = timezone.make_aware(moment, timezone.get_default_timezone())
    return (moment - EPOCH) // TICK


def _rows(using: str) -> QuerySet[Any]:
    # By name: models import managers, which import stores.
    return QuerySet(apps.get_model("eventlogs", "Bucket"), using=using)
