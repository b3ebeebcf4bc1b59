"""Reducing a log of 100,000 events, beside the naive way through the ORM."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from benchmarks.bench import figure, heading, in_new_process, in_turns, report
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

    expected = payments.reduce(log_id, fresh=True).aggregate
    grown = in_new_process(growth_of_peak_memory, str(log_id))

    heading("eventlogs", "ORM")
    ours, theirs = in_turns(
        lambda: rate(lambda: payments.reduce(log_id, fresh=True).aggregate, expected),
        lambda: rate(lambda: naive(log_id.uuid), expected),
    )
    reached = report(f"decode and fold {EVENTS:,} events", ours, theirs, "events/s", 5.0)
    reached &= figure("… peak memory, a new process, grows by", grown, "MiB", at_most=20, digits=1)
    return reached


def growth_of_peak_memory(log_id: str) -> float:
    """Return by how many MiB streaming and reducing the log raise this process' peak."""
    payments = Payment.logs
    payments.load(log_id, limit=10)  # connect, and import what is imported late
    before = peak()
    for _ in payments.stream(log_id):
        pass
    payments.reduce(log_id, fresh=True)
    return (peak() - before) / 1024


def peak() -> int:
    """Return this process' peak memory in KiB; getrusage's would include its parent's."""
    [line] = [
        line
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1])


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
