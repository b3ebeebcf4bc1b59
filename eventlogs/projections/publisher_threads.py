"""
Threads for publishers, so that a broker which is down, or hangs, holds no other projection.

A worker runs each partition of a publisher in a thread of its own, with a database connection of
its own. The thread has the lease until it ends, and gives it back then. Nobody waits for it
longer than STOPS_IN: what it still publishes after that is a repetition of what the next holder of
the lease publishes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from django.db import Error, connections

from eventlogs.exceptions import PublishingFailed
from eventlogs.projections.batches import Advancer
from eventlogs.projections.error_text import described, traceback_of

logger = logging.getLogger("eventlogs.projections")

SHORTEST_PAUSE: Final = 0.02  # seconds between two looks at a feed that has just moved
LONGEST_PAUSE: Final = 1.0  # seconds, at a feed that rests
PATIENCE: Final = 1.25  # times as long, each time that nothing has come
LONGEST_WAIT: Final = 15.0  # seconds after a batch that could not be published
RENEW: Final = 1.0  # seconds between two looks at the lease while nothing is published
STOPS_IN: Final = 8.0  # seconds for all threads of a worker to end in good order


class PublisherThread:
    """One partition of a publisher, in a thread."""

    def __init__(self, name: str, advancer: Advancer) -> None:
        self.error: BaseException | None = None
        self._name = name
        self._advancer = advancer
        self._told = 0  # events
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"eventlogs {name}", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether its lease is given back; ``error`` says why, if it was not asked to."""
        return not self._thread.is_alive()

    def published(self) -> int:
        """Return how many events were published since the last call."""
        applied = self._advancer.applied
        told, self._told = self._told, applied
        return applied - told

    def stop(self) -> None:
        """Ask it to end after the batch that it is publishing."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        self._thread.join(max(0.0, seconds))

    def _run(self) -> None:
        try:
            self._work()
            self._advancer.close()
        except BaseException as error:
            self.error = error
            with suppress(Error):
                self._advancer.abandon()
        finally:
            connections.close_all()  # those of this thread

    def _work(self) -> None:
        pause, failures = SHORTEST_PAUSE, 0
        while not self._stop.is_set():
            before = self._advancer.applied
            try:
                is_behind = self._look()
            except PublishingFailed as error:
                failures += 1
                self._wait_after(error, failures)
                continue
            if failures:
                logger.info("Publisher %s publishes again.", self._name)
                failures = 0
            if self._advancer.applied > before:
                pause = SHORTEST_PAUSE
            if not is_behind:
                self._stop.wait(pause)
                pause = min(pause * PATIENCE, LONGEST_PAUSE)

    def _look(self) -> bool:
        """Publish a batch, if there is one; return whether there is more to publish at once."""
        is_behind = False
        if self._advancer.position < self._advancer.feed.settled():
            is_behind = self._advancer.step()
        else:
            self._advancer.rest()
        return self._advancer.retry_due() or is_behind

    def _wait_after(self, error: PublishingFailed, failures: int) -> None:
        """Wait before the batch is published again, longer each time; keep the lease meanwhile."""
        wait = min(self._advancer.backoff * 2 ** min(failures - 1, 30), LONGEST_WAIT)
        cause = error.__cause__ or error
        logger.warning(
            "Publisher %s could not publish %s events, and tries again in %.1f s: %s\n%s",
            self._name,
            error.events,
            wait,
            described(cause),
            traceback_of(cause),
        )
        end = time.monotonic() + wait
        while (left := end - time.monotonic()) > 0 and not self._stop.wait(min(left, RENEW)):
            self._advancer.rest()


def stop_all(threads: Iterable[PublisherThread]) -> None:
    """Ask all of them to end, and wait for that for STOPS_IN seconds."""
    stopping = list(threads)
    for each in stopping:
        each.stop()
    end = time.monotonic() + STOPS_IN
    for each in stopping:
        each.join(end - time.monotonic())
