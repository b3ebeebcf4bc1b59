"""
Writers that are killed: their intended appends and their answers are recorded.

A writer says in a pipe what it is about to append, and says so again right after the answer.
An unanswered append of a killed writer is repeated by its successor, with the same key: as a client
does that has lost the first answer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, NamedTuple, Self

from django.db import Error, connection

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotentReplay,
    LogId,
    LogManager,
    LogState,
    TransactionMustRetry,
)
from tests.processes import PATIENCE, Place, Process, Processes
from tests.processes.waiting import stories
from tests.races.events import batch
from tests.races.history import Outcome
from tests.races.stores import races

APPLICATION = "eventlogs writer"
CREATE = "create"


class Intent(NamedTuple):
    """An append that a writer is about to make; its marker is also its key."""

    marker: str
    of: int
    log_id: LogId | str  # or CREATE
    any_version: bool


class Writers(Processes):
    """Processes that append until they are told to end, or killed; a context manager."""

    def __init__(
        self,
        database: dict[str, Any],
        store: str,
        log_ids: Sequence[LogId],
        *,
        count: int,
        job: Callable[..., None] | None = None,
    ) -> None:
        """
        Prepare to start ``count`` writers; ``database`` is their database in Django's settings.

        ``job`` is what a writer does, with the arguments of ``_write``.
        """
        self._job = job or _write
        options = {**database["OPTIONS"], "application_name": APPLICATION}
        super().__init__(database={**database, "OPTIONS": options})
        self._arguments = (store, list(log_ids))
        self._count = count
        self._writers: list[Process] = []
        self._open: dict[Process, dict[str, Intent]] = {}  # announced, and not answered yet
        self._born = 0
        self.outcomes: list[Outcome] = []
        self.taken_over = 0  # intents of writers that were killed before the answer

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._start([])
        return self

    def _start(self, left_over: list[Intent]) -> None:
        writer = self.start(self._job, left_over, *self._arguments, number=self._born)
        self._born += 1
        self._writers.append(writer)
        self._open[writer] = {}

    def work(self, seconds: float) -> None:
        """Let them write for a while, and record their messages."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._listen(left)

    def work_until(self, outcomes: int) -> None:
        """Let them write until a number of outcomes is recorded."""
        end = time.monotonic() + PATIENCE
        while len(self.outcomes) < outcomes:
            assert time.monotonic() < end, stories("the writers do not write")
            self._listen(PATIENCE)

    def _listen(self, seconds: float) -> None:
        talking = wait([writer.pipe for writer in self._writers], seconds)
        for writer in [each for each in self._writers if each.pipe in talking]:
            assert self._hear(writer), "a writer ended by itself"

    def kill_one(self) -> None:
        """Kill one with SIGKILL at any point, and start its successor."""
        writer = self._writers.pop(random.randrange(self._count))
        writer.kill()
        while self._hear(writer):
            pass
        left_over = list(self._open.pop(writer).values())
        self.taken_over += len(left_over)
        self._start(left_over)

    def finish(self) -> None:
        """Let them finish their current appends, and record the rest."""
        for writer in self._writers:
            writer.tell_to_end()
        for writer in self._writers:
            while self._hear(writer):
                pass
            writer.join()
            assert writer.exit_code == 0, f"a writer ended with {writer.exit_code}"
            assert not self._open[writer], f"without an answer: {self._open[writer]}"
        self._writers.clear()

    def _hear(self, writer: Process) -> bool:
        """Record one message; return whether there was one."""
        message = writer.heard()
        if message is None:
            return False
        if isinstance(message, Intent):
            self._open[writer][message.marker] = message
        else:
            self.outcomes.append(message)
            self._open[writer].pop(message.marker)
        return True


def _write(
    place: Place,
    left_over: list[Intent],
    store: str,
    log_ids: list[LogId],
) -> None:
    manager, name = races(store, place.number), f"w{place.number}"
    choices = random.Random(name)
    for intent in left_over:
        place.say(intent)
        place.say(_until_answered(manager, intent))
    number = 0
    while not place.is_set():
        intent = intention(f"{name}-{number}", choices, log_ids)
        number += 1
        place.say(intent)
        place.say(_until_answered(manager, intent))


def intention(marker: str, choices: random.Random, log_ids: Sequence[LogId]) -> Intent:
    """Return something to append."""
    return Intent(
        marker=marker,
        of=choices.choice((1, 1, 1, 5)),
        log_id=CREATE if choices.random() < 0.1 else choices.choice(log_ids),
        any_version=choices.random() < 0.5,
    )


def _until_answered(manager: LogManager[Any], intent: Intent) -> Outcome:
    """Append, and retry while the answer is lost or another writer is faster."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            log_id, expected, answer = _append(manager, intent)
            return Outcome(log_id, intent.marker, intent.of, expected, answer)
        except (ConcurrentAppend, TransactionMustRetry):
            pass
        except Error:  # stored or not: unknown
            let_go()
            time.sleep(0.02)
        assert time.monotonic() < until, f"{intent} got no answer"


def _append(
    manager: LogManager[Any], intent: Intent
) -> tuple[LogId, int | None, LogState | IdempotentReplay]:
    expected: int | None = None
    log_id = intent.log_id
    try:
        if log_id == CREATE:
            expected = 0
            log_id = manager.new_id()  # another one for each try, as many clients do
            state = manager.create(
                *batch(intent.marker, intent.of), log_id=log_id, idempotency_key=intent.marker
            )
        else:
            expected = None if intent.any_version else manager.version(log_id)
            state = manager.append(
                log_id,
                *batch(intent.marker, intent.of),
                expected_version=ANY if expected is None else expected,
                idempotency_key=intent.marker,
            )
    except IdempotentReplay as replay:
        return replay.log_id, expected, replay
    return state.log_id, expected, state


def let_go() -> None:
    """Close a connection that may be lost; the next statement opens another one."""
    with suppress(Error):
        connection.close()
