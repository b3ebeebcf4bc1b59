"""``execute`` by sixteen writers on one log, beside retries without turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.bench import figure, heading
from benchmarks.contests import Team, contest, report_contest

WRITERS = 16
TRIES = 4  # as many as execute makes by default


def run_hot_log() -> bool:
    """Print how many deciders a second succeed, and how many fail."""
    from benchmarks.domain import CAPTURED, cached_payments

    log_ids = [str(cached_payments().create(CAPTURED).log_id) for _ in range(2)]
    with Team(clients=WRITERS) as team:
        found = contest(
            {
                "execute": team.work("benchmarks.hot_log:executed", log_ids[0]),
                "retried": team.work("benchmarks.hot_log:retried", log_ids[1]),
            },
            limit="retried",
        )
    heading("execute", "unordered")
    reached = report_contest(
        f"execute on one log, {WRITERS} writers", found, "execute", "successes/s", 2.5
    )
    reached &= not found.failed("execute")
    return figure("execute with a key: statements", statements(), "", at_most=2) and reached


def statements() -> int:
    """Return how many statements reach PostgreSQL if the reduction is cached."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from benchmarks.domain import CAPTURED, cached_payments

    payments = cached_payments()
    log_id = payments.create(CAPTURED).log_id
    payments.reduce(log_id)
    with CaptureQueriesContext(connection) as queries:
        payments.execute(log_id, capture, idempotency_key="benchmark")
    return len(queries)


def capture(payment: Any) -> Iterator[Any]:
    """Decide to capture."""
    from benchmarks.domain import CAPTURED

    yield CAPTURED


def executed(log_id: str) -> Callable[[], Any]:
    """Execute, with default arguments; a conflict that is left over is a failure."""
    from benchmarks.domain import cached_payments
    from eventlogs import ConcurrentAppend

    payments = cached_payments()

    def call() -> bool:
        try:
            payments.execute(log_id, capture)
        except ConcurrentAppend:
            return False
        return True

    return call


def retried(log_id: str) -> Callable[[], Any]:
    """Reduce, decide, append, and do it again after a conflict, without waiting for a turn."""
    from benchmarks.domain import cached_payments
    from eventlogs import ConcurrentAppend

    payments = cached_payments()

    def call() -> bool:
        for _ in range(TRIES):
            reduction = payments.reduce(log_id)
            try:
                payments.append(reduction, *capture(reduction.aggregate))
            except ConcurrentAppend:
                continue
            return True
        return False

    return call
