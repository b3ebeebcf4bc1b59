"""
A bounded queue of jobs, and one thread in each process that does them.

A queued job may get lost (a full queue, a killed process), so only jobs that can be lost without
harm belong here, such as writing a cache.

uWSGI runs Python's threads only with ``enable-threads``. Without it, the caller does each job at
once, and a warning says so.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Hashable
from threading import Condition, Lock, Thread
from typing import Any, Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.creation import TEST_DATABASE_PREFIX

logger = logging.getLogger("eventlogs.reductions")

CAPACITY: Final = 1_000  # jobs
LINGER: Final = 5.0  # seconds that a database connection is kept for the next job
EXIT_WAIT: Final = 2.0  # seconds that a process waits at its end for the queued jobs

Job = Callable[[], object]
Key = Hashable


class Worker:
    """
    A bounded queue of jobs, one for each key, and the thread that does them in their order.

    A job replaces one that is queued under the same key, and is due when that one was. An
    exception of a job, of any kind, is logged, and the thread continues. The first job in a
    process starts the thread. Its database connections are closed when there was no job for
    five seconds; at once in tests, and if they belong to a pool. Where threads do not run,
    ``submit`` does the job itself.
    """

    def __init__(self) -> None:
        self._renewing = Lock()
        self._has_warned = False
        self._reset()
        # A fork has no copy of the thread, and in the child its lock may stay held for ever.
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self.flush, EXIT_WAIT)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = Condition()
        self._jobs: dict[Key, tuple[float, Job]] = {}  # when it is due, by the monotonic clock
        self._flushing = 0
        self._is_running = False
        self._thread: Thread | None = None

    def _renew(self) -> None:
        """Start afresh after a fork in C, as uWSGI makes them: no hook is called there."""
        with self._renewing:
            if self._pid != os.getpid():
                self._reset()

    def submit(self, key: Key, job: Job, *, delay: float = 0.0, capacity: int = CAPACITY) -> bool:
        """
        Queue ``job``, and return True; or return False where ``capacity`` jobs are queued.

        The job is done in ``delay`` seconds at the earliest, so that one job can replace many.
        Where threads do not run, it is done before this returns.

        Raise RuntimeError where no thread can be started: at a limit of the system, or when the
        interpreter shuts down. The job is not queued then.
        """
        if not runs_threads():
            self._warn()
            try:
                job()
            except (Exception, SystemExit) as error:
                _log(error)
            return True
        if self._pid != os.getpid():
            self._renew()
        with self._changed:
            queued = self._jobs.get(key)
            if queued is None and len(self._jobs) >= capacity:
                return False
            # Start the thread first: if that fails, no job is queued that would block its key.
            if self._thread is None or not self._thread.is_alive():
                thread = Thread(target=self._work, name="eventlogs", daemon=True)
                thread.start()
                self._thread = thread
            due = time.monotonic() + delay
            self._jobs[key] = (due if queued is None else min(due, queued[0])), job
            if queued is None:
                self._changed.notify_all()
        return True

    def is_queued(self, key: Key) -> bool:
        """Return whether a job is queued under ``key`` and has not begun."""
        return key in self._jobs and self._pid == os.getpid()

    def flush(self, timeout: float) -> bool:
        """
        Have all queued jobs done now, and wait for them, ``timeout`` seconds at most.

        Return whether no job is left.
        """
        if self._pid != os.getpid():
            self._renew()
        until = time.monotonic() + timeout
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                while self._jobs or self._is_running:
                    if not self._changed.wait(max(0.0, until - time.monotonic())):
                        break
                return not self._jobs and not self._is_running
            finally:
                self._flushing -= 1

    def _next(self) -> tuple[Key, Job]:
        """Wait for a job that is due, and take it out of the queue."""
        with self._changed:
            while True:
                now = time.monotonic()
                wait = None
                for key, (due, job) in self._jobs.items():
                    if due <= now or self._flushing:
                        del self._jobs[key]
                        self._is_running = True
                        return key, job
                    wait = due - now if wait is None else min(wait, due - now)
                if wait is None and _is_connected():
                    if not self._changed.wait(LINGER) and not self._jobs:
                        _close_all()
                else:
                    self._changed.wait(wait)

    def _work(self) -> None:
        while True:
            _, job = self._next()
            try:
                job()
            except BaseException as error:
                # Also a SystemExit of a project's apply(): it would end this thread, and the queued
                # jobs would wait for a next one to start it. No signal is handled in a thread.
                _log(error)
            if _is_to_be_closed():
                _close_all()
            with self._changed:
                self._is_running = False
                self._changed.notify_all()

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "uWSGI runs without threads here, so no thread can write the reduction cache: each "
                "request writes what it has folded before it answers. Set enable-threads = true in "
                "uWSGI's configuration."
            )


def runs_threads() -> bool:
    """
    Return whether the threads of this process run.

    In uWSGI they need ``enable-threads``, or ``threads`` above 1: without either, a worker keeps
    the GIL while it waits for requests. Its module ``uwsgi`` is there in its processes only.
    https://uwsgi-docs.readthedocs.io/en/latest/ThingsToKnow.html
    """
    options = getattr(sys.modules.get("uwsgi"), "opt", None)
    if not isinstance(options, dict):
        return True
    given = {_as_text(name): value for name, value in options.items()}
    threads = _as_text(given.get("threads", "0"))
    return (
        ("enable-threads" in given and _as_text(given["enable-threads"]).lower() not in OFF)
        or (threads.isdecimal() and int(threads) > 1)
        or "gevent" in given  # its threads are greenlets
    )


OFF: Final = {"false", "off", "no", "0"}  # as uWSGI reads them


def _as_text(value: Any) -> str:
    """Return a name or value of uWSGI's as text; an option that is given twice is a list."""
    if isinstance(value, list):
        value = value[-1]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _log(error: BaseException) -> None:
    """Log an error without its text: a database's errors quote what they were given."""
    logger.error("A job in the background failed: %s", type(error).__name__)


def _is_connected() -> bool:
    """Return whether this thread has a database connection open."""
    return any(each.connection is not None for each in connections.all(initialized_only=True))


def _is_to_be_closed() -> bool:
    """
    Return whether this thread has a connection that must not stay open for the next job.

    A connection that had an error may be lost, one to a database that Django made for tests
    would keep it from being dropped, and one of a pool is missing in the pool.
    """
    for each in connections.all(initialized_only=True):
        if each.connection is not None and _is_pooled(each):
            return True
        name, test_name = str(each.settings_dict["NAME"]), each.settings_dict["TEST"]["NAME"]
        # While tests run, NAME is the test name itself; by default that is NAME with the prefix.
        if name == str(test_name) if test_name else name.startswith(TEST_DATABASE_PREFIX):
            return True
        if each.errors_occurred:
            return True
    return False


def _is_pooled(connection: BaseDatabaseWrapper) -> bool:
    """Return whether closing a connection gives it back to a pool (Django's or a package's)."""
    settings = connection.settings_dict
    return bool(
        settings["OPTIONS"].get("pool")
        or settings.get("POOL_OPTIONS")
        or "pool" in type(connection).__module__
    )


def _close_all() -> None:
    for each in connections.all(initialized_only=True):
        try:
            each.close()
        except Exception as error:  # of a connection that is lost
            logger.warning("A database connection could not be closed: %s", type(error).__name__)


worker: Final = Worker()
