"""Sixteen processes that execute decisions on one log: in turns, and each against the others."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.bench import heading
from benchmarks.contests import Team, contest, report_contest

WRITERS = 16
TARGET = 2.5  # times what callers reach who only try again


def executes(log_id: str, *, takes_turns: bool = True, keyed: bool = False) -> Callable[[], Any]:
    """Execute a decision on a log; one that ends in a conflict has failed."""
    from benchmarks.domain import CAPTURED, Captured, Payment
    from eventlogs import ConcurrentAppend, LogManager
    from eventlogs.stores.postgresql import PostgreSQLStore

    class TriesAgain(PostgreSQLStore):
        """Without turns, an attempt that was beaten is made again."""

        def in_turn(self, log_id: Any, call: Callable[[], Any], *, conflicts: int) -> Any:
            return call()

    def capture(payment: Payment) -> Iterator[Captured]:
        yield CAPTURED

    payments = Payment.logs if takes_turns else LogManager(Payment, store=TriesAgain("default"))
    keys = (f"{log_id}-{os.getpid()}-{number}" for number in itertools.count())

    def execute() -> bool:
        try:
            payments.execute(log_id, capture, idempotency_key=next(keys) if keyed else None)
        except ConcurrentAppend:
            return False
        return True

    return execute


def in_vain(log_id: str) -> Callable[[], Any]:
    """Execute as callers do who only try again, four times at most."""
    return executes(log_id, takes_turns=False)


def with_keys(log_id: str) -> Callable[[], Any]:
    """Execute in turns, each with an idempotency key."""
    return executes(log_id, keyed=True)


def run_hot_log() -> bool:
    """Print how many decisions get in, of processes that take turns and of those that do not."""
    from benchmarks.domain import CAPTURED, Payment

    def of_new_log(name: str) -> tuple[str, str]:
        return f"benchmarks.hot_log:{name}", str(Payment.logs.create(CAPTURED).log_id)

    with Team(clients=WRITERS) as team:
        found = contest(
            {
                "limit": team.work(*of_new_log("in_vain")),
                "turns": team.work(*of_new_log("executes")),
                "keyed": team.work(*of_new_log("with_keys")),
            }
        )
    heading("in turns", "tries again")
    reached = report_contest("execute on one log", found, "turns", "calls/s", TARGET)
    report_contest("… with an idempotency key", found, "keyed", "calls/s")
    report_contest("the same, without turns", found, "limit", "calls/s")
    return reached
