"""The publishers and the reactor that are measured."""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks.domain import Authorized, Captured, Refunded, Requested
from eventlogs import EventRecord, Publisher, Reactor, handles, projection
from eventlogs.contrib.nats import JetStreamSink


@projection("benchmark-jetstream")
class ToJetStream(Publisher):
    log_types = ["benchmark"]
    sink = JetStreamSink(os.environ.get("NATS_URL", ""), subject="{type}")


@projection("benchmark-nowhere")
class Nowhere(Publisher):
    log_types = ["benchmark"]

    def publish(self, records: Sequence[EventRecord]) -> None:
        pass


@projection("benchmark-idle")
class Idle(Reactor):
    log_types = ["benchmark"]
    batch_size = 500

    @handles(Requested, Authorized, Captured, Refunded)
    def nothing(self, record: EventRecord) -> None:
        pass
