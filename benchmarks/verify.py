"""Rows verified, and inline rows made, many logs at once: beside a plain replay of the events."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.bench import LONG_ROUNDS, SCALE, figure, heading, in_turns, report
from benchmarks.projections import forget, make_tables

VERIFIED = int(20_000 * SCALE)
OF_EACH = 10  # events
ENOUGH = 5_000  # logs per second


def run_verify() -> bool:
    """Print how fast rows are verified, and inline rows made, to a plain replay of the events."""
    from benchmarks import feed
    from benchmarks.totals import MODELS, InlineTotals, Reductions, Totals

    feed.LOGS, feed.EVENTS = VERIFIED, VERIFIED * OF_EACH
    make_tables(MODELS)
    for projection in (Totals, Reductions, InlineTotals):
        forget(projection)
    feed.fill()
    print(f"\n{VERIFIED:,} logs of {OF_EACH} events", flush=True)
    heading("eventlogs", "replay")
    # The first round of these makes the rows that the others look at.
    caught_up, replayed = in_turns(
        lambda: logs_per_second(InlineTotals.catch_up), lambda: logs_per_second(replay), rounds=1
    )
    report("inline rows made behind an import", caught_up, replayed, "logs/s")
    Totals.catch_up()
    Reductions.catch_up()
    reached = True
    for what, work, target in (
        ("logs verified, sums into a row", lambda: verified(Totals), ENOUGH),
        ("… the aggregate as a row", lambda: verified(Reductions), ENOUGH),
        ("… inline", lambda: verified(InlineTotals), ENOUGH),
        ("inline rows rebuilt", InlineTotals.rebuild, None),
    ):
        ours, theirs = in_turns(
            partial(logs_per_second, work),
            lambda: logs_per_second(replay),
            rounds=min(3, LONG_ROUNDS),
        )
        report(what, ours, theirs, "logs/s")
        if target is not None:
            reached &= figure("… the fastest of three", max(ours), "logs/s", at_least=target)
    return reached


def logs_per_second(work: Callable[[], Any]) -> float:
    """Return the logs per second of a function that processes all logs."""
    begin = time.perf_counter()
    work()
    return VERIFIED / (time.perf_counter() - begin)


def verified(projection: Any) -> None:
    """Verify all rows; stop if one is wrong or missing."""
    found = projection.verify(sample=None)
    if not found or found.held or found.checked != VERIFIED:
        raise AssertionError(f"The rows of {projection.name} are wrong: {found}")


def replay() -> None:
    """Read all events of the feed, and fold them: the least that can be done."""
    from benchmarks.domain import Payment
    from benchmarks.feed import records
    from eventlogs import LogId
    from eventlogs.aggregates import fold

    states: dict[LogId, Any] = {}
    for record in records():
        state = states.get(record.log_id) or Payment.without_events(record.log_id)
        states[record.log_id] = fold(state, [record])
    if len(states) != VERIFIED:
        raise AssertionError("Some logs are missing.")
