"""
The health of a database for metrics: a recent answer of ``health()``, or none.

A scrape must cost little and end in time, also if the database hangs. So a look is made at most
once in MAX_AGE seconds, by a thread with a connection of its own, and is waited for PATIENCE
seconds. Until an answer is there again, there is none: an old one would hide that the database is
gone.
"""

from __future__ import annotations

import logging
import os
import time
from threading import Event, Lock, Thread
from typing import Final, NamedTuple

from django.db import connections, router

from eventlogs.models import EventLog
from eventlogs.operations.health import Health, health
from eventlogs.reductions.worker import runs_threads

logger = logging.getLogger("eventlogs.observers")

MAX_AGE: Final = 15.0  # seconds
PATIENCE: Final = 5.0  # seconds
LONGEST_LOOK: Final = 60.0  # seconds after which a look is given up


class Seen(NamedTuple):
    """An answer: when the look began (by the monotonic clock), and how many seconds it took."""

    health: Health
    began: float
    seconds: float

    @property
    def is_up(self) -> bool:
        """Whether the database has answered, with our tables in it."""
        return "newest_position" in self.health.figures


class Looking:
    """A look that is under way."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.done = Event()
        self.seen: Seen | None = None


class RecentHealth:
    """
    Looks at one database, and keeps the answer for a while. Threads may share it.

    ``using`` is the alias of a database, by default the one that logs are written to.
    """

    def __init__(
        self, *, using: str | None = None, max_age: float = MAX_AGE, patience: float = PATIENCE
    ) -> None:
        self._using = using
        self._max_age = max_age
        self._patience = patience
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._looking: Looking | None = None
        self._seen: Seen | None = None

    @property
    def using(self) -> str:
        """The alias of the database."""
        return self._using or router.db_for_write(EventLog)

    def get(self) -> Seen | None:
        """Return an answer that is at most ``max_age`` old; None if there is none in time."""
        if self._pid != os.getpid():
            self._reset()  # a fork has no copy of the thread
        with self._lock:
            seen = self._seen
            if seen is not None and time.monotonic() - seen.began < self._max_age:
                return seen
            looking = self._looking
            # A look at a server that is gone may not end for hours: another one is made then.
            if looking is None or time.monotonic() - looking.since > LONGEST_LOOK:
                looking = self._looking = Looking()
                self._start(looking)
        # Several figures of one collection wait for one look: together, no longer than that.
        looking.done.wait(max(0.0, looking.since + self._patience - time.monotonic()))
        return looking.seen

    def _start(self, looking: Looking) -> None:
        if not runs_threads():
            self._look(looking)
            return
        thread = Thread(
            target=self._look_apart, args=(looking,), name="eventlogs-health", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # a limit of the system, or the interpreter shuts down
            self._end(looking, None)

    def _look_apart(self, looking: Looking) -> None:
        try:
            self._look(looking)
        finally:
            connections.close_all()  # those of this thread

    def _look(self, looking: Looking) -> None:
        seen: Seen | None = None
        try:
            began = time.monotonic()
            found = health(using=self.using)
            seen = Seen(found, began, time.monotonic() - began)
        except Exception as error:
            logger.error("The health of a database is unknown: %s", type(error).__name__)
        finally:
            self._end(looking, seen)

    def _end(self, looking: Looking, seen: Seen | None) -> None:
        # Without the lock: the caller may have it. The order matters to ``get``.
        looking.seen = seen
        if looking is self._looking:
            self._seen, self._looking = seen, None
        looking.done.set()
