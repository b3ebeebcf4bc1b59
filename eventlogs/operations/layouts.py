"""
Changing the layout of a database's tables; ``stores/layouts.py`` says what the layouts are.

Processes of the other layout cannot append from then on (LayoutDiffers): positions of both would
not be in the order of commits. So set ``EVENTLOGS["LAYOUT"]`` and restart all processes at the same
time. What is stored, checkpoints included, stays as it is: positions go on above all that were ever
assigned.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Max

from eventlogs.exceptions import CannotChangeLayout
from eventlogs.feed.sources import has_row_locks
from eventlogs.models import Bucket
from eventlogs.operations import partitioning
from eventlogs.operations.triggers import create_triggers
from eventlogs.stores import layouts
from eventlogs.stores.buckets import last_position_at
from eventlogs.stores.retries import must_retry

LAYOUTS: Final = ("fence", "buckets")

ATTEMPTS: Final = 60  # to get the locks
PAUSE: Final = 2.0  # seconds between two attempts, on average
PATIENCE: Final = 1  # seconds that appends wait behind an attempt
NOT_AVAILABLE: Final = "55P03"  # PostgreSQL's SQLSTATE for a lock that it did not get in time
WAITS: Final = "SET SESSION lock_wait_timeout = %s, SESSION innodb_lock_wait_timeout = %s"
ROOM: Final = 10**13  # positions that are left for a database with a fence
MAX_FENCE: Final = 2**48  # a fence holds a position in as many bits: migration 0003


def change_layout(layout: str, *, using: str, tell: Callable[[], object] = bool) -> bool:
    """
    Give a database another layout, and return whether it was changed.

    It needs the role that owns the tables, and no transaction open. It waits for transactions that
    have appended, for one second at a time, because appends wait meanwhile; ``tell`` is called
    after each time. Raise CannotChangeLayout after about two minutes, or where it cannot be done;
    the tables are as they were then. Interrupted on MariaDB or MySQL, it may leave tables in which
    nobody can append: call it again.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}.")
    connection = connections[using]
    if connection.in_atomic_block:
        raise RuntimeError("Change the layout outside of a transaction.")
    if layouts.is_complete(connection, layout):
        return False
    _check(connection, layout)
    for number in range(ATTEMPTS):
        try:
            _change(connection, layout)
            return True
        except Error as error:
            is_locked = getattr(error.__cause__, "sqlstate", None) == NOT_AVAILABLE
            if not is_locked and not must_retry(error):
                raise
            if number == ATTEMPTS - 1:
                raise CannotChangeLayout(
                    using=using,
                    reason="other transactions have kept the table of events locked for minutes",
                    action="End them, then run this again",
                ) from error
        tell()
        time.sleep(random.uniform(0, 2 * PAUSE))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _change(connection: BaseDatabaseWrapper, layout: str) -> None:
    change = layouts.use_buckets if layout == "buckets" else layouts.use_fence
    with ExitStack() as stack:
        cursor = stack.enter_context(connection.cursor())
        if connection.vendor == "postgresql":
            stack.enter_context(transaction.atomic(using=connection.alias))
            cursor.execute(f"SET LOCAL lock_timeout = '{PATIENCE}s'")
        elif connection.vendor == "mysql":
            cursor.execute("SELECT @@lock_wait_timeout, @@innodb_lock_wait_timeout")
            before = cursor.fetchone()
            stack.callback(cursor.execute, WAITS, before)
            cursor.execute(WAITS, [PATIENCE, PATIENCE])
        change(connection)
        if connection.vendor == "postgresql":
            create_triggers(connection)


def _check(connection: BaseDatabaseWrapper, layout: str) -> None:
    """Raise CannotChangeLayout where something is in the way."""
    using = connection.alias
    if layout == "buckets" and not has_row_locks(connection):
        raise CannotChangeLayout(
            using=using,
            reason="the database cannot leave out rows that others hold (SKIP LOCKED)",
            action="Use PostgreSQL, MariaDB from 10.6 on, MySQL 8 or SQLite",
        )
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        if partitioning.is_begun(cursor):
            raise CannotChangeLayout(
                using=using,
                reason="a copy of the table of events for partitions was begun",
                action="Finish it, or give it up with manage.py eventlogs partition --abandon",
            )
    highest = Bucket.objects.using(using).aggregate(highest=Max("number"))["highest"] or 0
    if layout == "fence" and last_position_at(highest) >= MAX_FENCE - ROOM:
        raise CannotChangeLayout(
            using=using,
            reason=f"its positions are at {last_position_at(highest)}, and a fence goes up to "
            f"{MAX_FENCE}",
            action="Keep the layout with buckets",
        )
