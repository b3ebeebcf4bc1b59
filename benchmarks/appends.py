"""Single appends and batches at eight client processes, beside pgbench's bare INSERT."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable
from typing import Any

from benchmarks.bench import clients, heading, in_turns, pgbench, report

# The same rows and nothing else, in a log of each run's own; each client has its own indexes.
# The payload is a parameter, as in any program: a literal would be parsed once, at PREPARE.
PAYLOAD = '{"amount":4000,"reference":"till 7, receipt 20231"}'
SCRIPT = """\\set n :n + 1
\\set first :client_id * 250000000 + :n * {rows}
INSERT INTO eventlogs_event
 (log_type, log_id, index, type, schema_version, data, metadata, idempotency_key, recorded_at)
 VALUES
 {values};
"""
ROW = """('benchmark', '{log}', :first + {offset}, 'benchmark.captured', 1,
 :payload::jsonb, '{{}}', NULL, clock_timestamp())"""


def insert(rows: int) -> str:
    """Return a pgbench script that inserts so many rows by one statement."""
    log = uuid.uuid4()
    values = ",\n".join(ROW.format(log=log, offset=offset) for offset in range(rows))
    return SCRIPT.format(rows=rows, values=values)


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


def run_appends() -> bool:
    """Print single appends, with and without a key, and creates."""
    heading("eventlogs", "pgbench")
    ours, keyed, created, limit = in_turns(
        lambda: clients(one_append),
        lambda: clients(one_append_with_key),
        lambda: clients(one_create),
        lambda: pgbench(insert(1), payload=PAYLOAD),
    )
    reached = report("single appends, 8 processes", ours, limit, "appends/s", 0.5)
    report("… each with an idempotency key", keyed, limit, "appends/s")
    report("… each creating a log", created, limit, "creates/s")
    return reached


def run_batches() -> bool:
    """Print batches of 100 events."""
    heading("eventlogs", "pgbench")
    ours, limit = in_turns(
        lambda: clients(hundred_appended), lambda: pgbench(insert(100), payload=PAYLOAD)
    )
    return report("batches of 100 events, 8 processes", ours, limit, "batches/s", 0.7)
