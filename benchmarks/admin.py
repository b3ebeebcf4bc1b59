"""
The time that pages of the admin take on large tables.

Server time is that of a whole request: middleware, session, permissions, queries, template. What
a page reads is what PostgreSQL counts: EXPLAIN ANALYZE of each of its statements, and the rows
that it read by scanning whole tables.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.bench import LONG_ROUNDS, SCALE, keep
from benchmarks.tables import Row

EVENTS = int(2_000_000 * SCALE)
LOGS = EVENTS // 10
PER_LOG = EVENTS // LOGS
LONG, SHORT = 100_000, 100
SLOWEST = 0.150  # seconds of server time
LOOKING = 1.5  # seconds of a page that looks for rare events, a window of 100,000 at a time
QUERIES = 12
SCANNED = 100  # rows that a page may read by scanning a whole table: those of users, say
ALIKE = 1.5
LOOK_ON = ("events of a rare type", "events of a log type", "events by metadata")
TIMES = 3 * LONG_ROUNDS

# Logs begin one after another, and their events lie among those of the 2,000 logs after them.
# Their ids are UUIDs of version 7 of the time of their first event: 90 days in all.
FILL = """
CREATE TEMPORARY TABLE filling AS
SELECT n, (lpad(to_hex(1780000000000 + n::bigint * 38880), 12, '0')
           || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid AS id
FROM generate_series(0, %(logs)s - 1) AS n;

INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
SELECT id, CASE WHEN n %% 20 = 0 THEN 'benchmarkrow' ELSE 'benchmark' END, %(per_log)s,
       to_timestamp(1780000000 + n * 38.88), to_timestamp(1780000000 + (n + 2000) * 38.88)
FROM filling;

INSERT INTO eventlogs_event
    (log_type, log_id, index, type, schema_version, data, metadata, idempotency_key, recorded_at)
SELECT CASE WHEN n %% 20 = 0 THEN 'benchmarkrow' ELSE 'benchmark' END, id, i,
       CASE WHEN i = 0 THEN 'benchmark.requested'
            WHEN i = 1 THEN 'benchmark.authorized'
            WHEN i = %(per_log)s - 1 AND n < 50 THEN 'benchmark.refunded'
            ELSE 'benchmark.captured' END, 1,
       CASE WHEN i = 1 THEN '{"amount":4000,"approval_code":"xyz123"}'
            ELSE '{"amount":4000,"reference":"till 7, receipt 20231"}' END::jsonb,
       CASE WHEN n %% 7 = 0 THEN jsonb_build_object('user', 'ada', 'correlation_id', n)
            ELSE '{}' END,
       CASE WHEN i = 0 THEN 'order-' || n END,
       to_timestamp(1780000000 + (n + i * 200) * 38.88)
FROM filling, generate_series(0, %(per_log)s - 1) AS i
ORDER BY n + i * 200, n;

-- An import of old logs: their events have the highest positions, and the lowest times.
INSERT INTO eventlogs_event
    (log_type, log_id, index, type, schema_version, data, metadata, idempotency_key, recorded_at)
SELECT CASE WHEN n %% 20 = 0 THEN 'benchmarkrow' ELSE 'benchmark' END, id,
       %(per_log)s + i, 'benchmark.captured', 1, '{"amount":4000,"reference":"old"}', '{}', NULL,
       to_timestamp(1770000000 + n)
FROM filling, generate_series(0, 1) AS i
WHERE n < 50000
ORDER BY n, i;

INSERT INTO eventlogs_idempotencykey
    (log_type, key, log_id, first_index, count, fingerprint, created_at)
SELECT CASE WHEN n %% 20 = 0 THEN 'benchmarkrow' ELSE 'benchmark' END, 'order-' || n, id, 0, 1,
       decode(md5(n::text), 'hex'), to_timestamp(1780000000 + n * 38.88)
FROM filling;
"""


@dataclass(frozen=True, slots=True)
class Found:
    """The cost of a page."""

    seconds: float
    queries: int
    read: int  # rows that its statements went through
    scanned: int  # rows that were read by scanning whole tables
    page: str


class Visitor:
    """A user with all view permissions, who requests pages."""

    def __init__(self) -> None:
        from django.contrib.auth.models import User
        from django.test import Client

        self._client = Client()
        self._client.force_login(User.objects.create_superuser("ada"))

    def look(self, address: str) -> Found:
        """Return the cost of a page: the median of several requests, after one that warms up."""
        from django.db import connection
        from django.test.utils import CaptureQueriesContext

        page = self.get(address)
        times = []
        for _ in range(TIMES):
            begin = time.perf_counter()
            self.get(address)
            times.append(time.perf_counter() - begin)
        before = scanned_rows()
        with CaptureQueriesContext(connection) as context:
            self.get(address)
        scanned = scanned_rows() - before
        read = max([rows_read(each["sql"]) for each in context.captured_queries], default=0)
        return Found(statistics.median(times), len(context), read, scanned, page)

    def get(self, address: str) -> str:
        """Return a page, or stop where it cannot be shown."""
        response = self._client.get(address)
        if response.status_code != 200:
            raise AssertionError(f"{address}: {response.status_code}")
        return response.content.decode()


def run_admin() -> bool:
    """Print the cost of each page, at its beginning, in the middle and at the end."""
    from django.urls import reverse

    from benchmarks.totals import MODELS
    from eventlogs.models import Event, EventLog
    from eventlogs.reductions.worker import worker

    fill(MODELS)
    from benchmarks.domain import CAPTURED, Payment

    print(f"\n{EVENTS:,} events of {LOGS:,} logs", flush=True)
    visitor = Visitor()
    logs = reverse("admin:eventlogs_eventlog_changelist")
    events = reverse("admin:eventlogs_event_changelist")
    projections = reverse("admin:eventlogs_projectionstate_changelist")
    ids = EventLog.objects.order_by("pk")
    middle_log = ids[LOGS // 2].log_id
    middle = Event.objects.filter(log_id=middle_log.uuid).order_by("index")[0]
    oldest = ids[0].log_id
    day = middle.recorded_at.date()
    imported = Event.objects.order_by("recorded_at")[0].recorded_at.date()
    long, short = (long_log(Payment, CAPTURED, size) for size in (LONG, SHORT))
    pages = [
        ("logs", logs, ["", f"?before={middle_log.uuid.hex}", "?end=1"]),
        (
            "logs of a type",
            f"{logs}?type=benchmarkrow&",
            ["", f"before={middle_log.uuid}", "end=1"],
        ),
        ("logs of a day", logs, [f"?from={day}&to={day}"]),
        ("a log by its id, its end, a key", logs, finds(middle_log, oldest)),
        ("events", events, ["", f"?before={middle.position}", "?end=1"]),
        ("events of a common type", f"{events}?type=benchmark.captured&", around(middle)),
        ("events of a rare type", f"{events}?type=benchmark.refunded&", around(middle)),
        ("events of a log type", f"{events}?log_type=benchmarkrow&", around(middle)),
        ("events of a day", f"{events}?from={day}&to={day}&", ["", "end=1"]),
        ("events of an imported day", f"{events}?from={imported}&to={imported}&", ["", "end=1"]),
        ("events up to a day", f"{events}?to={day}&", ["", "end=1"]),
        ("events by metadata", f"{events}?metadata=correlation_id%3D{LOGS // 2}&", around(middle)),
        ("events of a key", events, [f"?key=order-{LOGS // 2}"]),
        ("events around one", f"{events}?around={middle.position}", [""]),
        ("events of a log", f"{events}?log={middle_log}&", ["", "end=1"]),
        ("events of a long log", f"{events}?log={long}&", ["", f"before={EVENTS}", "end=1"]),
        ("a log of 10 events", of(middle_log), ["", "?event=5", "?event=0"]),
        ("projections, and one", projections, ["", "totals/change/"]),
    ]
    print(f"\n{'':<34} {'ms':>27} {'queries':>8} {'rows read':>10} {'scanned':>8}")
    reached = True
    for name, address, queries in pages:
        taken = [visitor.look(address + each) for each in queries]
        reached &= tell(name, taken, looks=name in LOOK_ON)

    print(f"\nOpening a log of {LONG:,} events, against one of {SHORT}")
    for log_id in (long, short):
        Payment.logs.reduce(log_id)
    worker.flush(10)
    base = visitor.look(of(short))
    reached &= tell(f"one of {SHORT}", [base])
    last, half = LONG - 1, LONG // 2
    reached &= tell("opened", [found := visitor.look(of(long))], base)
    assert f"the cached version {LONG}" in found.page, "no state was shown"
    reached &= tell("its first event", [visitor.look(of(long, 0))], base)
    reached &= tell("its middle, where nothing helps", [visitor.look(of(long, half))], base)
    folded = first_fold(visitor, of(long, half))
    print(f"{'… all before it folded, once':<34} {folded.seconds * 1e3:>27,.0f}  {cost(folded)}")
    reached &= tell("its middle, from a snapshot", [visitor.look(of(long, half))], base)
    reached &= tell("a page before", [visitor.look(of(long, half - 25))], base)
    folded = first_fold(visitor, of(long, last))
    print(f"{'… all before its end folded':<34} {folded.seconds * 1e3:>27,.0f}  {cost(folded)}")
    reached &= tell("its end, with what changed", [visitor.look(of(long, last))], base)
    return reached


def tell(name: str, found: list[Found], base: Found | None = None, *, looks: bool = False) -> bool:
    """Print a row, and return whether it is as it should be; a page that ``looks`` takes time."""
    times = ", ".join(f"{each.seconds * 1e3:.0f}" for each in found)
    queries = max(each.queries for each in found)
    read = max(each.read for each in found)
    scanned = max(each.scanned for each in found)
    slowest = max(each.seconds for each in found)
    reached = slowest < (LOOKING if looks else SLOWEST) and scanned <= SCANNED
    reached &= looks or queries <= QUERIES
    ratio = ""
    if base is not None:
        reached &= slowest <= ALIKE * base.seconds
        ratio = f" ratio {slowest / base.seconds:.2f} <= {ALIKE:g}"
    print(
        f"{name:<34} {times:>27} {queries:>8} {read:>10,} {scanned:>8,}"
        f"{ratio} {'reached' if reached else 'MISSED'}",
        flush=True,
    )
    keep(
        Row(
            f"admin: {name}",
            f"{times} ms",
            f"{queries} statements",
            ratio.removeprefix(" ratio ").partition(" ")[0],
            f"at most {LOOKING if looks else SLOWEST:g} s" + ("" if reached else ", missed"),
        )
    )
    return reached


def around(middle: Any) -> list[str]:
    """Return the queries of the first page, one in the middle, and the last."""
    return ["", f"before={middle.position}", "end=1"]


def finds(middle: Any, oldest: Any) -> list[str]:
    """Return the queries of searches."""
    return [f"?q={middle}", f"?q={str(oldest)[-8:]}", f"?q=order-{LOGS // 2}"]


def of(log_id: Any, event: int | None = None) -> str:
    """Return the address of a log's page."""
    from django.urls import reverse

    address = reverse("admin:eventlogs_eventlog_change", args=[log_id])
    return address if event is None else f"{address}?event={event}"


def first_fold(visitor: Visitor, address: str) -> Found:
    """Return the cost of the first request, which folds all earlier events."""
    begin = time.perf_counter()
    page = visitor.get(f"{address}&fold=1")
    return Found(time.perf_counter() - begin, 0, 0, 0, page)


def cost(found: Found) -> str:
    """Return the time that a page reports for its state."""
    text = found.page.partition('el-cost">')[2].partition("</p>")[0]
    return f"“{text.strip()}”"


def long_log(payments: Any, event: Any, size: int) -> Any:
    """Make a log of so many events."""
    state = payments.logs.create(event)
    while state.version < size:
        state = payments.logs.append(state, *[event] * min(5_000, size - state.version))
    return state.log_id


def fill(models: Any) -> None:
    """Fill the tables through SQL, with rows like ours."""
    from django.db import connection

    from benchmarks.projections import make_tables

    make_tables(models)
    with connection.cursor() as cursor:
        cursor.execute(FILL, {"logs": LOGS, "per_log": PER_LOG})
        cursor.execute("VACUUM ANALYZE")


def scanned_rows() -> int:
    """Return the rows that were read so far by scanning whole tables."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables")
        return int(cursor.fetchone()[0])


def rows_read(statement: str) -> int:
    """Return the rows that a statement reads, including filtered ones."""
    from django.db import connection

    if not statement.startswith(("SELECT", "WITH", "\nWITH", "\nSELECT")):
        return 0
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement.replace("%", "%%"), [])
        found = cursor.fetchone()[0]
    plan = found if isinstance(found, list) else json.loads(found)
    return max(nodes(plan[0]["Plan"]))


def nodes(plan: dict[str, Any]) -> Iterator[int]:
    """Yield the rows that each node of a plan went through."""
    removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
    yield round((plan["Actual Rows"] + removed) * plan["Actual Loops"])
    for each in plan.get("Plans", ()):
        yield from nodes(each)
