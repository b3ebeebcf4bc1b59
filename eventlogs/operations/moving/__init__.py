"""
Moving a log to another database, beside its writers.

No transaction spans two databases, so a move is a row of steps, each of them one transaction in one
database. A *token*, a random UUID, names one attempt.

1. ``steps.announce``, in the target: a row of LogMove, "arriving", with the token; and a mark in
   EventLog, so that nobody creates the log there.
2. ``steps.leave``, in the source, under the lock of the log's row: a row of LogMove, "leaving",
   with the token, and the log's row becomes a mark. From then on the log takes no events, and is
   read where it is.
3. Projections and reactors of the source come to the log's last event.
4. ``steps.copy``, in the target, if the row with the token is there: events, keys, the links to
   subjects, and skipped events are stored, compared, and the row becomes "arrived".
5. ``steps.take_out``, in the source: events go, and the row becomes "left".
6. Copies in caches and read models of the source are removed; inline rows are made in the target.

Right because of two rules:

- **A row "arriving" is only inserted with a new token, before the row "leaving" with this token.**
  So where a log is leaving, and the target has no row with its token, there will never be one:
  the copy of step 4 needs it, under its lock.
- **A log takes events in the source again** (``steps.go_back``) only after that was found out,
  under a lock in the target: the row "arriving" was deleted, or is not there.

So before the commit of step 4, the source is the truth, and the target has nothing. After it, the
row "arrived" stays for ever, and the source never takes events again: the target is the truth. That
commit is one commit of one database. The log's row in the source decides between writers and the
move, since every append locks it (step 2); and between two moves, to two targets, too.

A process that is killed leaves one of these states, and the next call sees which one it is.
"""

from __future__ import annotations

from eventlogs.operations.moving.running import Moved, abandon, move

__all__ = ["Moved", "abandon", "move"]
