"""
A worker for projections that run on several databases: one Worker for each, in turn.

Each database has its own checkpoints, leases and list of live workers, so nothing is shared
between them but this thread. A database that does not answer is waited for while the others are
worked on. Each one still takes its turn in the loop: while a connection attempt hangs, all of them
wait, until its ``connect_timeout``. Processes with ``--database`` are independent of each other.

Turns are taken in one thread, because only the main thread can interrupt a batch (see
``deadlines.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from threading import Event as Flag

from eventlogs.projections.workers import Worker, chosen


def names_by_database(
    names: Iterable[str] | None = None, *, using: str | None = None
) -> dict[str, list[str]]:
    """Return which projections run on which database, by its alias."""
    found: dict[str, list[str]] = {}
    for name, each in chosen(names).items():
        for alias in each.database_aliases(using=using):
            found.setdefault(alias, []).append(name)
    return found


class WorkerOfDatabases:
    """Runs projections on all of their databases until ``stop`` is set."""

    def __init__(
        self,
        names: Iterable[str] | None = None,
        *,
        stop: Flag | None = None,
        tell: Callable[[dict[str, int]], None] | None = None,
        using: str | None = None,
    ) -> None:
        """Run these projections, by default all; the arguments are those of Worker."""
        self._stop = stop or Flag()
        self._workers = [
            Worker(some, stop=self._stop, tell=tell, using=alias)
            for alias, some in names_by_database(names, using=using).items()
        ]
        self._due = dict.fromkeys(self._workers, 0.0)  # by the monotonic clock

    def run(self) -> None:
        """Run until ``stop`` is set; see ``Worker.run``."""
        with ExitStack() as ends:
            for each in self._workers:
                ends.callback(each.close)
            while not self._stop.is_set():
                self._stop.wait(self.turn())

    def turn(self) -> float:
        """Let each worker that is due do one round; return the seconds until the next one is."""
        for each in self._workers:
            if self._due[each] <= time.monotonic() and not self._stop.is_set():
                self._due[each] = each.turn() + time.monotonic()
        soonest = min(self._due.values(), default=time.monotonic() + 1.0)
        return max(0.0, soonest - time.monotonic())
