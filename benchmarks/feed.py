"""Reading a feed of 1,000,000 events, beside the naive way; and the cost of its fence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from benchmarks.bench import (
    LONG_ROUNDS,
    SCALE,
    figure,
    heading,
    in_new_process,
    in_turns,
    report,
    scratch_url,
)
from benchmarks.contests import Contestant, Team, contest, report_contest
from benchmarks.domain import Authorized, Captured, Refunded, Requested
from benchmarks.ratios import Window
from benchmarks.streaming import peak
from eventlogs import EventRecord, Feed, LogId

EVENTS = int(1_000_000 * SCALE)
LOGS = int(10_000 * SCALE)
PAGE = 2_000
ENOUGH = 100_000  # events per second
INT8 = 20  # the oid of bigint
CLASSES: dict[str, Any] = {
    "benchmark.requested": Requested,
    "benchmark.authorized": Authorized,
    "benchmark.captured": Captured,
    "benchmark.refunded": Refunded,
}

FILL = """
WITH logs AS (
    INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
    SELECT log, 'benchmark', %(events)s / %(logs)s, now(), now() FROM unnest(%(ids)s::uuid[]) AS log
)
INSERT INTO eventlogs_event
    (log_type, log_id, index, type, schema_version, data, metadata, idempotency_key, recorded_at)
SELECT 'benchmark', (%(ids)s::uuid[])[n %% %(logs)s + 1], n / %(logs)s, kind.type, 1,
       kind.data::jsonb, '{}', NULL, now()
FROM generate_series(0, %(events)s - 1) AS n
JOIN (VALUES
    (0, 'benchmark.requested', '{"amount":10000,"reference":"order 4711"}'),
    (1, 'benchmark.authorized', '{"amount":10000,"approval_code":"xyz123"}'),
    (2, 'benchmark.captured', '{"amount":4000,"reference":"till 7, receipt 20231"}'),
    (3, 'benchmark.refunded', '{"amount":500,"reference":"till 7, receipt 20232"}')
) AS kind (number, type, data) ON kind.number = n / %(logs)s %% 4
ORDER BY n
"""


def run_feed() -> bool:
    """Print how fast the feed is read, in how much memory, and what its fence costs."""
    with Team() as team:
        work = team.work("benchmarks.appends:one_append")
        found = contest(
            {"fenced": Fenced(work, fence=True), "without": Fenced(work, fence=False)},
            limit="without",
        )
    heading("fenced", "without the fence")
    what = "appends with the feed's fence, 8 processes"
    reached = report_contest(what, found, "fenced", "appends/s", 0.85)

    fill()
    ours, limit, theirs = in_turns(
        lambda: rate(read), read_by_libpq, lambda: rate(naive), rounds=min(3, LONG_ROUNDS)
    )
    heading("eventlogs", "libpq")
    reached &= report(f"read {EVENTS:,} events of the feed", ours, limit, "events/s", 0.45)
    heading("eventlogs", "ORM")
    reached &= report("… beside the ORM", ours, theirs, "events/s", 3.0)
    reached &= figure("… the slowest round", min(ours), "events/s", at_least=ENOUGH)
    grown = in_new_process(growth_of_peak_memory)
    reached &= figure("… peak memory, a new process, grows by", grown, "MiB", at_most=20, digits=1)
    return reached


@dataclass
class Fenced:
    """Appends, with the trigger of the fence or without."""

    work: Contestant
    fence: bool

    def window(self, seconds: float) -> Window:
        """Switch the trigger, and append."""
        state = "ENABLE ALWAYS" if self.fence else "DISABLE"
        execute(f"ALTER TABLE eventlogs_event {state} TRIGGER eventlogs_event_fence")
        try:
            return self.work.window(seconds)
        finally:
            execute("ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_fence")


def fill() -> None:
    """Fill the feed with the events of 10,000 logs, in turns, and with nothing else."""
    execute("TRUNCATE eventlogs_eventlog, eventlogs_idempotencykey")
    execute("ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_refuse_truncate")
    execute("TRUNCATE eventlogs_event")
    execute("ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_truncate")
    ids = [LogId.new("benchmark").uuid for _ in range(LOGS)]
    execute(FILL, {"ids": ids, "logs": LOGS, "events": EVENTS})
    execute("VACUUM ANALYZE eventlogs_event, eventlogs_eventlog")


def execute(statement: str, parameters: Any = None) -> None:
    """Run a statement in autocommit mode."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def rate(read: Callable[[], Iterator[int]]) -> float:
    """Return the events per second of a reader, having checked what it read."""
    begin = time.perf_counter()
    total = sum(read())
    took = time.perf_counter() - begin
    if total != EVENTS // 4 * (10_000 + 10_000 + 4_000 + 500):
        raise AssertionError("Some events are missing.")
    return EVENTS / took


def read() -> Iterator[int]:
    """Yield the amount of each event, by pages of the feed."""
    for record in records():
        yield record.event.amount


def records() -> Iterator[EventRecord]:
    """Yield all events of the feed, by pages."""
    feed, after, more = Feed(), 0, True
    while more:
        page = feed.read(after=after, limit=PAGE)
        yield from page
        after, more = page.next_after, page.more


# The columns of a record, in pages; nothing is decoded but the position that the next page needs.
COLUMNS = b"""
SELECT log_id, position, index, type, schema_version, data::text, metadata::text, idempotency_key,
       recorded_at, log_type
FROM eventlogs_event WHERE position > $1 ORDER BY position LIMIT 2000
"""


def read_by_libpq() -> float:
    """Return the events per second of libpq, which reads the same columns in binary."""
    with closing(psycopg.connect(scratch_url(), autocommit=True)) as connection:
        pgconn = connection.pgconn
        pgconn.prepare(b"page", COLUMNS, [INT8])
        begin = time.perf_counter()
        position, count = 0, 0
        while True:
            page = pgconn.exec_prepared(
                b"page", [position.to_bytes(8)], param_formats=[1], result_format=1
            )
            if not page.ntuples:
                break
            count += page.ntuples
            position = int.from_bytes(page.get_value(page.ntuples - 1, 1) or b"")
        took = time.perf_counter() - begin
    if count != EVENTS:
        raise AssertionError("Some events are missing.")
    return EVENTS / took


def naive() -> Iterator[int]:
    """Yield the amount of each event as one would without the feed, which may skip events."""
    from eventlogs.models import Event

    logs: set[UUID] = set()
    rows = Event.objects.select_related("log").order_by("position").iterator()
    for row in rows:
        logs.add(row.log.id)
        yield CLASSES[row.type](**row.data).amount


def growth_of_peak_memory() -> float:
    """Return by how many MiB reading the feed raises this process' peak."""
    Feed().read(limit=10)  # connect, and import late modules
    before = peak()
    for _ in read():
        pass
    return (peak() - before) / 1024
