"""The steps of partitioning, in their order, and giving a copy up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.db import connections, router

from eventlogs.exceptions import CannotPartition
from eventlogs.feed.reader import Feed
from eventlogs.models import Event
from eventlogs.operations.partitioning import copying, obstacles, progress, tables
from eventlogs.operations.partitioning.sessions import one_step
from eventlogs.stores.erasing import check_owner
from eventlogs.stores.layouts import layout_of

MAX_PARTITIONS: Final = 256
COPY: Final = "copy events"
POLL: Final = 0.1  # seconds between two looks at other transactions
BEAT: Final = 30.0  # seconds between two notes that the command waits


@dataclass(slots=True)
class Partitioned:
    """What a call has done so far; ``partitions`` is 0 for one table."""

    partitions: int
    doing: str = ""
    copied: int = 0  # events
    compared: int = 0
    waiting_for: tuple[int, ...] = ()  # process ids of transactions
    swapped: bool = False


Tell = Callable[[Partitioned], object]


def partition(
    partitions: int = 16, *, using: str | None = None, tell: Tell = lambda done: None
) -> Partitioned:
    """
    Partition the table of events by log, or make it one table again with ``partitions=0``.

    Appends and readers go on; the table needs its size once more on the disk. Killed at any step,
    the next call goes on. ``using`` is the database, by default the one that logs are written to.
    ``tell`` is called as it goes on. PostgreSQL only, and the role must own the table.

    Raise CannotPartition, CannotErase for another role, FeedUnavailable where the feed cannot be
    read, and RuntimeError inside of a transaction: then the table is as it was, or the next call
    goes on.
    """
    alias = _alias(using)
    if not (partitions == 0 or 2 <= partitions <= MAX_PARTITIONS):
        raise ValueError(f"Choose 2 to {MAX_PARTITIONS} partitions, or 0 for one table.")
    done = Partitioned(partitions)

    def told(doing: str) -> None:
        done.doing = doing
        tell(done)

    found = one_step(alias, _begin, alias, partitions, purpose="begin the copy")
    if found is None:  # it is partitioned so already
        one_step(alias, tables.name_sequence, alias, purpose="name the sequence")
        return done
    if not found.swapped:
        told("copying")
        _copy(alias, done, told)
        _swap_when_ready(alias, done, told)
    told("removing the old table")
    one_step(alias, _remove, purpose="remove the old table")
    one_step(alias, tables.name_sequence, alias, purpose="name the sequence")
    done.swapped = True
    return done


def abandon(*, using: str | None = None) -> bool:
    """
    Give a copy up; return whether there was one. The table is as it was.

    ``using`` is the database, by default the one that logs are written to. Raise CannotPartition
    if the copy has taken the table's place already, CannotErase for a role that does not own the
    table, and RuntimeError inside of a transaction.
    """
    alias = _alias(using)

    def attempt(cursor: Any) -> bool:
        found = tables.state(cursor)
        if found is None:
            return False
        if found.swapped:
            raise CannotPartition(
                using=alias,
                reason="the copy has taken the table's place already",
                action="Run eventlogs partition again, which removes the old table",
            )
        cursor.execute(f"LOCK TABLE {tables.TABLE} IN ACCESS EXCLUSIVE MODE")
        cursor.execute(copying.REMOVE)
        tables.drop(cursor, tables.COPY)
        return True

    return one_step(alias, attempt, purpose="give the copy up")


def _alias(using: str | None) -> str:
    alias = using or router.db_for_write(Event)
    vendor = connections[alias].vendor
    if vendor != "postgresql":
        raise CannotPartition(
            using=alias,
            reason=f"{vendor} has no such partitions",
            action="Only tables in PostgreSQL can be partitioned",
        )
    if layout_of(connections[alias]) == "buckets":
        raise CannotPartition(
            using=alias,
            reason="its positions come from counters, which the copy does not follow",
            action="Partition it in the layout 'fence', then run manage.py eventlogs layout",
        )
    check_owner(alias)
    return alias


def is_begun(cursor: Any) -> bool:
    """Return whether a copy was begun, and is not finished."""
    return progress.unfinished(cursor) is not None


def _begin(cursor: Any, using: str, partitions: int) -> tables.State | None:
    """Begin a copy, or go on with one; return None if there is nothing to do."""
    found = tables.state(cursor)
    if found is not None:
        if found.partitions != partitions:
            raise CannotPartition(
                using=using,
                reason=f"{_into(found.partitions)} was begun, and is not finished",
                action="Finish that, or give it up with --abandon",
            )
        return found
    if len(tables.parts(cursor, tables.TABLE)) == partitions:
        return None
    obstacles.check(cursor, using, partitions=partitions)
    indexes = tables.make_copy(cursor, partitions)
    # It waits for open appends: all later ones have higher positions.
    cursor.execute(f"LOCK TABLE {tables.TABLE} IN SHARE ROW EXCLUSIVE MODE")
    first = tables.last_position(cursor)
    tables.make_state(cursor, partitions, indexes)
    found = tables.state(cursor)
    assert found is not None
    copying.note_changes(cursor, first=first)
    return found


def _into(partitions: int) -> str:
    return f"a copy into {partitions} partitions" if partitions else "a copy into one table"


def _copy(using: str, done: Partitioned, told: Callable[[str], None]) -> None:
    """Copy what is settled, batch by batch, until little is left; then all, and mirror changes."""
    feed = Feed(using=using)
    while True:
        count = copying.BATCH
        while count == copying.BATCH:
            settled = feed.settled()
            count = one_step(using, _copy_batch, using, settled, purpose=COPY)
            done.copied += count
            told("copying")
        while one_step(using, _copy_noted, using, purpose=COPY):
            told("copying")
        rest = one_step(using, _mirror, using, purpose="copy the last events")
        if rest is not None:
            done.copied += rest
            return


def _copy_batch(cursor: Any, using: str, settled: int) -> int:
    found = _state(cursor, using)
    return 0 if found.mirrored else copying.copy_batch(cursor, found, upto=settled)


def _copy_noted(cursor: Any, using: str) -> bool:
    found = _state(cursor, using)
    return not found.mirrored and copying.copy_noted(cursor, found)


def _mirror(cursor: Any, using: str) -> int | None:
    """
    Copy the last events while appends wait, and mirror all changes; return how many were copied.

    Return None if too much is left. The lock waits for all open appends: then all that were stored
    are settled, and the state of each log is that of its last change.
    """
    found = _state(cursor, using)
    if found.mirrored:
        return 0
    cursor.execute(f"LOCK TABLE {tables.TABLE} IN SHARE ROW EXCLUSIVE MODE")
    if not copying.is_nearly_done(cursor, found):
        return None
    last = tables.last_position(cursor)
    copied = copying.copy_range(cursor, found, upto=last)
    copying.copy_noted(cursor, found._replace(copied=last))
    copying.mirror(cursor, found)
    return copied


def _swap_when_ready(using: str, done: Partitioned, told: Callable[[str], None]) -> None:
    """Compare both tables, wait until nobody can miss what was copied, and swap them."""
    _compare_all(using, done, told)
    one_step(using, _analyze, using, purpose="analyze the copy")
    _wait_for_older(using, done, told)
    _compare_all(using, done, told)  # what was appended while it waited
    told("swapping")
    one_step(using, _swap, using, purpose="swap the tables")


def _compare_all(using: str, done: Partitioned, told: Callable[[str], None]) -> None:
    while one_step(
        using, _compare, using, purpose="compare the tables", isolation="REPEATABLE READ"
    ):
        done.compared += copying.BATCH
        told("comparing")


def _analyze(cursor: Any, using: str) -> None:
    """Make the statistics of the copy: autovacuum makes none of a partitioned table."""
    _state(cursor, using)
    cursor.execute(f"ANALYZE {tables.COPY}")


def _compare(cursor: Any, using: str) -> bool:
    """Compare the next events; return False if few are left."""
    found = _state(cursor, using)
    upto = copying.next_bound(cursor, found)
    if upto is None:
        return False
    copying.compare(cursor, using, found, upto=upto)
    cursor.execute(f"UPDATE {tables.STATE} SET compared = %s", [upto])
    return True


def _wait_for_older(using: str, done: Partitioned, told: Callable[[str], None]) -> None:
    """
    Wait until each transaction has ended that may not see what was copied.

    The rows of the copy are younger than the events. A transaction whose snapshot is older than
    they are would find no events, once the tables are swapped. Later changes are in both tables.
    """
    with connections[using].cursor() as cursor:
        older = copying.other_transactions(cursor)
        noted = time.monotonic()
        while older:
            if time.monotonic() - noted >= BEAT:
                one_step(using, _state, using, purpose="note that it waits")
                noted = time.monotonic()
            done.waiting_for = tuple(sorted(older.values()))
            told("waiting")
            time.sleep(POLL)
            now = copying.other_transactions(cursor)
            older = {each: pid for each, pid in older.items() if each in now}
    done.waiting_for = ()


def _swap(cursor: Any, using: str) -> None:
    found = _state(cursor, using)
    cursor.execute(f"LOCK TABLE {tables.TABLE}, {tables.COPY} IN ACCESS EXCLUSIVE MODE")
    obstacles.check(cursor, using, partitions=found.partitions)
    tables.check_unchanged(cursor, using, found)
    copying.compare(cursor, using, found, upto=copying.EVERYTHING)
    tables.swap(using, cursor, found)


def _remove(cursor: Any) -> None:
    if tables.state(cursor) is not None:
        tables.drop(cursor, tables.OLD)


def _state(cursor: Any, using: str) -> tables.State:
    found = tables.state(cursor)
    if found is None or found.swapped:
        raise CannotPartition(
            using=using,
            reason="another call has finished it, or has given it up",
            action="Look at the table with manage.py eventlogs stats",
        )
    return found
