"""
A crew: processes that race each other, each with a database connection of its own.

The test hands all of them one function of a module; barriers start them together. They stay
between races, because starting them takes longer than racing them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from threading import Barrier, BrokenBarrierError
from typing import Any

from django.db import connection

from tests.processes.forks import CONTEXT, Failure, Place, Process, Processes, ProcessFailed, Signal
from tests.processes.waiting import PATIENCE, witnesses

SIZES = (2, 4, 8, 16, 32)  # of the teams that can race


class Crew(Processes):
    """Processes that wait for races; a context manager."""

    def __init__(self, size: int, database: dict[str, Any]) -> None:
        """Start ``size`` processes; ``database`` is Django's settings of the one to connect to."""
        super().__init__(database=database)
        self._barriers = {n: CONTEXT.Barrier(n) for n in SIZES if n <= size}
        self._racers: list[Process] = [
            self.start(_race, self._barriers, database["OPTIONS"], number=number)
            for number in range(size)
        ]
        for racer in self._racers:
            witnesses.remove(racer.story)  # there is nothing to report between races

    def race(
        self, team: int, job: Callable[..., Iterable[Any]], *arguments: Any, **options: Any
    ) -> list[Any]:
        """
        Run ``job(place, *arguments)`` in ``team`` processes; return all their answers.

        ``options`` are OPTIONS of their database connection. Raise ProcessFailed where one fails.
        """
        racers = self._racers[:team]
        for racer in racers:
            racer.tell((job, team, arguments, options))
        witnesses.extend(racer.story for racer in racers)
        answers = [racer.next_message(10 * PATIENCE) for racer in racers]
        for racer in racers:
            witnesses.remove(racer.story)
        failures = [str(each) for each in answers if isinstance(each, Failure)]
        if None in answers:
            failures.append("a process has ended")
        if failures:
            self._barriers[team].reset()
            raise ProcessFailed("\n".join(failures))
        return [outcome for answer in answers for outcome in answer]


def _race(place: Place, barriers: dict[int, Barrier], always: dict[str, Any]) -> None:
    while (race := place.hear()) is not Signal.END:
        job, place.size, arguments, options = race
        place.barrier = barrier = barriers[place.size]
        connection.settings_dict["OPTIONS"] = {**always, **options}
        answer: Any
        try:
            connection.ensure_connection()
            place.together()
            answer = list(job(place, *arguments))
        except BrokenBarrierError:
            answer = []  # another one failed, and reports it
        except BaseException:
            barrier.abort()
            answer = Failure(f"process {place.number}: {traceback.format_exc()}")
        finally:
            connection.close()
        place.say(answer)
