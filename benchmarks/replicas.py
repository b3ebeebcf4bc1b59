"""
How old events are when they are read on a streaming replica.

A primary and its replica are started for it. Six writers append in transactions of up to 30 ms, so
some events are held back by others; a heartbeat moves the replica's feed on.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.bench import ROUNDS, SECONDS, configure, figure

if TYPE_CHECKING:
    from eventlogs import LogId

WRITERS = 6
LOGS = 40
APPENDS = 3  # in a transaction, at most
LONGEST = 0.01  # seconds that a transaction rests after an append, at most
LOOK = 0.005  # seconds between two looks at the replica
HEARTBEATS = (0.05, 0.1, 0.02)  # seconds between two; the first is the command's default
P99 = 120.0  # milliseconds, with the command's default


def run_replicas() -> bool:
    """Print the age of events on a replica, by how often the heartbeat beats."""
    configure()
    reached = True
    with primary_and_replica() as (primary, replica):
        print(f"\n{WRITERS} writers on the primary, a reader on its replica")
        for every in HEARTBEATS:
            ages = sorted(measure(primary, replica, every))
            what = f"age, a heartbeat every {every * 1000:.0f} ms"
            at_most = P99 if every == HEARTBEATS[0] else None
            figure(f"{what}, p50", statistics.median(ages), "ms")
            reached &= figure(f"{what}, p99", ages[int(len(ages) * 0.99)], "ms", at_most=at_most)
    return reached


@contextmanager
def primary_and_replica() -> Iterator[tuple[str, str]]:
    """Give the aliases of a migrated database on a primary, and of the same one on its replica."""
    from django.db import connections

    from tests.reliability.replicas import Replica, Server, alias_of, migrated, wait_for_replica

    with Server() as server, Replica(server) as standby, migrated(server) as primary:
        name = connections[primary].settings_dict["NAME"]
        with alias_of(standby) as maintenance:
            wait_for_replica(primary, maintenance)
        with alias_of(standby, name) as replica:
            yield primary, replica


def measure(primary: str, replica: str, every: float) -> list[float]:
    """Return how many milliseconds after their append events were read."""
    from django.utils import timezone

    from benchmarks.domain import CAPTURED, Payment
    from eventlogs import Feed, LogManager

    payments = LogManager(Payment, using=primary)
    logs = [payments.create(CAPTURED).log_id for _ in range(LOGS)]
    Feed(using=primary).heartbeat()
    stop, ages = threading.Event(), list[float]()
    feed = Feed(using=replica)
    after = Feed(using=primary).settled()
    with ThreadPoolExecutor(WRITERS + 1) as threads:
        jobs = [threads.submit(write, primary, logs, number, stop) for number in range(WRITERS)]
        jobs.append(threads.submit(beat, primary, every, stop))
        end = time.monotonic() + SECONDS * ROUNDS
        try:
            while time.monotonic() < end:
                page = feed.read(after=after, limit=1_000)
                now, after = timezone.now(), page.next_after
                ages += [(now - each.recorded_at).total_seconds() * 1_000 for each in page]
                time.sleep(LOOK)
        finally:
            stop.set()
        for each in jobs:
            each.result()
    return ages


def write(using: str, logs: list[LogId], number: int, stop: threading.Event) -> None:
    """Append in transactions that rest between two appends, until told to stop."""
    from django.db import connections, transaction

    from benchmarks.domain import CAPTURED, Payment
    from eventlogs import ANY, LogManager

    choose, payments = random.Random(number), LogManager(Payment, using=using)
    try:
        while not stop.is_set():
            with transaction.atomic(using=using):
                # In one order, so that they do not lock each other out.
                for log_id in sorted(choose.sample(logs, choose.randint(1, APPENDS))):
                    payments.append(log_id, CAPTURED, expected_version=ANY)
                    time.sleep(choose.uniform(0, LONGEST))
    finally:
        connections[using].close()


def beat(using: str, every: float, stop: threading.Event) -> None:
    """Move the replica's feed on, until told to stop, as ``eventlogs heartbeat`` does."""
    from django.db import connections

    from eventlogs import Feed

    feed = Feed(using=using)
    try:
        while not stop.wait(every):
            feed.heartbeat()
    finally:
        connections[using].close()
