"""Read models: the throughput and the delay of rows, and the cost of a rebuild."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.appends import one_append
from benchmarks.bench import (
    LONG_ROUNDS,
    SCALE,
    clients,
    configure,
    figure,
    heading,
    in_turns,
    report,
)

EVENTS = int(200_000 * SCALE)
BATCH = 2_000  # events of one statement of SQL
WORKERS = (1, 2, 4)
BESIDE = 5.0  # seconds of appends beside a rebuild
FAST = 10_000  # events per second
PACE = 500  # appends per second
WRITERS = 2
SAMPLES = 400
WARM_UP = 100  # samples that do not count: until the runner and the writers have started
PATIENCE = 120.0  # seconds, for the runner to begin
P50, P99 = 0.1, 0.5  # seconds


def run_projections() -> bool:
    """Print the figures of read models."""
    from benchmarks import feed
    from benchmarks.totals import MODELS, Kinds, Reductions, Totals

    make_tables(MODELS)
    feed.EVENTS = EVENTS
    feed.fill()
    print(f"\n{EVENTS:,} events of {feed.LOGS:,} logs, a single worker", flush=True)
    ours, limit = in_turns(
        lambda: applied_per_second(Totals), summed_by_sql, rounds=min(3, LONG_ROUNDS)
    )
    heading("projection", "SQL")
    reached = report("projection: sums into a row for each log", ours, limit, "events/s", 0.4)
    reached &= figure("… the slowest round", min(ours), "events/s", at_least=FAST)
    for what, projection, target in (
        ("sums into 4 rows of all logs", Kinds, FAST),
        ("the aggregate as a row", Reductions, None),
    ):
        rate = applied_per_second(projection)
        reached &= figure(f"projection: {what}", rate, "events/s", at_least=target)
    begin = time.perf_counter()
    applied = Totals.rebuild()
    figure("… a rebuild of the first", applied / (time.perf_counter() - begin), "events/s")
    run_workers()
    reached &= run_lag()
    run_rebuild_beside_appends()
    return reached


def applied_per_second(projection: Any) -> float:
    """Return how many events a second a projection applies from its beginning."""
    forget(projection)
    begin = time.perf_counter()
    applied = projection.catch_up()
    took = time.perf_counter() - begin
    check(projection, applied)
    return float(applied / took)


def forget(projection: Any) -> None:
    """Let a projection begin again, with no rows."""
    from eventlogs.models import AppliedVersion, Checkpoint, ProjectionState

    projection.model._base_manager.all().delete()
    for model in (Checkpoint, AppliedVersion, ProjectionState):
        found: Any = {"name" if model is ProjectionState else "projection": projection.name}
        model._base_manager.filter(**found).delete()


# The sums of Totals, into a table like that of its rows.
SUMS = """
INSERT INTO {table} (log_id, authorized, captured, refunded)
SELECT log_id,
       coalesce(sum((data->>'amount')::bigint) FILTER (WHERE type = 'benchmark.authorized'), 0),
       coalesce(sum((data->>'amount')::bigint) FILTER (WHERE type = 'benchmark.captured'), 0),
       coalesce(sum((data->>'amount')::bigint) FILTER (WHERE type = 'benchmark.refunded'), 0)
FROM eventlogs_event
WHERE position BETWEEN %s AND %s
GROUP BY log_id
ON CONFLICT (log_id) DO UPDATE SET
    authorized = {table}.authorized + excluded.authorized,
    captured = {table}.captured + excluded.captured,
    refunded = {table}.refunded + excluded.refunded
"""


def summed_by_sql() -> float:
    """Return the events per second of the same sums in SQL, as many at once as a batch has."""
    from django.db import connection
    from django.db.models import Max, Min

    from benchmarks.totals import Totals
    from eventlogs.models import Event

    rows = "benchmarks_summed"
    ends = Event.objects.aggregate(first=Min("position"), last=Max("position"))
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {rows}")
        cursor.execute(f"CREATE TABLE {rows} (LIKE {Totals.model._meta.db_table} INCLUDING ALL)")
        begin = time.perf_counter()
        for first in range(ends["first"], ends["last"] + 1, BATCH):
            cursor.execute(SUMS.format(table=rows), [first, first + BATCH - 1])
        took = time.perf_counter() - begin
        cursor.execute(f"SELECT count(*) FROM {rows}")
        if not cursor.fetchone()[0]:
            raise AssertionError("SQL has summed nothing.")
    return EVENTS / took


def run_workers() -> None:
    """Print what several workers of one projection, with four partitions, apply together."""
    rates = in_turns(
        *(lambda count=count: rate_of_workers(count) for count in WORKERS),
        rounds=min(2, LONG_ROUNDS),
    )
    heading("workers", "one worker")
    for count, found in zip(WORKERS[1:], rates[1:], strict=True):
        report(f"{count} workers of a projection", found, rates[0], "events/s")


def rate_of_workers(count: int) -> float:
    """Return the events per second of some workers, in the middle of their work."""
    from benchmarks.totals import DividedTotals

    forget(DividedTotals)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    processes = [
        context.Process(target=run_runner, args=(stop, DividedTotals.name)) for _ in range(count)
    ]
    for process in processes:
        process.start()
    try:
        # By then all workers run, and have divided the partitions.
        begun_with = wait_until_applied(EVENTS * 4 // 10)
        begin = time.perf_counter()
        ended_with = wait_until_applied(EVENTS * 9 // 10)
        return (ended_with - begun_with) / (time.perf_counter() - begin)
    finally:
        stop.set()
        for process in processes:
            process.join(30)


def wait_until_applied(least: int) -> int:
    """Wait until the workers have applied so many events; return how many."""
    from django.db.models import Sum

    from benchmarks.totals import DividedTotals
    from eventlogs.models import Checkpoint

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        found = Checkpoint._base_manager.filter(projection=DividedTotals.name)
        applied = found.aggregate(all=Sum("applied"))["all"] or 0
        if applied >= least:
            return int(applied)
        time.sleep(0.05)
    raise AssertionError("The workers stand still.")


def check(projection: Any, applied: int) -> None:
    """Stop if the rows are wrong."""
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


def run_runner(stop: Any, name: str = "totals") -> None:
    """Keep rows up to date until told to stop."""
    configure()
    import benchmarks.totals  # noqa: F401  # declares the projections
    from eventlogs.projections.workers import Worker

    ends = threading.Event()

    def wait() -> None:
        stop.wait()
        ends.set()

    threading.Thread(target=wait, daemon=True).start()
    Worker([name], stop=ends).run()


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
    """Append, and poll the row until it shows the event."""
    from benchmarks.domain import CAPTURED, Payment
    from benchmarks.totals import Total

    state, lags = Payment.logs.create(CAPTURED), []
    rows = Total._base_manager.filter(pk=state.log_id).values_list("captured", flat=True)
    for _ in range(WARM_UP + SAMPLES):
        committed = time.perf_counter()
        while (rows.first() or 0) < CAPTURED.amount * state.version:
            if time.perf_counter() - committed > PATIENCE:
                raise AssertionError("The row does not come.")
            time.sleep(0.001)
        lags.append(time.perf_counter() - committed)
        time.sleep(0.01)
        state = Payment.logs.append(state, CAPTURED)
    return lags[WARM_UP:]


# A rebuild beside appends


def run_rebuild_beside_appends() -> None:
    """Print the cost of a rebuild to eight processes that append meanwhile."""
    heading("rebuild", "without a rebuild")
    beside, without = in_turns(
        lambda: during(rebuild_for_good, lambda: clients(one_append, seconds=BESIDE)),
        lambda: clients(one_append, seconds=BESIDE),
        rounds=min(3, LONG_ROUNDS),
    )
    report("single appends beside a rebuild", beside, without, "appends/s")


def during(work: Callable[[Any], None], measure: Callable[[], float]) -> float:
    """Return a figure that is taken while a process works."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=work, args=(stop,))
    process.start()
    time.sleep(2)
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
