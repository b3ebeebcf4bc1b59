"""
Writers that are killed: what they were to append, and what they were answered, is on record.

A writer says in a pipe what it is about to append, and says so again right after the answer.
What a killed one left unanswered is taken over by its successor, with the same key: that is
how a client behaves whose first answer got lost.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
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
from tests.races.crew import PROCESSES
from tests.races.events import batch
from tests.races.history import Outcome
from tests.races.stores import races

APPLICATION = "eventlogs writer"
PATIENCE = 60  # seconds until a writer that was told to stop has stopped
CREATE = "create"


class Intent(NamedTuple):
    """What a writer is about to append; its marker is the key as well."""

    marker: str
    of: int
    log_id: LogId | str  # or CREATE
    any_version: bool


class Writers:
    """Processes that append until they are told to stop, or killed; a context manager."""

    def __init__(
        self, database: dict[str, Any], store: str, log_ids: Sequence[LogId], *, count: int
    ) -> None:
        """Prepare to start ``count`` writers; ``database`` is Django's settings of theirs."""
        options = {**database["OPTIONS"], "application_name": APPLICATION}
        self._arguments = ({**database, "OPTIONS": options}, store, list(log_ids))
        self._count = count
        self._stop = PROCESSES.Event()
        self._processes: dict[Connection, Any] = {}
        self._open: dict[Connection, dict[str, Intent]] = {}  # said, and not answered yet
        self._born = 0
        self.outcomes: list[Outcome] = []
        self.taken_over = 0  # intents of writers that were killed before the answer

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._start([])
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()

    def _start(self, left_over: list[Intent]) -> None:
        ours, theirs = PROCESSES.Pipe(duplex=False)
        name = f"w{self._born}"
        self._born += 1
        process = PROCESSES.Process(
            target=_write, args=(theirs, self._stop, name, left_over, *self._arguments), daemon=True
        )
        process.start()
        theirs.close()
        self._processes[ours] = process
        self._open[ours] = {}

    def work(self, seconds: float) -> None:
        """Let them write for a while, and put on record what they say."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            talking = wait(list(self._processes), left)
            for pipe in [pipe for pipe in self._processes if pipe in talking]:
                assert self._hear(pipe), "a writer ended by itself"

    def kill_one(self) -> None:
        """Kill one with SIGKILL, wherever it is, and start its successor."""
        pipe = random.choice(list(self._processes))
        self._processes[pipe].kill()
        while self._hear(pipe):
            pass
        self._processes.pop(pipe).join()
        left_over = list(self._open.pop(pipe).values())
        self.taken_over += len(left_over)
        self._start(left_over)

    def finish(self) -> None:
        """Have them end what they are at, and hear them out."""
        self._stop.set()
        for pipe, process in list(self._processes.items()):
            while self._hear(pipe):
                pass
            process.join(PATIENCE)
            assert process.exitcode == 0, f"a writer ended with {process.exitcode}"
            assert not self._open[pipe], f"without an answer: {self._open[pipe]}"
            del self._processes[pipe]

    def _hear(self, pipe: Connection) -> bool:
        """Put one message on record; return whether there was one."""
        try:
            message = pipe.recv()
        except EOFError:
            return False
        if isinstance(message, Intent):
            self._open[pipe][message.marker] = message
        else:
            self.outcomes.append(message)
            self._open[pipe].pop(message.marker)
        return True


def _write(
    pipe: Connection,
    stop: Any,
    name: str,
    left_over: list[Intent],
    database: dict[str, Any],
    store: str,
    log_ids: list[LogId],
) -> None:
    connection.settings_dict.update(database)
    manager = races(store, int(name[1:]))
    choices = random.Random(name)
    for intent in left_over:
        pipe.send(intent)
        pipe.send(_until_answered(manager, intent))
    number = 0
    while not stop.is_set():
        intent = Intent(
            marker=f"{name}-{number}",
            of=choices.choice((1, 1, 1, 5)),
            log_id=CREATE if choices.random() < 0.1 else choices.choice(log_ids),
            any_version=choices.random() < 0.5,
        )
        number += 1
        pipe.send(intent)
        pipe.send(_until_answered(manager, intent))


def _until_answered(manager: LogManager[Any], intent: Intent) -> Outcome:
    """Append, and ask again as long as the answer is lost, or another writer is faster."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            log_id, expected, answer = _append(manager, intent)
            return Outcome(log_id, intent.marker, intent.of, expected, answer)
        except (ConcurrentAppend, TransactionMustRetry):
            pass
        except Error:  # stored or not: who knows
            _let_go()
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


def _let_go() -> None:
    """Close a connection that may be lost; the next statement opens another one."""
    with suppress(Error):
        connection.close()
