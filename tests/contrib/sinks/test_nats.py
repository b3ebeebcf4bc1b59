"""The sink for JetStream, with a server of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import DiscardPolicy

from eventlogs import Unpublishable
from eventlogs.contrib.nats import JetStreamSink
from eventlogs.exceptions import NotAcknowledged
from tests.contrib.sinks.records import encode, ids, out_of_order, records
from tests.processes import exit_of_fork, until
from tests.servers import Broker


class Stream:
    """A stream on the server, read and changed from outside of the sink."""

    def __init__(self, server: Broker, name: str) -> None:
        self.server, self.name = server, name

    def call(self, work: Any) -> Any:
        async def connected() -> Any:
            client: Client = await nats.connect(self.server.url)
            try:
                return await work(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(connected())

    def make(self, **options: Any) -> None:
        subjects = [f"{self.name}.>"]
        self.call(lambda js: js.add_stream(name=self.name, subjects=subjects, **options))

    def remove(self) -> None:
        self.call(lambda js: js.delete_stream(self.name))

    def purge(self) -> None:
        self.call(lambda js: js.purge_stream(self.name))

    def messages(self) -> list[Any]:
        async def read(js: Any) -> list[Any]:
            count = (await js.stream_info(self.name)).state.messages
            subscription = await js.subscribe(f"{self.name}.>", ordered_consumer=True)
            return [await subscription.next_msg(10) for _ in range(count)]

        found = self.call(read)
        assert isinstance(found, list)
        return found


@pytest.fixture
def stream(nats_server: Broker, request: pytest.FixtureRequest) -> Iterator[Stream]:
    made = Stream(nats_server, f"s{abs(hash(request.node.name))}")
    yield made
    made.remove()


@pytest.fixture
def sink(stream: Stream) -> Iterator[JetStreamSink]:
    made = JetStreamSink(
        stream.server.url, subject=f"{stream.name}.{{type}}", stream=stream.name, timeout=5.0
    )
    yield made
    made.close()


def test_all_records_are_stored_in_the_order_of_their_logs(stream, sink):
    stream.make()
    sent = records(40, 1, 7, 40)

    sink.send(sent, encode)

    found = stream.messages()
    assert {each.headers["Nats-Msg-Id"] for each in found} == ids(sent)
    assert len(found) == len(sent)
    assert out_of_order(each.data for each in found) == []
    [first] = [each for each in found if each.headers["Nats-Msg-Id"] == sent[0].id]
    assert json.loads(first.data) == sent[0].as_cloudevent()
    assert first.headers["Content-Type"] == "application/cloudevents+json"
    assert first.subject == f"{stream.name}.account.deposited"


def test_a_repetition_is_stored_once(stream, sink):
    stream.make()
    sent = records(3, 3)

    sink.send(sent[:4], encode)
    sink.send(sent, encode)

    assert [each.headers["Nats-Msg-Id"] for each in stream.messages()][4:] == [
        each.id for each in sent[4:]
    ]


def test_the_subject_may_be_a_function(stream):
    stream.make()
    sink = JetStreamSink(
        stream.server.url, subject=lambda record, event: f"{stream.name}.{record.log_id}.x"
    )
    [record] = records(1)

    sink.send([record], encode)
    sink.close()

    assert [each.subject for each in stream.messages()] == [f"{stream.name}.{record.log_id}.x"]


def test_without_a_stream_nothing_is_taken(stream, sink):
    with pytest.raises(NotAcknowledged) as caught:
        sink.send(records(2), encode)

    assert caught.value.reason == "No stream takes this subject, or JetStream is not there."
    stream.make()
    sink.send(records(2), encode)


def test_another_stream_is_not_taken_for_the_right_one(stream):
    stream.make()
    sink = JetStreamSink(stream.server.url, subject=f"{stream.name}.x", stream="another")

    with pytest.raises(NotAcknowledged) as caught:
        sink.send(records(1), encode)
    sink.close()

    assert caught.value.reason == "JetStream says: expected stream does not match."
    assert stream.messages() == []


def test_a_full_stream_holds_back_until_there_is_room(stream, sink):
    stream.make(max_msgs=5, discard=DiscardPolicy.NEW)
    sent = records(4, 4)

    for _ in range(2):
        with pytest.raises(NotAcknowledged) as caught:
            sink.send(sent, encode)
    assert caught.value.reason == "JetStream says: maximum messages exceeded."
    taken = stream.messages()
    assert out_of_order(each.data for each in taken) == []

    stream.purge()
    sink.send(sent, encode)  # which takes the first ones for repetitions
    taken += stream.messages()
    assert out_of_order(each.data for each in taken) == []
    assert {each.headers["Nats-Msg-Id"] for each in taken} == ids(sent)


def test_records_that_are_too_long_are_named_and_the_others_are_stored(stream, sink):
    stream.make(max_msg_size=1_000)
    long, short = records(2, 2), records(2)

    def with_padding(record):
        is_long = record.id == long[2].id
        return {**encode(record), "padding": "x" * 2_000 * is_long}

    with pytest.raises(Unpublishable) as caught:
        sink.send([*long, *short], with_padding)

    assert caught.value.ids == (long[2].id,)
    stored = {each.headers["Nats-Msg-Id"] for each in stream.messages()}
    assert stored == ids([*long, *short]) - {long[2].id}


def test_records_that_no_server_takes_are_named_before_any_is_sent(stream, sink):
    stream.make()
    sent = records(1, 1)

    def too_long(record):
        return {**encode(record), "padding": "x" * 2**20 * (record is sent[1])}

    with pytest.raises(Unpublishable) as caught:
        sink.send(sent, too_long)

    assert caught.value.ids == (sent[1].id,)
    assert str(caught.value) == (
        f"The event {sent[1].id} cannot be published: it cannot be encoded for the broker. "
        f"Correct the publisher or the other side, then retry the parked events."
    )
    assert stream.messages() == []


def test_more_than_a_window_of_large_records_is_stored(stream, sink):
    stream.make()
    sent = records(*[2] * 30)

    sink.send(sent, lambda record: {**encode(record), "padding": "x" * 100_000})

    assert len(stream.messages()) == len(sent)


def test_threads_may_share_a_sink(stream, sink):
    stream.make()
    batches = [records(20, 20) for _ in range(4)]

    threads = [threading.Thread(target=sink.send, args=(each, encode)) for each in batches]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)

    found = stream.messages()
    assert len(found) == 160
    assert out_of_order(each.data for each in found) == []


def test_a_fork_has_a_connection_of_its_own(stream, sink):
    stream.make()
    sink.send(records(1), encode)

    assert exit_of_fork(lambda: sink.send(records(2), encode)) == 0
    sink.send(records(1), encode)

    assert len(stream.messages()) == 4


def test_a_server_that_does_not_answer_is_given_up_in_time(stream, sink):
    stream.make()
    sink.send(records(1), encode)
    sink.timeout = 1.0
    pid = stream.server.process.pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: ") T " in Path(f"/proc/{pid}/stat").read_text())
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            sink.send(records(2), encode)
        with pytest.raises(TimeoutError):  # nor does a new connection come
            sink.send(records(2), encode)
        took = time.monotonic() - began
    finally:
        os.kill(pid, signal.SIGCONT)

    assert took < 30
    sink.send(records(2), encode)


class Deaf:
    """A server that takes a client, and reads no message."""

    INFO = (
        b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576,"proto":1,"headers":true}'
    )

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"nats://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._greet)
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Deaf:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for each in (self._listener, *self._sockets):
            each.close()

    def _greet(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                client.sendall(self.INFO + b"\r\n")
                while b"PING" not in client.recv(4_096):
                    pass
                client.sendall(b"PONG\r\n")


def test_a_server_that_reads_nothing_is_given_up_although_the_buffers_are_full():
    def send():
        with suppress(TimeoutError, NotAcknowledged, nats.errors.Error):
            sink.send(records(*[1] * 9), lambda each: {**encode(each), "padding": "x" * 100_000})
            sent.append(True)

    sent: list[bool] = []
    with Deaf() as server:
        sink = JetStreamSink(server.url, timeout=1.0)
        threads = [threading.Thread(target=send, daemon=True) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(15)

        assert [each.is_alive() for each in threads] == [False] * 8
        sink.close()
    assert not sent


def test_a_server_that_is_killed_loses_nothing_that_it_has_acknowledged(stream, sink):
    stream.make()
    first, second = records(5, 5), records(5, 5)
    sink.send(first, encode)

    stream.server.kill()
    with pytest.raises((OSError, nats.errors.Error, NotAcknowledged, TimeoutError)):
        sink.send(second, encode)
    stream.server.start_again()
    until(lambda: is_sent(sink, second), seconds=30)

    found = stream.messages()
    assert [each.headers["Nats-Msg-Id"] for each in found] == [
        each.id for each in [*first, *second]
    ]
    assert out_of_order(each.data for each in found) == []


def is_sent(sink: JetStreamSink, sent: list[Any]) -> bool:
    try:
        sink.send(sent, encode)
    except (OSError, nats.errors.Error, NotAcknowledged, TimeoutError):
        return False
    return True
