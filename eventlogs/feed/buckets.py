"""
The feed of the layout with buckets: right on any database with row locks, and on its replicas.

``stores/buckets.py`` says where positions come from. For a reader that means:

1. Read all counters in one statement. Let n be the lowest number.
2. Read the events with a position of at most ``n * 64 + 63``.

Let p be the position of an event at or below that, of a bucket whose counter was read as c, n <= c.
An append takes p under the lock of the counter, and holds the lock until its transaction ends. It
raises the counter to at least p's number. If its transaction had been committed later than the one
that has raised the counter to c, it would have taken the lock later, and read c or more: its number
would be above c. So it was committed before, or by that very transaction, or it was rolled back. A
snapshot that shows c, or a later one, shows the event; and none can appear any more. On a replica
both statements see what the primary has committed, in its order, so the same holds there.

The lowest number would be that of the bucket that rests longest. So a reader first raises the
counters of resting buckets to the highest number that is committed. A counter that a transaction
holds is left out (SKIP LOCKED): nobody waits, and the feed waits for that transaction, as it does
with the fence. Raising a counter takes its lock, so an append takes higher numbers after it; it is
committed before the events are read, so that it is not lost again. A reader that may not write, as
on a replica, reads up to what others have raised.

Inside a transaction of the caller, a raise would hold the counters until its end, and appends would
wait. There another connection raises them. Those that are behind afterwards, and that the
transaction has raised itself by its own appends, are raised in it: it holds them anyway, and reads
its own events, as any query does. In a snapshot (REPEATABLE READ) they are not.

A replica must not be written to: its rows have no locks of the primary's transactions, and a raise
there would pass them. PostgreSQL sees to that. MariaDB and MySQL do where ``read_only`` is on, and
for roles that may write all the same, this module looks at it. A subscription of PostgreSQL's
logical replication is refused for the same reason.

SQLite has one writer at a time, and takes numbers above those of all buckets: the highest one is
settled, and nothing needs to be raised (``sources.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, Max, Min

from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.sources import FeedHolder, FeedSource, RowFeedSource, Watermark
from eventlogs.stores.buckets import BUCKETS, held, last_position_at
from eventlogs.stores.retries import in_transaction, run_again

# SQLSTATEs, and error numbers of MariaDB and MySQL, of a session that may not write there.
MAY_NOT_WRITE: Final = {"42501", "25006", 1142, 1143, 1290, 1792, 1836}


logger = logging.getLogger(__name__)

RAISE: Final = """
WITH resting AS MATERIALIZED (
    SELECT bucket FROM eventlogs_bucket WHERE number < %s
    ORDER BY bucket FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE eventlogs_bucket AS counter SET number = greatest(counter.number, %s)
FROM resting WHERE counter.bucket = resting.bucket
"""
RESTING: Final = "SELECT bucket FROM eventlogs_bucket WHERE number < %s FOR UPDATE SKIP LOCKED"
FREE: Final = "SELECT bucket FROM eventlogs_bucket FOR UPDATE SKIP LOCKED"
# Of the next transaction. An UPDATE of many rows looks at all of them: under REPEATABLE READ it
# waits for those that others hold (dev.mysql.com/doc/refman/8.4/en/innodb-locks-set.html).
LEVEL: Final = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
RAISE_SOME: Final = "UPDATE eventlogs_bucket SET number = %s WHERE bucket IN ({}) AND number < %s"


class Numbers(NamedTuple):
    """What a statement has found in the counters."""

    counters: int
    lowest: int
    highest: int
    is_replica: bool = False
    is_snapshot: bool = False  # of a transaction, whose statements all see what its first one saw


class Counters(FeedSource):
    """What the sources of feeds with buckets have in common: how far they are settled."""

    def watermark(self) -> Watermark:
        numbers = self.numbers()
        is_replica = numbers.is_replica
        if numbers.lowest < numbers.highest and not is_replica:
            is_replica = not self._raise_counters(numbers)
            numbers = self.numbers()
        return Watermark(
            last_position_at(numbers.highest),
            last_position_at(numbers.lowest),
            is_replica=is_replica,
            is_snapshot=numbers.is_snapshot,
        )

    def refusals(self) -> list[str]:
        try:
            self.numbers()
        except FeedUnavailable as refusal:
            return [refusal.reason]
        return []

    def numbers(self) -> Numbers:
        """Return the lowest and the highest number, in one statement; raise FeedUnavailable."""
        rows = self.rows("Bucket")
        look = run_again(
            self.using, lambda _: rows.aggregate(Count("pk"), Min("number"), Max("number"))
        )
        return self.checked(Numbers(*look.values()))

    def checked(self, numbers: Numbers) -> Numbers:
        """Return what was found, if all counters were."""
        if numbers.counters != BUCKETS:
            raise FeedUnavailable("layout", using=self.using)
        return numbers

    def _raise_counters(self, numbers: Numbers) -> bool:
        """Raise the counters that nobody holds; return whether this session may do that."""
        connection = connections[self.using]
        try:
            if not self.is_in_transaction():
                run_again(self.using, raise_counters, numbers.highest)
            elif _raise_apart(connection, numbers.highest) and not numbers.is_snapshot:
                self._raise_own(held(connection), numbers.highest)
        except Error as error:
            if _code(error) in MAY_NOT_WRITE:
                return False
            raise
        return True

    def _raise_own(self, own: set[int], number: int) -> None:
        """Raise the counters that the open transaction holds itself, after all that were free."""
        rows = self.rows("Bucket")
        # Not by the locking read: MariaDB would keep the locks of rows that are not behind, too.
        behind = rows.filter(bucket__in=own, number__lt=number)
        shown = dict(behind.values_list("pk", "number")) if own else {}
        if shown:
            # Not all that were noted need be ours: wait for nobody.
            locked = rows.filter(pk__in=shown).select_for_update(skip_locked=True)
            free = locked.values_list("pk", "number")
            # None of which this transaction does not see the events: see take_numbers().
            ours = [bucket for bucket, found in free if found == shown[bucket]]
            rows.filter(pk__in=ours).update(number=number)

    def is_in_transaction(self) -> bool:
        """Return whether a transaction is open on the connection."""
        return in_transaction(connections[self.using])


class BucketFeedSource(Counters, RowFeedSource):
    """The feed of a database whose positions come from counters."""

    def holding_back(self) -> list[FeedHolder]:
        """
        Return a holder for each bucket that another transaction holds.

        Which transaction it is cannot be known from a row lock: only the position is there.
        """
        connection = connections[self.using]
        try:
            with _apart(connection) as apart:
                free = free_buckets(apart)
        except Error as error:
            if _code(error) in MAY_NOT_WRITE:
                return []  # it cannot tell a counter that is held from one that rests
            raise
        held_here = held(connection) if self.is_in_transaction() else set()
        taken = self.rows("Bucket").exclude(bucket__in={*free, *held_here})
        return [
            FeedHolder(last_position_at(number), None, None, None, None, None, None, None)
            for number in taken.order_by("number", "bucket").values_list("number", flat=True)
        ]

    def numbers(self) -> Numbers:
        connection: Any = connections[self.using]
        if connection.vendor != "mysql":
            return super().numbers()
        isolation = "tx_isolation" if connection.mysql_is_mariadb else "transaction_isolation"
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT @@global.read_only, @@{isolation}")
            is_replica, level = cursor.fetchone()
        inside = self.is_in_transaction()
        # The one shows numbers that are not committed, the other waits for those who hold them.
        if level == "READ-UNCOMMITTED" or (inside and level == "SERIALIZABLE"):
            raise FeedUnavailable("isolation", using=self.using)
        is_snapshot = inside and level == "REPEATABLE-READ"
        return super().numbers()._replace(is_replica=bool(is_replica), is_snapshot=is_snapshot)


def raise_counters(connection: BaseDatabaseWrapper, number: int) -> None:
    """
    Raise all counters that no transaction holds to a number, and commit.

    The connection has no transaction open. What is locked is read in its newest version, so a
    counter that is higher by now stays as it is.
    """
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(RAISE, [number, number])
            return
        cursor.execute(LEVEL)
        cursor.execute("START TRANSACTION")
        try:
            cursor.execute(RESTING, [number])
            resting = [bucket for (bucket,) in cursor.fetchall()]
            if resting:
                places = ", ".join(["%s"] * len(resting))
                cursor.execute(RAISE_SOME.format(places), [number, *resting, number])
            cursor.execute("COMMIT")
        except BaseException:
            with suppress(Error):
                cursor.execute("ROLLBACK")
            raise


def free_buckets(connection: BaseDatabaseWrapper) -> list[int]:
    """Return the buckets whose counters no transaction holds; the connection has none open."""
    with connection.cursor() as cursor:
        cursor.execute("START TRANSACTION")
        try:
            cursor.execute(FREE)
            return [bucket for (bucket,) in cursor.fetchall()]
        finally:
            cursor.execute("ROLLBACK")


@contextmanager
def _apart(connection: BaseDatabaseWrapper) -> Iterator[BaseDatabaseWrapper]:
    """Open another connection to the same database, with no part in the caller's transaction."""
    apart: Any = connection.copy()
    # Not from the pool: all of its connections may be in transactions that read, and wait for one.
    apart.settings_dict.get("OPTIONS", {}).pop("pool", None)
    tenant = getattr(connection, "tenant", None)
    if tenant is not None:  # django-tenants: its schema is set for each connection
        apart.set_tenant(tenant)
    try:
        yield apart
    finally:
        apart.close()


def _raise_apart(connection: BaseDatabaseWrapper, number: int) -> bool:
    """
    Raise the counters by another connection, so that the caller's transaction holds none.

    Return whether that was done.
    """
    try:
        with _apart(connection) as apart:
            raise_counters(apart, number)
    except Error:
        # The caller's transaction is not touched: it reads up to what others have raised.
        logger.debug("The counters could not be raised beside a transaction.", exc_info=True)
        return False
    return True


def _code(error: Error) -> object:
    return getattr(error.__cause__, "sqlstate", None) or (error.args[0] if error.args else None)
