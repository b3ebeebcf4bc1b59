"""Reducing a log of 100,000 events, beside the naive way through the ORM."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from uuid import UUID

from benchmarks.bench import heading, in_turns, report
from benchmarks.domain import Authorized, Captured, Payment, Refunded, Requested

EVENTS = 100_000
BATCH = 5_000


def run_streaming() -> bool:
    """Print events per second and the growth of memory."""
    payments = Payment.logs
    kinds = [
        Requested(10_000, "order 4711"),
        Authorized(10_000, "xyz123"),
        Captured(4_000, "till 7, receipt 20231"),
        Refunded(500, "till 7, receipt 20232"),
    ]
    state = payments.create(kinds[0])
    while state.version < EVENTS:
        count = min(BATCH, EVENTS - state.version)
        state = payments.append(state, *[kinds[n % 4] for n in range(count)])
    log_id = state.log_id

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in payments.stream(log_id):
        pass
    streamed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    expected = payments.reduce(log_id).aggregate
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    heading("eventlogs", "ORM")
    ours, theirs = in_turns(
        lambda: rate(lambda: payments.reduce(log_id).aggregate, expected),
        lambda: rate(lambda: naive(log_id.uuid), expected),
    )
    reached = report(f"decode and fold {EVENTS:,} events", ours, theirs, "events/s", 5.0)
    print(
        f"{'peak memory grew by':<44} {grown:>11.1f} MiB (streaming alone "
        f"{(streamed - before) / 1024:.1f})  < 20 {'reached' if grown < 20 else 'MISSED'}"
    )
    return reached and grown < 20


def rate(fold: Callable[[], Payment], expected: Payment) -> float:
    """Return the events per second of a fold, having checked its answer."""
    begin = time.perf_counter()
    found = fold()
    took = time.perf_counter() - begin
    if found != expected:
        raise AssertionError("The two ways to fold do not agree.")
    return EVENTS / took


def naive(log: UUID) -> Payment:
    """Fold a log as one would without eventlogs: the ORM, its JSON, and a match."""
    from eventlogs.models import Event

    payment = Payment()
    for row in Event.objects.filter(log_id=log).order_by("index").iterator():
        match row.type:
            case "benchmark.requested":
                Requested(**row.data)
            case "benchmark.authorized":
                payment.authorized += Authorized(**row.data).amount
            case "benchmark.captured":
                payment.captured += Captured(**row.data).amount
            case "benchmark.refunded":
                payment.refunded += Refunded(**row.data).amount
    return payment
