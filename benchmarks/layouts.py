"""
Speed of a database whose positions come from counters, beside one with a sequence and a fence.

Two databases, one of each layout, are measured in turns by the same work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.bench import CLIENTS, SCRATCH, configure, databases, heading, left_out
from benchmarks.contests import BenchmarkFailed, Team, contest, report_contest
from benchmarks.environments import run
from benchmarks.growth import PAGE

FENCE, BUCKETS = f"{SCRATCH}_fence", f"{SCRATCH}_buckets"
LOGS = 200  # of 100 events each
TARGET = 0.9


def environment(name: str) -> dict[str, str]:
    """Return the variables of a process whose database is this one."""
    layout = "buckets" if name == BUCKETS else "fence"
    return {
        "BENCHMARK_DATABASE": name,
        "PGDATABASE": name,
        "BENCHMARK_SETTINGS": json.dumps({"LAYOUT": layout}),
    }


def run_layouts() -> bool:
    """Print how fast work is with counters, beside a fence."""
    with databases(FENCE, BUCKETS):
        for name in (FENCE, BUCKETS):
            run(
                [sys.executable, "-c", "from benchmarks.layouts import fill as f; f()"],
                **environment(name),
            )
        return measure()


def fill() -> None:
    """Make the tables, and some logs; in a process whose database is one of the two."""
    from django.core.management import call_command

    configure()
    from benchmarks.domain import CAPTURED, Payment

    call_command("migrate", verbosity=0)
    for _ in range(LOGS):
        Payment.logs.create(*[CAPTURED] * 100)


def measure() -> bool:
    """Print each kind of work on both."""
    heading("counters", "sequence and fence")
    reached = True
    works = [
        ("append one event, one client", "benchmarks.appends:one_append", 1),
        ("append one event", "benchmarks.appends:one_append", CLIENTS),
        ("append one event with a key", "benchmarks.appends:one_append_with_key", CLIENTS),
        ("create a log", "benchmarks.appends:one_create", CLIENTS),
        ("append one event in a transaction", "benchmarks.appends:in_transaction", CLIENTS),
        ("append 100 events at once", "benchmarks.appends:hundred_appended", CLIENTS),
        (f"a page of {PAGE} of the feed", "benchmarks.growth:page_of_the_feed", 1),
        ("a look at the end of the feed", "benchmarks.partitions:end_of_the_feed", 1),
        ("an append, and a page of the feed", "benchmarks.layouts:append_and_read", 1),
        ("the same, by several clients", "benchmarks.layouts:append_and_read", CLIENTS),
    ]
    for what, work, clients in works:
        name = what if clients == 1 else f"{what}, {clients} clients"
        try:
            with (
                Team(clients=clients, env=environment(FENCE)) as fence,
                Team(clients=clients, env=environment(BUCKETS)) as buckets,
            ):
                found = contest(
                    {"fence": fence.work(work), "buckets": buckets.work(work)}, limit="fence"
                )
            reached &= report_contest(name, found, "buckets", "a second", TARGET)
        except BenchmarkFailed as error:
            left_out(name, str(error))
            reached = False
    return reached


def append_and_read() -> Callable[[], Any]:
    """Append an event and read it from the feed, as a process that follows it does."""
    from benchmarks.appends import one_append
    from eventlogs import Feed

    feed, append = Feed(), one_append()
    after = feed.settled()

    def work() -> None:
        nonlocal after
        append()
        after = feed.read(after=after, limit=1000).next_after

    return work
