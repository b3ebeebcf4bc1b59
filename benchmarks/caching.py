"""Cached reductions beside full replays and raw Redis, and the cost of refreshing to appends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec

from benchmarks.bench import calls_per_second, figure, heading, in_turns, redis_url, report
from benchmarks.contests import Team, contest, report_contest
from benchmarks.domain import CAPTURED, Payment

EVENTS = 10_000
SECONDS = 1.0  # of each measurement in one process


def rate(call: Callable[[], Any], seconds: float = SECONDS) -> float:
    """Return the calls per second in this process, once it is connected."""
    call()
    return calls_per_second(call, seconds)


def round_trips(call: Callable[[], Any]) -> tuple[int, int]:
    """Return how many commands reach Redis and how many statements the database."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from eventlogs.caches.backends import RedisReductionCache

    redis, _ = RedisReductionCache("redis").client_for("", write=False)
    call()
    before = redis.info("stats")["total_commands_processed"]
    with CaptureQueriesContext(connection) as queries:
        call()
    after = redis.info("stats")["total_commands_processed"]
    return after - before - 1, len(queries)  # INFO itself is a command


def run_reads() -> bool:
    """Print cached reduces beside full replays, and an entry beside a raw GET."""
    from eventlogs import LogManager

    payments = LogManager(
        Payment, cache="redis", refresher="eventlogs.refreshers.ImmediateRefresher"
    )
    state = payments.create(CAPTURED, *[CAPTURED] * (EVENTS - 1))
    log_id = state.log_id
    if payments.reduce(log_id).aggregate != payments.reduce(log_id, fresh=True).aggregate:
        raise AssertionError("The cache lies.")
    trips = round_trips(lambda: payments.reduce(log_id))

    heading("cached", "replayed")
    cached, replayed = in_turns(
        lambda: rate(lambda: payments.reduce(log_id)),
        lambda: rate(lambda: payments.reduce(log_id, fresh=True)),
    )
    reached = report(f"reduce a log of {EVENTS:,} events", cached, replayed, "reduces/s", 50)
    reached &= figure("… cached: round trips, Redis + PostgreSQL", sum(trips), "", at_most=2)

    reader = payments._reductions()
    key = reader.key(log_id)
    client, name = reader.cache.cache.client_for(key, write=False)  # type: ignore[attr-defined]
    client.set("raw", msgspec.json.encode(payments.reduce(log_id).aggregate))
    decoder = msgspec.json.Decoder(Payment)
    heading("entry", "raw GET")
    entries, raw = in_turns(
        lambda: rate(lambda: reader.codec.decode(reader.cache.get(key), log_id)),  # type: ignore[arg-type]
        lambda: rate(lambda: decoder.decode(client.get("raw"))),
    )
    report("get and decode: an entry, to a raw value", entries, raw, "gets/s")
    client.delete("raw", name)
    return reached


def appends(refresher: str | None) -> Callable[[], Any]:
    """Append single events to a log of this process' own, with a refresher or without."""
    from eventlogs import LogManager
    from eventlogs.reductions.worker import worker

    payments = LogManager(
        Payment, cache="redis", refresher=refresher, refresh_on_append=refresher is not None
    )
    state = payments.create(CAPTURED)
    worker.flush(10)  # imports and connections of the first refresh are made once

    def append() -> None:
        nonlocal state
        state = payments.append(state, CAPTURED)

    return append


def without() -> Callable[[], Any]:
    """Append, and refresh nothing."""
    return appends(None)


def with_thread() -> Callable[[], Any]:
    """Append, and let a thread refresh."""
    return appends("eventlogs.refreshers.ThreadRefresher")


def with_celery() -> Callable[[], Any]:
    """Append, and send messages to Celery; no worker takes them here."""
    from celery import Celery

    Celery("benchmarks", broker=_broker()).set_default()
    return appends("eventlogs.tasks.CeleryRefresher")


def _broker() -> str:
    url = redis_url()
    if url.startswith("unix://"):
        return url.replace("unix://", "redis+socket://").partition("?")[0]
    return url


def run_appends() -> bool:
    """Print appends with a refresher on beside appends without."""
    with ExitStack() as stack:
        found = contest(
            {
                name: stack.enter_context(Team()).work(f"benchmarks.caching:{name}")
                for name in ("without", "with_thread", "with_celery")
            },
            limit="without",
        )
    heading("refreshing", "no refresher")
    what = "appends, 8 processes, a thread refreshes"
    reached = report_contest(what, found, "with_thread", "appends/s", 0.9)
    what = "… and with messages to Celery"
    return report_contest(what, found, "with_celery", "appends/s", 0.9) and reached


def run_caching() -> bool:
    """Print all of it."""
    redis_url()
    return all([run_reads(), run_appends()])
