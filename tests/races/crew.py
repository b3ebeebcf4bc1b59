"""
A crew: processes that race each other, each with a database connection of its own.

The test hands all of them one function of ``jobs.py``; barriers start them together. They
stay between races, because starting them takes longer than racing them.
"""

from __future__ import annotations

import multiprocessing
import random
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from threading import Barrier, BrokenBarrierError
from types import TracebackType
from typing import Any, Self

from django.db import connection

from tests.races import ready

# Forked from a process that has Django, and neither connections nor threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([ready.__name__])

SIZES = (2, 4, 8, 16, 32)  # of the teams that can race
PATIENCE = 60  # seconds that a process waits for the others


class Place:
    """The place of one process in a race."""

    def __init__(self, number: int, size: int, barrier: Barrier) -> None:
        self.number = number
        self.size = size
        self.random = random.Random(number)
        self._barrier = barrier

    def together(self) -> None:
        """Wait until the others are here, too."""
        self._barrier.wait(PATIENCE)


class CrewError(AssertionError):
    """A job failed in its process; the message is the traceback there."""


class Crew:
    """Processes that wait for jobs; a context manager."""

    def __init__(self, size: int, database: dict[str, Any]) -> None:
        """Prepare to start; ``database`` is Django's settings of the one to connect to."""
        self._barriers = {n: PROCESSES.Barrier(n) for n in SIZES if n <= size}
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(size):
            ours, theirs = PROCESSES.Pipe()
            process = PROCESSES.Process(
                target=_serve, args=(number, theirs, self._barriers, database), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(PATIENCE)
            process.close()

    def race(
        self, team: int, job: Callable[..., Iterable[Any]], *arguments: Any, **options: Any
    ) -> list[Any]:
        """
        Run ``job(place, *arguments)`` in ``team`` processes; return all that they answered.

        ``options`` are OPTIONS of their database connection. Raise CrewError where one fails.
        """
        for pipe in self._pipes[:team]:
            pipe.send((job, team, arguments, options))
        answers: list[Any] = []
        failures: list[str] = []
        for pipe in self._pipes[:team]:
            done, answer = pipe.recv()
            (answers if done else failures).extend(answer)
        if failures:
            self._barriers[team].reset()
            raise CrewError("\n".join(failures))
        return answers


def _serve(
    number: int, pipe: Connection, barriers: dict[int, Any], database: dict[str, Any]
) -> None:
    connection.settings_dict.update(database)
    while True:
        try:
            job, team, arguments, options = pipe.recv()
        except EOFError:
            return
        barrier = barriers[team]
        connection.settings_dict["OPTIONS"] = {**database["OPTIONS"], **options}
        try:
            connection.ensure_connection()
            barrier.wait(PATIENCE)
            answer = True, list(job(Place(number, team, barrier), *arguments))
        except BrokenBarrierError:
            answer = False, []  # another one failed, and says so
        except BaseException:
            barrier.abort()
            answer = False, [f"process {number}: {traceback.format_exc()}"]
        finally:
            connection.close()
        pipe.send(answer)
