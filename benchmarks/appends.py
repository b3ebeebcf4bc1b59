"""Single appends and batches at eight client processes, beside pgbench's bare INSERT."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.bench import CLIENTS, heading
from benchmarks.contests import (
    Absent,
    BenchmarkFailed,
    Contestant,
    Limit,
    Team,
    contest,
    report_contest,
)
from benchmarks.environments import BY_HAND, EVENTSOURCING, EVENTSOURCING_DJANGO, contestants_of

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


def statement() -> str:
    """Return a pgbench script that runs the statement of single appends, each after the last."""
    from eventlogs import conf
    from eventlogs.stores.append_statements import VARIANTS

    sql = VARIANTS[False, conf.has_buckets()].append_one.sql
    values = {
        "log": "lpad(to_hex(:client_id::integer), 32, '0')",
        "log_type": "'benchmark'",
        "expected": ":expected",
        "position": "nullif(:position, 0)",
        "type": "'benchmark.captured'",
        "schema_version": "1",
        "data": ":payload",
        "metadata": "'{}'",
    }
    for name, value in values.items():
        sql = sql.replace(f"%({name})s", value)
    head, _, _ = sql.rpartition("RETURNING")
    return f"{head}RETURNING position, index + 1 AS expected \\gset\n"


def make_logs_of_statement() -> dict[str, Any]:
    """Make a log for each client of `statement`; return their initial values."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
            SELECT lpad(to_hex(client), 32, '0')::uuid, 'benchmark', 0, now(), now()
            FROM generate_series(0, %s - 1) AS client
            """,
            [CLIENTS],
        )
    return {"payload": PAYLOAD, "expected": 0, "position": 0}


def run_appends() -> bool:
    """Print single appends of all kinds, and those of others, beside the bare INSERT."""
    make_bare_table()
    begin = make_logs_of_statement()
    with ExitStack() as stack:
        team = stack.enter_context(Team())
        limit = stack.enter_context(Limit(insert(1, BARE), table=BARE, variables=VARIABLES))
        fenced = stack.enter_context(Limit(insert(1), table="eventlogs_event", variables=VARIABLES))
        contestants: dict[str, Contestant] = {"limit": limit, "fenced": fenced}
        contestants["statement"] = limit_or_absent(
            stack, statement(), table="eventlogs_event", variables=begin
        )
        for name, function in (
            ("single", "one_append"),
            ("keyed", "one_append_with_key"),
            ("create", "one_create"),
            ("atomic", "in_transaction"),
        ):
            contestants[name] = team.work(f"benchmarks.appends:{function}")
        contestants |= contestants_of(
            stack, BY_HAND, {"by hand": "single", "by hand, create": "create"}
        )
        contestants |= contestants_of(
            stack,
            EVENTSOURCING,
            {"recorder": "recorder_single", "application": "application_single"},
        )
        contestants |= contestants_of(stack, EVENTSOURCING_DJANGO, {"their Django": "single"})
        found = contest(contestants)

    heading("appends", "pgbench")
    reached = report_contest("single append", found, "single", "appends/s", 0.5)
    reached &= report_contest("… with an idempotency key", found, "keyed", "appends/s", 0.45)
    reached &= report_contest("… that creates a log", found, "create", "creates/s", 0.45)
    report_contest("… inside of atomic()", found, "atomic", "appends/s")
    report_contest("the statement alone, by pgbench", found, "statement", "appends/s", 0.72)
    report_contest("the bare INSERT with the fence, by pgbench", found, "fenced", "appends/s")
    report_contest("plain Django by hand", found, "by hand", "appends/s")
    report_contest("… that creates a log", found, "by hand, create", "creates/s")
    report_contest("eventsourcing: its recorder", found, "recorder", "appends/s")
    report_contest("eventsourcing: its application", found, "application", "appends/s")
    report_contest("eventsourcing-django: its application", found, "their Django", "appends/s")
    heading("in atomic()", "pgbench, fence")
    reached &= report_contest(
        "append inside of atomic()", found, "atomic", "appends/s", 0.45, beside="fenced"
    )
    return reached


def run_batches() -> bool:
    """Print batches of 100 events, and those of others, beside the INSERT of 100 rows."""
    make_bare_table()
    with ExitStack() as stack:
        team = stack.enter_context(Team())
        limit = stack.enter_context(
            Limit(insert(100, BARE), table=BARE, rows=100, variables=VARIABLES)
        )
        contestants: dict[str, Contestant] = {
            "limit": limit,
            "batches": team.work("benchmarks.appends:hundred_appended"),
        }
        contestants |= contestants_of(stack, BY_HAND, {"by hand": "batches"})
        contestants |= contestants_of(
            stack,
            EVENTSOURCING,
            {"recorder": "recorder_batches", "application": "application_batches"},
        )
        contestants |= contestants_of(stack, EVENTSOURCING_DJANGO, {"their Django": "batches"})
        found = contest(contestants)
    heading("batches", "pgbench")
    reached = report_contest("append of 100 events", found, "batches", "batches/s", 0.7)
    report_contest("plain Django by hand", found, "by hand", "batches/s")
    report_contest("eventsourcing: its recorder", found, "recorder", "batches/s")
    report_contest("eventsourcing: its application", found, "application", "batches/s")
    report_contest("eventsourcing-django: its application", found, "their Django", "batches/s")
    return reached


def limit_or_absent(stack: ExitStack, script: str, **options: Any) -> Contestant:
    """Return the contestant of pgbench, or one that says why it is absent."""
    try:
        return stack.enter_context(Limit(script, **options))
    except BenchmarkFailed as error:
        return Absent(str(error))
