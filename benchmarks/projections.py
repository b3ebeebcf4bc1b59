"""Read models: how fast events become rows, how soon, and what a rebuild costs."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.appends import one_append
from benchmarks.bench import SECONDS, clients, configure, figure, heading, in_turns, report

EVENTS = 400_000
FAST = 10_000  # events per second
PACE = 500  # appends per second
WRITERS = 2
SAMPLES = 400
P50, P99 = 0.1, 0.5  # seconds


def run_projections() -> bool:
    """Print the figures of read models."""
    from benchmarks import feed
    from benchmarks.totals import MODELS, Kinds, Reductions, Totals

    make_tables(MODELS)
    feed.EVENTS = EVENTS
    feed.fill()
    print(f"\n{EVENTS:,} events of {feed.LOGS:,} logs, a single worker", flush=True)
    reached = True
    for what, projection, target in (
        ("sums into a row for each log", Totals, FAST),
        ("sums into 4 rows of all logs", Kinds, FAST),
        ("the aggregate as a row", Reductions, None),
    ):
        begin = time.perf_counter()
        applied = projection.catch_up()
        rate = applied / (time.perf_counter() - begin)
        check(projection, applied)
        reached &= figure(f"projection: {what}", rate, "events/s", at_least=target)
    begin = time.perf_counter()
    applied = Totals.rebuild()
    figure("… a rebuild of the first", applied / (time.perf_counter() - begin), "events/s")
    reached &= run_lag()
    run_rebuild_beside_appends()
    return reached


def check(projection: Any, applied: int) -> None:
    """Stop where the rows are wrong: speed is nothing then."""
    if applied != EVENTS or (not projection.has_shared_rows() and not projection.verify(sample=50)):
        raise AssertionError(f"The rows of {projection.name} are wrong.")


def make_tables(models: Any) -> None:
    """Make the read models' tables, where another benchmark has not."""
    from django.db import connection

    there = connection.introspection.table_names()
    with connection.schema_editor() as editor:
        for model in models:
            if model._meta.db_table not in there:
                editor.create_model(model)


# From the commit to the row


def run_lag() -> bool:
    """Print how long after its commit an event is seen in its row, under other appends."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    processes = [context.Process(target=run_runner, args=(stop,))]
    processes += [context.Process(target=append_at_a_pace, args=(stop,)) for _ in range(WRITERS)]
    for each in processes:
        each.start()
    time.sleep(3)  # until all of them are at it
    try:
        lags = sorted(measure_lags())
    finally:
        stop.set()
        for each in processes:
            each.join(30)
    p50, p99 = statistics.median(lags), lags[int(len(lags) * 0.99)]
    print(f"\n{PACE:,} appends/s beside {len(lags):,} that are watched, by one runner")
    reached = True
    for name, lag, target in (("p50", p50, P50), ("p99", p99, P99)):
        reached &= figure(f"from commit to row, {name}", lag * 1000, "ms", at_most=target * 1000)
    return reached


def run_runner(stop: Any) -> None:
    """Keep rows up to date until told to stop."""
    configure()
    from benchmarks.totals import Totals
    from eventlogs.projections.workers import Worker

    ends = threading.Event()

    def wait() -> None:
        stop.wait()
        ends.set()

    threading.Thread(target=wait, daemon=True).start()
    Worker([Totals.name], stop=ends).run()


def append_at_a_pace(stop: Any) -> None:
    """Append so many times a second, each time to another of 100 logs."""
    configure()
    from benchmarks.domain import CAPTURED, Payment

    states = [Payment.logs.create(CAPTURED) for _ in range(100)]
    begin, count = time.perf_counter(), 0
    while not stop.is_set():
        due = begin + count * WRITERS / PACE
        time.sleep(max(0.0, due - time.perf_counter()))
        states[count % 100] = Payment.logs.append(states[count % 100], CAPTURED)
        count += 1


def measure_lags() -> list[float]:
    """Append, and look for the row until it shows it."""
    from benchmarks.domain import CAPTURED, Payment
    from benchmarks.totals import Total

    state, lags = Payment.logs.create(CAPTURED), []
    rows = Total._base_manager.filter(pk=state.log_id).values_list("captured", flat=True)
    for _ in range(SAMPLES):
        committed = time.perf_counter()
        while (rows.first() or 0) < CAPTURED.amount * state.version:
            if time.perf_counter() - committed > 20:
                raise AssertionError("The row does not come.")
            time.sleep(0.001)
        lags.append(time.perf_counter() - committed)
        time.sleep(0.01)
        state = Payment.logs.append(state, CAPTURED)
    return lags


# A rebuild beside appends


def run_rebuild_beside_appends() -> None:
    """Print what a rebuild costs eight processes that append meanwhile."""
    heading("rebuild", "without a rebuild")
    beside, without = in_turns(
        lambda: during(rebuild_for_good, lambda: clients(one_append)),
        lambda: clients(one_append),
        rounds=3,
    )
    report("single appends beside a rebuild", beside, without, "appends/s")


def during(work: Callable[[Any], None], measure: Callable[[], float]) -> float:
    """Return a figure that is taken while a process works."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=work, args=(stop,))
    process.start()
    time.sleep(min(2, SECONDS))
    try:
        return measure()
    finally:
        stop.set()
        process.join(120)


def rebuild_for_good(stop: Any) -> None:
    """Rebuild, again and again."""
    configure()
    from benchmarks.totals import Totals

    while not stop.is_set():
        Totals.rebuild(restart=True)
