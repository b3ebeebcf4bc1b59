"""Whether an append's time depends on the table's size or the log's length."""

from __future__ import annotations

import statistics
import time

from benchmarks.bench import ROUNDS, SECONDS, figure
from eventlogs import EventRecord, LogState

SMALL = 10_000  # events
LARGE = 2_000_000
LOG = 2_000  # events of each log that fills the table


def run_growth() -> bool:
    """Print the median time of appends, to a short and to a long log, small and large table."""
    from django.db import connection

    from benchmarks.domain import CAPTURED, Payment

    payments = Payment.logs
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE eventlogs_eventlog, eventlogs_idempotencykey")
        cursor.execute(
            "ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_refuse_truncate"
        )
        cursor.execute("TRUNCATE eventlogs_event")
        cursor.execute(
            "ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_truncate"
        )

    long = payments.create(CAPTURED)
    fill(SMALL - 1)
    small = [median_append(payments.create(CAPTURED)) for _ in range(ROUNDS)]
    fill(LARGE - SMALL)
    while long.version < 100_000:
        long = payments.append(long, *[CAPTURED] * 5_000)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    large, longer = [], []
    for _ in range(ROUNDS):
        large.append(median_append(payments.create(CAPTURED)))
        longer.append(median_append(payments.load(long.log_id, limit=1, reverse=True)[0]))

    reached = True
    base = statistics.median(small)
    figure(f"one append, table of {SMALL:,} events", base * 1e6, "µs")
    for name, found in [
        (f"… of {LARGE:,} events, to the former", large),
        (f"… to a log of {long.version:,} events", longer),
    ]:
        ratio = statistics.median(found) / base
        reached &= figure(name, ratio, "times as long", at_most=1.2, digits=2)
    return reached


def fill(events: int) -> None:
    """Fill the table through SQL, with rows like ours."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH logs AS (
                INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
                SELECT gen_random_uuid(), 'benchmark', %(log)s, now(), now()
                FROM generate_series(1, %(events)s / %(log)s)
                RETURNING id
            )
            INSERT INTO eventlogs_event
                (log_type, log_id, index, type, schema_version, data, metadata, recorded_at)
            SELECT 'benchmark', id, n, 'benchmark.captured', 1,
                   '{"amount":4000,"reference":"till 7, receipt 20231"}', '{}', now()
            FROM logs, generate_series(0, %(log)s - 1) AS n
            """,
            {"log": LOG, "events": events},
        )


def median_append(last: LogState | EventRecord) -> float:
    """Return the median seconds of single appends after a state or record."""
    from benchmarks.domain import CAPTURED, Payment

    payments = Payment.logs
    if isinstance(last, EventRecord):
        last = LogState(last.log_id, last.index + 1, last.position)
    times = []
    begin = time.perf_counter()
    while (now := time.perf_counter()) - begin < SECONDS / 2:
        last = payments.append(last, CAPTURED)
        times.append(time.perf_counter() - now)
    return statistics.median(times)
