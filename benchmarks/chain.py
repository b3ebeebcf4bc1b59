"""Appends to chained logs beside those to others, and how fast chains are verified."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack

from benchmarks.bench import SCALE, figure, heading
from benchmarks.contests import Contestant, Team, contest, report_contest

VERIFIED = int(300_000 * SCALE)  # events
OF_EACH = 100  # events of a log
ENOUGH = 50_000  # events per second
CHAINING = {"BENCHMARK_SETTINGS": json.dumps({"CHAIN": True})}

KINDS = (
    ("single append", "one_append", "appends/s"),
    ("… with an idempotency key", "one_append_with_key", "appends/s"),
    ("… that creates a log", "one_create", "creates/s"),
    ("… inside of atomic()", "in_transaction", "appends/s"),
    ("append of 100 events", "hundred_appended", "batches/s"),
)


def run_chain() -> bool:
    """Print appends with EVENTLOGS["CHAIN"] beside those without it; then verify a chain."""
    with ExitStack() as stack:
        plain = stack.enter_context(Team())
        chaining = stack.enter_context(Team(env=CHAINING))
        contestants: dict[str, Contestant] = {}
        for _, function, _ in KINDS:
            contestants[function] = plain.work(f"benchmarks.appends:{function}")
            contestants[f"{function}, chained"] = chaining.work(f"benchmarks.appends:{function}")
        found = contest(contestants, limit="one_append")
    heading("chained", "not chained")
    reached = True
    for what, function, unit in KINDS:
        reached &= report_contest(what, found, f"{function}, chained", unit, 0.9, beside=function)
    rates = [verified() for _ in range(3)]
    return reached & figure("chain verified", max(rates), "events/s", at_least=ENOUGH)


def verified() -> float:
    """Verify the chains of all logs; return the events per second."""
    from django.test import override_settings

    from benchmarks.domain import CAPTURED, Payment
    from eventlogs.models import EventLog
    from eventlogs.operations.chaining import ChainVerifier
    from eventlogs.operations.verification import Scope

    with override_settings(EVENTLOGS={"CHAIN": True}):
        missing = VERIFIED // OF_EACH - EventLog.objects.filter(version=OF_EACH).count()
        for _ in range(missing):
            Payment.logs.create(*[CAPTURED] * OF_EACH)
    checked = 0

    def tell(count: int) -> None:
        nonlocal checked
        checked += count

    begin = time.perf_counter()
    findings = list(ChainVerifier().verify(Scope("default", tell=tell)))
    seconds = time.perf_counter() - begin
    if findings:
        raise AssertionError(f"A chain is broken: {findings[0]}")
    return checked / seconds
