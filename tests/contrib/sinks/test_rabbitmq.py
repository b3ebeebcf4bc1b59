"""The sink for RabbitMQ."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pika
import pytest

from eventlogs import Unpublishable
from eventlogs.contrib.rabbitmq import RabbitMQSink
from eventlogs.exceptions import NotAcknowledged
from tests.contrib.sinks.records import encode, ids, out_of_order, records
from tests.processes import exit_of_fork, until

FAILURES = (pika.exceptions.AMQPError, NotAcknowledged, OSError, TimeoutError)


class Exchange:
    """An exchange and a queue, seen from outside of the sink."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self._connection.channel()

    def make(self, *, bound: bool = True, arguments: dict[str, Any] | None = None) -> None:
        self.channel.exchange_declare(self.name, "topic", durable=True)
        self.channel.queue_declare(self.name, durable=True, arguments=arguments)
        if bound:
            self.bind()

    def bind(self) -> None:
        self.channel.queue_bind(self.name, self.name, "#")

    def messages(self) -> list[tuple[Any, Any, bytes]]:
        """Take all messages out of the queue."""
        found = []
        while (message := self.channel.basic_get(self.name, auto_ack=True))[0] is not None:
            found.append(message)
        return found

    def remove(self) -> None:
        self.channel.queue_delete(self.name)
        self.channel.exchange_delete(self.name)
        self.close()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def exchange(rabbitmq_url: str, request: pytest.FixtureRequest) -> Iterator[Exchange]:
    made = Exchange(rabbitmq_url, f"eventlogs-test-{abs(hash(request.node.name))}")
    yield made
    made.remove()


@pytest.fixture
def sink(exchange: Exchange) -> Iterator[RabbitMQSink]:
    made = RabbitMQSink(exchange.url, exchange=exchange.name, timeout=8.0)
    yield made
    made.close()


def test_all_records_are_in_the_queue_in_the_order_of_their_logs(exchange, sink):
    exchange.make()
    sent = records(20, 1, 7, 20)

    sink.send(sent, encode)

    found = exchange.messages()
    assert {properties.message_id for _, properties, _ in found} == ids(sent)
    assert len(found) == len(sent)
    assert out_of_order(body for _, _, body in found) == []
    method, properties, body = found[0]
    assert json.loads(body) == sent[0].as_cloudevent()
    assert properties.content_type == "application/cloudevents+json"
    assert (properties.delivery_mode, properties.type) == (2, "account.deposited")
    assert method.routing_key == "account.deposited"


def test_an_event_that_no_queue_gets_is_not_taken_for_published(exchange, sink):
    exchange.make(bound=False)
    sent = records(2)

    with pytest.raises(NotAcknowledged) as caught:
        sink.send(sent, encode)
    assert caught.value.reason == "No queue gets the message: NO_ROUTE. Bind one."

    exchange.bind()
    sink.send(sent, encode)
    assert len(exchange.messages()) == 2


def test_a_full_queue_holds_back_until_there_is_room(exchange, sink):
    exchange.make(arguments={"x-max-length": 5, "x-overflow": "reject-publish"})
    sent = records(4, 4)

    with pytest.raises(NotAcknowledged) as caught:
        sink.send(sent, encode)
    assert caught.value.reason == "RabbitMQ has refused a message (basic.nack)."

    found = [body for _, _, body in exchange.messages()]
    for some in (sent[:4], sent[4:]):  # as a publisher does after a failure
        sink.send(some, encode)
        found += [body for _, _, body in exchange.messages()]
    assert out_of_order(found) == []
    assert {json.loads(each)["id"] for each in found} == ids(sent)


def test_a_missing_exchange_is_said(exchange):
    exchange.make()
    sink = RabbitMQSink(exchange.url, exchange="not there")

    with pytest.raises(FAILURES) as caught:
        sink.send(records(2), encode)
    sink.close()

    assert "no exchange 'not there'" in str(caught.value)


def test_a_lost_connection_is_replaced(exchange, sink):
    exchange.make()
    sink.send(records(2), encode)
    sink._connection._transport._sock.shutdown(socket.SHUT_RDWR)  # as a network that is gone
    sent = records(3, 3)
    until(lambda: is_sent(sink, sent), seconds=30)

    found = [body for _, _, body in exchange.messages()]
    assert out_of_order(found) == []
    assert {json.loads(each)["id"] for each in found} >= ids(sent)


class SlowNetwork:
    """
    Passes connections on to a server. The confirms of the first one are late, and come at last when
    messages are sent on the second one, whose messages are lost.
    """

    PUBLISH = b"\0\x3c\0\x28"  # basic.publish, as it begins in a frame of a method

    def __init__(self, url: str) -> None:
        parameters = pika.URLParameters(url)
        self._server = (parameters.host, parameters.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.url = url.replace(
            f"{parameters.host}:{parameters.port}",
            f"127.0.0.1:{self._listener.getsockname()[1]}",
        )
        self._may_confirm = threading.Event()
        self._may_confirm.set()
        self._run(self._accept)

    def __enter__(self) -> SlowNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self._may_confirm.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in (self._listener, *self._sockets):
            each.close()

    def _run(self, target: Any, *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        for number in range(2):
            client, _ = self._listener.accept()
            server = socket.create_connection(self._server)
            self._sockets += [client, server]
            self._run(self._up, number, client, server)
            self._run(self._down, number, client, server)

    def _up(self, number: int, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65_536):
                if self.PUBLISH in data and number == 0:
                    self._may_confirm.clear()
                elif self.PUBLISH in data:
                    self._may_confirm.set()
                    return
                server.sendall(data)

    def _down(self, number: int, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                if number == 0:
                    self._may_confirm.wait()
                client.sendall(data)


def test_a_late_confirm_of_a_lost_connection_is_none_of_another_message(exchange):
    exchange.make()
    first, second = records(1, 1), records(1, 1)

    with SlowNetwork(exchange.url) as network:
        sink = RabbitMQSink(network.url, exchange=exchange.name, timeout=2.0)
        for some in (first, second):
            with pytest.raises(FAILURES):
                sink.send(some, encode)
        sink.close()

    assert {properties.message_id for _, properties, _ in exchange.messages()} == ids(first)


def is_sent(sink: RabbitMQSink, sent: list[Any]) -> bool:
    try:
        sink.send(sent, encode)
    except FAILURES:
        return False
    return True


@pytest.mark.long
def test_a_server_that_is_killed_loses_nothing_that_it_has_confirmed(rabbitmq_server):
    exchange = Exchange(rabbitmq_server.url, "killed")
    exchange.make()
    sink = RabbitMQSink(rabbitmq_server.url, exchange="killed", timeout=8.0)
    first, second = records(5, 5), records(5, 5)
    sink.send(first, encode)
    exchange.close()

    rabbitmq_server.kill()
    with pytest.raises(FAILURES):
        sink.send(second, encode)
    rabbitmq_server.start_again()
    until(lambda: is_sent(sink, second), seconds=60)
    sink.close()

    exchange = Exchange(rabbitmq_server.url, "killed")
    found = [body for _, _, body in exchange.messages()]
    exchange.remove()
    assert out_of_order(found) == []
    assert {json.loads(each)["id"] for each in found} == ids([*first, *second])


def test_a_record_that_cannot_be_encoded_is_named(exchange, sink):
    exchange.make()
    [record] = records(1)

    with pytest.raises(Unpublishable) as caught:
        sink.send([record], lambda each: {**encode(each), "no": object()})

    assert caught.value.ids == (record.id,)


def test_a_fork_has_a_connection_of_its_own(exchange, sink):
    exchange.make()
    sink.send(records(1), encode)

    assert exit_of_fork(lambda: sink.send(records(2), encode)) == 0
    sink.send(records(1), encode)

    assert len(exchange.messages()) == 4


def test_nobody_there():
    sink = RabbitMQSink("amqp://guest:guest@127.0.0.1:1/%2F", timeout=3.0)

    with pytest.raises(FAILURES):
        sink.send(records(1), encode)
