"""Publishing to JetStream, beside a reactor that does nothing and beside reading the feed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

from benchmarks.bench import LONG_ROUNDS, SCALE, figure, heading, in_turns, left_out, report

EVENTS = int(50_000 * SCALE)
REACTED = 1_000  # a reactor commits after each
STREAM = "EVENTLOGS_BENCHMARK"
FAST = 10_000  # events a second


def run_publisher() -> bool:
    """Print how many events a second are published, and are acknowledged by JetStream."""
    if "NATS_URL" not in os.environ:
        left_out("publish to JetStream", "NATS_URL names no server")
        return True
    from benchmarks import feed, publishers

    feed.EVENTS = EVENTS
    feed.fill()
    print(f"\n{EVENTS:,} events of {feed.LOGS:,} logs, a single worker", flush=True)
    published, nowhere, reacted, read = in_turns(
        lambda: published_per_second(publishers.ToJetStream),
        lambda: per_second(publishers.Nowhere),
        lambda: reacted_per_second(publishers.Idle),
        read_per_second,
        rounds=min(5, LONG_ROUNDS),
    )
    heading("publisher", "reactor")
    reached = report("publish to JetStream", published, reacted, "events/s", 10.0)
    heading("publisher", "publish() that does nothing")
    report("… beside one that does nothing", published, nowhere, "events/s")
    heading("publisher", "the feed")
    report("… beside reading the feed", published, read, "events/s")
    return reached & figure("… the slowest round", min(published), "events/s", at_least=FAST)


def published_per_second(publisher: Any) -> float:
    """Return the events a second of a publisher, and check that all of them are there."""
    empty_stream()
    rate = per_second(publisher)
    found = asyncio.run(stored())
    if found != EVENTS:
        raise AssertionError(f"{found} of {EVENTS} events are in the stream.")
    return rate


def per_second(publisher: Any) -> float:
    """Return how many events a second a publisher publishes from its beginning."""
    forget(publisher)
    begin = time.perf_counter()
    applied = publisher.catch_up()
    took = time.perf_counter() - begin
    if applied != EVENTS:
        raise AssertionError(f"{applied} of {EVENTS} events were published.")
    return float(applied / took)


def reacted_per_second(reactor: Any) -> float:
    """Return how many events a second a reactor passes whose handler does nothing."""
    from eventlogs.feed import Feed
    from eventlogs.projections.batches import Advancer
    from eventlogs.projections.starting import begin as begun
    from eventlogs.projections.starting import lease_partition

    forget(reactor)
    begun(reactor, "default")
    lease = lease_partition(reactor, 0, using="default", owner="benchmark:1:1")
    assert lease is not None
    advancer = Advancer(reactor(), lease, Feed())
    begin = time.perf_counter()
    while advancer.applied < REACTED:
        advancer.step()
    took = time.perf_counter() - begin
    advancer.close()
    return float(advancer.applied / took)


def read_per_second() -> float:
    """Return how many records a second are read from the feed."""
    from benchmarks import feed

    begin = time.perf_counter()
    count = sum(1 for _ in feed.records())
    took = time.perf_counter() - begin
    if count != EVENTS:
        raise AssertionError(f"{count} of {EVENTS} events were read.")
    return count / took


def forget(reactor: Any) -> None:
    """Let a reactor begin again."""
    from eventlogs.models import Checkpoint, ProjectionState

    Checkpoint._base_manager.filter(projection=reactor.name).delete()
    ProjectionState._base_manager.filter(name=reactor.name).delete()


def empty_stream() -> None:
    """Make the stream anew."""
    asyncio.run(_empty())


async def _empty() -> None:
    import nats

    async with await nats.connect(os.environ["NATS_URL"]) as client:
        stream = client.jetstream()
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await stream.delete_stream(STREAM)
        await stream.add_stream(name=STREAM, subjects=["benchmark.>"])


async def stored() -> int:
    """Return how many messages the stream has."""
    import nats

    async with await nats.connect(os.environ["NATS_URL"]) as client:
        info = await client.jetstream().stream_info(STREAM)
        return int(info.state.messages)
