"""Writers of async code: each process has many tasks, whose appends are joined."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.db import Error

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotentReplay,
    LogId,
    LogManager,
    LogState,
    TransactionMustRetry,
)
from eventlogs.utils import batching
from tests.processes import PATIENCE, Place
from tests.races.events import Race, batch
from tests.races.history import Outcome
from tests.reliability.writers import CREATE, Intent, intention, let_go

TASKS = 50


def write(place: Place, left_over: list[Intent], _: str, log_ids: list[LogId]) -> None:
    """Append in many tasks at once, until the test asks to end: the job of a writer."""
    async_to_sync(_write)(place, left_over, log_ids)


async def _write(place: Place, left_over: list[Intent], log_ids: list[LogId]) -> None:
    intents = iter(left_over)
    await asyncio.gather(*(_task(place, number, intents, log_ids) for number in range(TASKS)))


async def _task(place: Place, number: int, left_over: Any, log_ids: list[LogId]) -> None:
    name = f"w{place.number}-{number}"
    choices = random.Random(name)
    count = 0
    while True:
        intent = next(left_over, None)
        if intent is None:
            if place.is_set():
                return
            intent = intention(f"{name}-{count}", choices, log_ids)
            count += 1
        place.say(intent)
        place.say(await _until_answered(intent, choices))


async def _until_answered(intent: Intent, choices: random.Random) -> Outcome:
    """Append, and retry if the answer is lost, the call is cancelled, or another was faster."""
    manager = LogManager(Race)
    until = time.monotonic() + PATIENCE
    while True:
        asking = asyncio.create_task(_append(manager, intent))
        if choices.random() < 0.1:  # at any of its steps
            for _ in range(choices.randrange(20)):
                await asyncio.sleep(0)
            asking.cancel()
        try:
            log_id, expected, answer = await asking
            return Outcome(log_id, intent.marker, intent.of, expected, answer)
        except (ConcurrentAppend, TransactionMustRetry, asyncio.CancelledError):
            pass
        except Error:  # stored or not: unknown
            await sync_to_async(let_go)()
        assert time.monotonic() < until, f"{intent} got no answer"


async def _append(
    manager: LogManager[Any], intent: Intent
) -> tuple[LogId, int | None, LogState | IdempotentReplay]:
    expected: int | None = None
    events = batch(intent.marker, intent.of)
    log_id = intent.log_id
    try:
        if log_id == CREATE:
            expected = 0
            log_id = manager.new_id()
            state = await manager.acreate(*events, log_id=log_id, idempotency_key=intent.marker)
        else:
            expected = None if intent.any_version else await manager.aversion(log_id)
            state = await manager.aappend(
                log_id,
                *events,
                expected_version=ANY if expected is None else expected,
                idempotency_key=intent.marker,
            )
    except IdempotentReplay as replay:
        return replay.log_id, expected, replay
    return state.log_id, expected, state


def write_with_mixed_answers(
    place: Place, left_over: list[Intent], store: str, log_ids: list[LogId]
) -> None:
    """Write, on a broken version: calls get one another's answers."""
    answer = batching._answer
    batching._answer = lambda calls, answers: answer(calls, answers[::-1])
    write(place, left_over, store, log_ids)
