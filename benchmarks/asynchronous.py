"""Appends of many tasks of one process, joined into one statement, beside one after the other."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from asgiref.sync import async_to_sync

from benchmarks.bench import heading
from benchmarks.contests import Team, contest, report_contest

TASKS = 50
AT_LEAST = 10.0  # times as fast as one after the other
ALONE_AT_LEAST = 0.97


class Tasks:
    """Tasks that append single events, each to a log of its own."""

    def __init__(self, tasks: int, *, joined: bool) -> None:
        from django.test import override_settings

        from benchmarks.domain import CAPTURED, Payment

        self.payments, self.event = Payment.logs, CAPTURED
        self.settings = override_settings(
            EVENTLOGS={"GROUP_COMMIT": "connection" if joined else False}
        )
        self.states = [self.payments.create(CAPTURED) for _ in range(tasks)]

    def window(self, end: float) -> tuple[int, int]:
        """Append until a moment; return how many were appended, and that none has failed."""
        with self.settings:
            return async_to_sync(self._append)(end), 0

    async def _append(self, end: float) -> int:
        return sum(
            await asyncio.gather(*(self._task(each, end) for each in range(len(self.states))))
        )

    async def _task(self, number: int, end: float) -> int:
        state, count = self.states[number], 0
        while time.monotonic() < end:
            state = await self.payments.aappend(state, self.event)
            count += 1
        self.states[number] = state
        return count


def joined(tasks: int) -> Any:
    """Append in tasks whose appends are joined."""
    return Tasks(tasks, joined=True)


def one_by_one(tasks: int) -> Any:
    """Append in tasks whose appends are statements of their own."""
    return Tasks(tasks, joined=False)


def run_async() -> bool:
    """Print 50 tasks and a single one, beside the same without group commit."""
    with Team(clients=1) as team:
        many = contest(
            {
                "limit": team.work("benchmarks.asynchronous:one_by_one", TASKS),
                "joined": team.work("benchmarks.asynchronous:joined", TASKS),
            }
        )
        one = contest(
            {
                "limit": team.work("benchmarks.asynchronous:one_by_one", 1),
                "joined": team.work("benchmarks.asynchronous:joined", 1),
            }
        )
    heading("aappend", "one by one")
    reached = report_contest(
        f"aappend, {TASKS} tasks of a process", many, "joined", "appends/s", AT_LEAST
    )
    reached &= report_contest("aappend, one task", one, "joined", "appends/s", ALONE_AT_LEAST)
    return reached
