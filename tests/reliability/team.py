"""A team: processes that do one job each until they are told to stop, and then report."""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any, Self

from django.db import connection, connections
from django.test import override_settings

from tests.races.crew import PROCESSES

PATIENCE = 60  # seconds that a process may take to stop, or to get ready


class Team:
    """
    Processes, each calling ``job(stop, *arguments)`` once; a context manager.

    ``stop`` is an event. What a job returns is its report, which must be picklable.
    """

    def __init__(self, database: dict[str, Any], settings: dict[str, Any]) -> None:
        """Prepare to start; ``settings`` are Django's that the processes have otherwise."""
        self._database, self._settings = database, settings
        self._stop = PROCESSES.Event()
        self._members: list[tuple[Any, Any]] = []

    def add(self, count: int, job: Callable[..., Any], *arguments: Any) -> list[int]:
        """Start ``count`` processes, wait until they have a connection, and return their ids."""
        added = []
        for number in range(count):
            ours, theirs = PROCESSES.Pipe()
            process = PROCESSES.Process(
                target=_run,
                args=(theirs, self._stop, self._database, self._settings, job, number, arguments),
                daemon=True,
            )
            process.start()
            theirs.close()
            added.append((process, ours))
        for _, pipe in added:
            assert pipe.poll(PATIENCE)
            assert pipe.recv() == "ready"
        self._members += added
        return [process.pid for process, _ in added]

    def go(self) -> None:
        """Let those who were added begin."""
        for _, pipe in self._members:
            pipe.send("go")

    def kill(self, pid: int) -> None:
        """Kill one with SIGKILL, and forget it."""
        os.kill(pid, signal.SIGKILL)
        for process, pipe in [each for each in self._members if each[0].pid == pid]:
            process.join()
            self._members.remove((process, pipe))

    def finish(self) -> list[Any]:
        """Tell them to stop, and return what they report."""
        self._stop.set()
        return self.reports()

    def reports(self) -> list[Any]:
        """Wait until they are done, and return what they report."""
        reports = []
        for process, pipe in self._members:
            assert pipe.poll(4 * PATIENCE), "a process does not come to its end"
            reports.append(pipe.recv())
            process.join(PATIENCE)
        self._members.clear()
        failures = [report for report in reports if isinstance(report, Failure)]
        assert not failures, "\n".join(map(str, failures))
        return reports

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process, _ in self._members:
            process.kill()
            process.join()


class Failure(str):
    """The traceback of a job that failed."""


def _run(
    pipe: Any,
    stop: Any,
    database: dict[str, Any],
    settings: dict[str, Any],
    job: Callable[..., Any],
    number: int,
    arguments: tuple[Any, ...],
) -> None:
    logger = logging.getLogger("eventlogs")
    logger.addHandler(logging.NullHandler())  # a cache that is down is no news here
    logger.propagate = False
    override_settings(**settings).enable()
    connection.settings_dict.update(database)
    try:
        connection.ensure_connection()
        pipe.send("ready")
        pipe.recv()
        report = job(stop, number, *arguments)
    except BaseException:
        report = Failure(traceback.format_exc())
    finally:
        connections.close_all()
    pipe.send(report)
