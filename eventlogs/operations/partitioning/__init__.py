"""
Partitioning: the table of events is hash-partitioned by log, or made one table again (PostgreSQL).

Appends and readers go on meanwhile. The steps, each in short transactions of its own, so that a
call that was killed is resumed by the next one:

1. **Begin**: an empty copy of the table, and a trigger on the table that notes each log whose
   events are changed, deleted or put back (``chain``, ``erase``, ``archive``). Ordinary appends
   are not noted: they cost nothing more.
2. **Copy**, batch by batch, in the order of positions. Only settled events are copied
   (``feed/sources.py``): nothing can appear below them any more, so the last position that was
   copied says where to go on. A noted log is copied anew, in one transaction that also takes the
   note away.
3. **Mirror**: under a lock that waits for all open appends, and that later ones wait for, the last
   events and noted logs are copied. From then on, triggers make every change in both tables, in
   the transaction of the change.
4. **Compare**: the count and a hash of all events, part by part, each in one snapshot.
5. **Wait** until every transaction has ended that began before the last row was copied. Whoever
   reads from now on, with whichever snapshot, finds the same events in both tables.
6. **Swap**: the tables change names under an exclusive lock, which is waited for one second at a
   time. Nothing is copied under it, only the newest events are compared. The lock also waits for
   all open appends, so that every fence of the feed on the old table has ended.
7. **Remove** the old table.

Why no event is lost or brought back: when step 3 has its lock, nobody else has a change that is not
committed. Each event that was appended is at or below the last copied position, and was copied
when nothing could appear below it any more; or it is above, and is copied under the lock. If it
was changed after it was copied, its log is noted, in the transaction of the change, and copied
anew under the lock at the latest. Afterwards both tables change together, and the swap has an
exclusive lock. Why nobody reads too little: without step 5, a transaction in REPEATABLE READ would
read, after the swap, a table whose rows are younger than its snapshot, and find no events.
"""

from __future__ import annotations

from eventlogs.operations.partitioning.running import (
    MAX_PARTITIONS,
    Partitioned,
    abandon,
    is_begun,
    partition,
)

__all__ = ["MAX_PARTITIONS", "Partitioned", "abandon", "is_begun", "partition"]
