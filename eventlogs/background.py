"""
Work that nobody waits for: a short queue, and one thread a process that goes through it.

What is queued may get lost (a full queue, a killed process): only what can be made up for
belongs here. Writing a cache is such work.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable
from threading import Condition, Thread
from typing import Any, Final

from django.db import connections

logger = logging.getLogger("eventlogs.background")

CAPACITY: Final = 1_000  # jobs
LAST_WORDS: Final = 2.0  # seconds that a process waits at its end for what is still queued

Job = Callable[[], None]


class Background:
    """
    A bounded queue of jobs, one for each key, and the thread that does them in their order.

    A job takes the place of one that is queued under the same key. What a job raises is
    logged. The thread is started by the first job, in each process for itself; its database
    connections are closed whenever there is nothing left to do.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._reset()
        # A thread does not survive a fork, and its lock may be held in the child for ever.
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self.flush, LAST_WORDS)

    def _reset(self) -> None:
        self._changed = Condition()
        self._jobs: dict[str, Job] = {}
        self._running: tuple[str, Job] | None = None
        self._thread: Thread | None = None

    def submit(self, key: str, job: Job) -> bool:
        """Queue ``job``, and return True; or return False where the queue is full."""
        with self._changed:
            if key not in self._jobs and len(self._jobs) >= self.capacity:
                return False
            self._jobs[key] = job
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._work, name="eventlogs", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def pending(self, key: str) -> Job | None:
        """Return the job that is queued under ``key``, or being done."""
        if not self._jobs and self._running is None:
            return None
        with self._changed:
            running = self._running
            return self._jobs.get(key) or (running[1] if running and running[0] == key else None)

    def flush(self, timeout: float) -> bool:
        """Wait until nothing is left to do, ``timeout`` seconds at most; return whether so."""
        until = time.monotonic() + timeout
        with self._changed:
            while self._jobs or self._running is not None:
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    return not (self._jobs or self._running is not None)
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                idle = not self._jobs
            if idle:
                # An open connection would keep a test database from being dropped.
                connections.close_all()
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                key = next(iter(self._jobs))
                job = self._jobs.pop(key)
                self._running = key, job
            try:
                job()
            except Exception as error:
                # Not its text: a database's errors quote what they were given.
                logger.error("A job in the background failed: %s", type(error).__name__)
            finally:
                with self._changed:
                    last = not self._jobs
                if last:
                    connections.close_all()
                with self._changed:
                    self._running = None
                    self._changed.notify_all()


background: Final[Any] = Background()
