"""Single appends and batches at eight client processes, beside pgbench's bare INSERT."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable
from typing import Any

from benchmarks.bench import heading
from benchmarks.contests import Limit, Team, contest, report_contest

# The same rows and nothing else, in a log of each run's own; each client has its own indexes.
# The payload is a parameter, as in any program: a literal would be parsed once, at PREPARE.
PAYLOAD = '{"amount":4000,"reference":"till 7, receipt 20231"}'
SCRIPT = """\\set n :n + 1
\\set first :client_id * 250000000 + :n * {rows}
INSERT INTO {table}
 (log_type, log_id, index, type, schema_version, data, metadata, idempotency_key, recorded_at)
 VALUES
 {values};
"""
BARE = "eventlogs_benchmark_bare"
VARIABLES = {"n": 0, "payload": PAYLOAD}
ROW = """('benchmark', '{log}', :first + {offset}, 'benchmark.captured', 1,
 :payload::jsonb, '{{}}', NULL, clock_timestamp())"""


def insert(rows: int, table: str = "eventlogs_event") -> str:
    """Return a pgbench script that inserts so many rows by one statement."""
    log = uuid.uuid4()
    values = ",\n".join(ROW.format(log=log, offset=offset) for offset in range(rows))
    return SCRIPT.format(table=table, rows=rows, values=values)


def one_append() -> Callable[[], Any]:
    """Append single events to a log of this process' own."""
    from benchmarks.domain import CAPTURED, Payment

    payments = Payment.logs
    state = payments.create(CAPTURED)

    def append() -> None:
        nonlocal state
        state = payments.append(state, CAPTURED)

    return append


def one_append_with_key() -> Callable[[], Any]:
    """Append single events, each with an idempotency key."""
    from benchmarks.domain import CAPTURED, Payment

    payments = Payment.logs
    state = payments.create(CAPTURED)
    keys = itertools.count()
    prefix = f"{os.getpid()}-{state.log_id}"

    def append() -> None:
        nonlocal state
        state = payments.append(state, CAPTURED, idempotency_key=f"{prefix}-{next(keys)}")

    return append


def one_create() -> Callable[[], Any]:
    """Create logs."""
    from benchmarks.domain import CAPTURED, Payment

    payments = Payment.logs
    return lambda: payments.create(CAPTURED)


def hundred_appended() -> Callable[[], Any]:
    """Append 100 events at once."""
    from benchmarks.domain import CAPTURED, Payment

    payments = Payment.logs
    state = payments.create(CAPTURED)
    events = [CAPTURED] * 100

    def append() -> None:
        nonlocal state
        state = payments.append(state, *events)

    return append


def in_transaction() -> Callable[[], Any]:
    """Append single events, each inside of a transaction of the caller's."""
    from django.db import transaction

    append = one_append()

    def append_in_transaction() -> None:
        with transaction.atomic():
            append()

    return append_in_transaction


def make_bare_table() -> None:
    """Make a table like that of the events, indexes included, without triggers: for the limit."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {BARE} (LIKE eventlogs_event INCLUDING ALL)")


def run_appends() -> bool:
    """Print single appends, with and without a key, and creates."""
    make_bare_table()
    with (
        Team() as team,
        Limit(insert(1, BARE), table=BARE, variables=VARIABLES) as limit,
        Limit(insert(1), table="eventlogs_event", variables=VARIABLES) as fenced,
    ):
        found = contest(
            {
                "limit": limit,
                "fenced": fenced,
                "single": team.work("benchmarks.appends:one_append"),
                "keyed": team.work("benchmarks.appends:one_append_with_key"),
                "create": team.work("benchmarks.appends:one_create"),
                "atomic": team.work("benchmarks.appends:in_transaction"),
            }
        )
    heading("eventlogs", "pgbench")
    reached = report_contest("single appends, 8 processes", found, "single", "appends/s", 0.5)
    for name, what in (
        ("keyed", "… each with an idempotency key"),
        ("create", "… each creating a log"),
        ("atomic", "… each inside of atomic()"),
        ("fenced", "the INSERT of pgbench, with the fence"),
    ):
        report_contest(what, found, name, "appends/s")
    return reached


def run_batches() -> bool:
    """Print batches of 100 events."""
    make_bare_table()
    with (
        Team() as team,
        Limit(insert(100, BARE), table=BARE, rows=100, variables=VARIABLES) as limit,
    ):
        found = contest(
            {"limit": limit, "batches": team.work("benchmarks.appends:hundred_appended")}
        )
    heading("eventlogs", "pgbench")
    return report_contest("batches of 100, 8 processes", found, "batches", "batches/s", 0.7)
