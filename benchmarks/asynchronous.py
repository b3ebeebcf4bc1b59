"""``aappend`` by tasks of one process, which join one round trip, beside pgbench and each alone."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack

from benchmarks.appends import BARE, VARIABLES, insert, make_bare_table
from benchmarks.bench import CLIENTS, heading
from benchmarks.contests import Limit, Team, contest, report_contest

TASKS = 50
ALONE = {"BENCHMARK_SETTINGS": json.dumps({"GROUP_COMMIT": False})}


def run_async() -> bool:
    """Print appends of 50 tasks of a process, and of one task, with group commit and without."""
    make_bare_table()
    work = "benchmarks.asynchronous:Tasks"
    with ExitStack() as stack:
        joined = stack.enter_context(Team(clients=1))
        alone = stack.enter_context(Team(clients=1, env=ALONE))
        limit = stack.enter_context(Limit(insert(1, BARE), table=BARE, variables=VARIABLES))
        found = contest(
            {
                "limit": limit,
                "joined": joined.work(work, TASKS),
                "alone": alone.work(work, TASKS),
                "one": joined.work(work, 1),
                "one alone": alone.work(work, 1),
            }
        )
    heading("aappend", "alone")
    what = f"aappend, {TASKS} tasks of one process"
    reached = report_contest(what, found, "joined", "appends/s", 10, beside="alone")
    reached &= report_contest("aappend, one task", found, "one", "appends/s", beside="one alone")
    heading("aappend", "pgbench")
    report_contest(f"{what}; pgbench: {CLIENTS} clients", found, "joined", "appends/s")
    return reached


class Tasks:
    """Tasks that append, each to a log of its own."""

    def __init__(self, count: int) -> None:
        from benchmarks.domain import CAPTURED, Payment

        self.payments, self.event = Payment.logs, CAPTURED
        self.runner = asyncio.Runner()
        self.states = [self.payments.create(CAPTURED) for _ in range(count)]
        self.window(time.monotonic() + 0.2)  # connect and prepare

    def window(self, end: float) -> tuple[int, int]:
        """Append until the end; no append fails."""
        return self.runner.run(self._append_until(end)), 0

    async def _append_until(self, end: float) -> int:
        async def task(number: int) -> int:
            count = 0
            while time.monotonic() < end:
                state = self.states[number]
                self.states[number] = await self.payments.aappend(state, self.event)
                count += 1
            return count

        return sum(await asyncio.gather(*map(task, range(len(self.states)))))
