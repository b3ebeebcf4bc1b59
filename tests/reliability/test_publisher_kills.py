"""
Publishers whose workers are killed, and whose broker is killed and started again.

In the end the stream has each event once, and those of a log are in the order of the log.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import nats
import pytest

from eventlogs import Publisher, projection
from eventlogs.models import Event
from eventlogs.projections import checkpoints, publisher_threads
from eventlogs.projections.base import projections
from eventlogs.projections.workers import Worker
from tests.overriding import override
from tests.processes import Process, until
from tests.races import COMMITS
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import ledgers, logs
from tests.reliability.runners import Campaign, write
from tests.servers import NATS, ServerError

pytestmark = [COMMITS, pytest.mark.postgresql, pytest.mark.usefixtures("read_models")]

BROKEN = "tests.reliability.broken_publishers."
NAME = "ledgers-to-jetstream"
STREAM = "LEDGERS"
WORKERS = 2


@pytest.fixture
def broker() -> Iterator[NATS]:
    try:
        server = NATS()
    except ServerError as error:
        pytest.skip(str(error))
    with server:
        asyncio.run(make_stream(server.url))
        yield server


async def make_stream(url: str) -> None:
    client = await nats.connect(url)
    await client.jetstream().add_stream(name=STREAM, subjects=["ledgers.>"])
    await client.close()


async def stored(url: str) -> list[str]:
    """Return the ids of all messages in the stream, in its order."""
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        count = (await stream.stream_info(STREAM)).state.messages
        subscription = await stream.subscribe("ledgers.>", ordered_consumer=True)
        found = [await subscription.next_msg(10) for _ in range(count)]
        return [message.headers["Nats-Msg-Id"] for message in found]
    finally:
        await client.close()


def publish(place: Any, url: str) -> str:
    """Run the publisher until told to end."""
    from eventlogs.contrib.nats import JetStreamSink

    override(publisher_threads, LONGEST_WAIT=0.2)

    class ToJetStream(Publisher):
        log_types = ["ledger"]
        partitions = 4
        batch_size = 40
        backoff = 0.05
        timeout = 3.0
        sink = JetStreamSink(url, subject="ledgers.{log_id}", stream=STREAM, timeout=2.0)

    projections.clear()
    projection(NAME)(ToJetStream)
    Worker([NAME], stop=place).run()
    return "done"


def is_up_to_date() -> bool:
    last = Event.objects.order_by("-position").values_list("position", flat=True).first() or 0
    return checkpoints.position(NAME, "default") >= last


def wrong(ids: list[str]) -> list[str]:
    """Return what is lost, doubled or out of order in the stream."""
    found: dict[str, list[int]] = defaultdict(list)
    for each in ids:
        log_id, _, index = each.rpartition(":")
        found[log_id].append(int(index))
    complaints = []
    for log_id in logs():
        indexes = found.pop(str(log_id), [])
        if indexes != list(range(ledgers().version(log_id))):
            complaints.append(f"{log_id}: {indexes}, of {ledgers().version(log_id)}")
    return complaints + list(found)


def disturb(campaign: Campaign, broker: NATS, kills: int) -> None:
    """Kill workers, and now and then the broker, while others append; let the rest come to pass."""
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(12)]
    writers = [campaign.begin(write, f"writer-{n}", log_ids, 0.01, 0.0) for n in range(2)]
    crowd: list[Process] = [campaign.begin(publish, broker.url) for _ in range(WORKERS)]
    for number in range(kills):
        until_moved()
        if number % 3 == 1:
            # First it takes events and answers nothing: they are lost with it.
            os.kill(broker.process.pid, signal.SIGSTOP)
            until_appended(40)
            broker.kill()
            broker.start_again()
        else:
            crowd.pop(random.randrange(WORKERS)).kill()
            crowd.append(campaign.begin(publish, broker.url))
    assert sum(writer.end() for writer in writers) > kills
    until(is_up_to_date)
    for worker in crowd:
        assert worker.end() == "done"


def until_appended(count: int) -> None:
    """Wait until so many events more are stored."""
    goal = Event.objects.count() + count
    until(lambda: Event.objects.count() >= goal)


def until_moved() -> None:
    """Wait until some events more are published."""
    before = checkpoints.positions(NAME, "default")
    goal = sum(before.values()) + random.randrange(20, 120)
    until(lambda: sum(checkpoints.positions(NAME, "default").values()) >= goal)


@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.long)])
def test_nothing_is_lost_doubled_or_out_of_order(broker, kills):
    with Campaign() as campaign:
        disturb(campaign, broker, kills)

    ids = asyncio.run(stored(broker.url))
    assert len(ids) == Event.objects.count()
    assert wrong(ids) == []


@pytest.mark.parametrize("broken", ["publishes_afterwards", "without_acknowledgements"])
def test_a_checkpoint_that_moves_before_the_acknowledgements_is_found(broker, broken):
    with Campaign(broken=BROKEN + broken) as campaign:
        disturb(campaign, broker, 6)

    assert wrong(asyncio.run(stored(broker.url))) != []
