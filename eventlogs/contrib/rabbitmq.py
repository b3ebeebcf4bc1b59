"""
A sink for RabbitMQ: ``pip install "eventlogs[rabbitmq]"``.

The exchange and the queues are yours: declare a durable exchange, and bind a durable queue to it.
Messages are persistent and *mandatory*, and RabbitMQ confirms each: an event that no queue would
get is not taken for published. RabbitMQ does not know repetitions: consumers find the record's id
in ``message_id``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from eventlogs.contrib.loops import LoopSink
from eventlogs.contrib.sending import MEDIA_TYPE, Address, Sending, messages_of
from eventlogs.exceptions import NotAcknowledged
from eventlogs.projections.publisher import Encode
from eventlogs.values import EventRecord

__all__ = ["RabbitMQSink"]

PERSISTENT: Final = 2  # a delivery mode: stored on disk


class RabbitMQSink(LoopSink):
    """Sends events to an exchange of RabbitMQ, and waits for its confirms."""

    def __init__(
        self,
        url: str = "amqp://guest:guest@127.0.0.1:5672/%2F",
        *,
        exchange: str = "events",
        routing_key: Address = "{type}",
        timeout: float = 10.0,
    ) -> None:
        """
        Send to an exchange of the server, or cluster, at a URL of the form that pika reads.

        ``routing_key`` is a text with ``{type}``, ``{log_type}`` and ``{log_id}``, or a function
        of a record and its CloudEvent. A batch fails after ``timeout`` seconds; it is sent again.
        """
        self.timeout = timeout
        self._url, self._exchange, self._routing_key = url, exchange, routing_key
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._connection: AsyncioConnection | None = None
        self._channel: Channel | None = None
        self._connecting: asyncio.Lock | None = None
        self._last_tag = 0
        self._flying: dict[int, tuple[Sending, int]] = {}  # by delivery tags, in their order
        self._returned: dict[str, str] = {}  # why, by message ids

    async def _send(self, records: Sequence[EventRecord], encode: Encode) -> None:
        messages = messages_of(records, encode, self._routing_key)
        try:
            async with asyncio.timeout(self.timeout):
                await self._connected()
                sending = Sending(messages)
                self._pump(sending)
                await sending.end()
        except (TimeoutError, pika.exceptions.AMQPError):
            await self._drop()
            raise

    async def _connected(self) -> None:
        self._connecting = self._connecting or asyncio.Lock()
        async with self._connecting:
            if self._channel is not None and self._channel.is_open:
                return
            await self._drop()
            loop = asyncio.get_running_loop()
            opened: asyncio.Future[Any] = loop.create_future()

            def failed(connection: Any, error: BaseException | str) -> None:
                if not opened.done():
                    opened.set_exception(_exception(error))

            def ready(answer: Any = None) -> None:
                if not opened.done():
                    opened.set_result(answer)

            parameters = pika.URLParameters(self._url)
            parameters.connection_attempts = 1
            parameters.socket_timeout = parameters.stack_timeout = min(3.0, self.timeout)
            connection = AsyncioConnection(
                parameters,
                on_open_callback=ready,
                on_open_error_callback=failed,
                on_close_callback=failed,
                custom_ioloop=loop,
            )
            self._connection = connection
            await opened
            opened = loop.create_future()
            channel = connection.channel(on_open_callback=ready)
            channel.add_on_close_callback(self._on_closed)
            channel.add_on_close_callback(failed)
            channel.add_on_return_callback(self._on_return)
            await opened
            opened = loop.create_future()
            channel.confirm_delivery(partial(self._on_confirm, channel), callback=ready)
            await opened
            self._last_tag, self._flying, self._returned = 0, {}, {}
            self._channel = channel

    async def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.close()
        self._fail(NotAcknowledged("The connection was dropped."))

    def _pump(self, sending: Sending) -> None:
        channel = self._channel
        if channel is None:
            sending.failed(NotAcknowledged("The channel was closed."))
            return
        while (number := sending.next()) is not None:
            message = sending.messages[number]
            self._last_tag += 1
            self._flying[self._last_tag] = sending, number
            channel.basic_publish(
                self._exchange,
                message.address,
                message.body,
                pika.BasicProperties(
                    content_type=MEDIA_TYPE,
                    delivery_mode=PERSISTENT,
                    message_id=message.record.id,
                    type=message.record.type,
                    timestamp=int(message.record.recorded_at.timestamp()),
                ),
                mandatory=True,
            )

    def _on_return(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        # It comes before the confirm of the message.
        if channel is self._channel:
            self._returned[properties.message_id] = method.reply_text

    def _on_confirm(self, channel: Channel, frame: Any) -> None:
        if channel is not self._channel:
            # A late one, of a connection that is being closed: the tag is that of another message.
            return
        tag = frame.method.delivery_tag
        tags = [each for each in self._flying if each <= tag] if frame.method.multiple else [tag]
        is_stored = isinstance(frame.method, pika.spec.Basic.Ack)
        for each in tags:
            sending, number = self._flying.pop(each)
            why = self._returned.pop(sending.messages[number].record.id, None)
            if not is_stored:
                sending.failed(NotAcknowledged("RabbitMQ has refused a message (basic.nack)."))
            elif why is not None:
                sending.failed(NotAcknowledged(f"No queue gets the message: {why}. Bind one."))
            else:
                sending.stored(number)
                try:
                    self._pump(sending)
                except Exception as error:
                    sending.failed(error)

    def _on_closed(self, channel: Channel, error: BaseException | str) -> None:
        if channel is self._channel:
            self._fail(_exception(error))

    def _fail(self, error: Exception) -> None:
        flying, self._flying = self._flying, {}
        for sending, _ in flying.values():
            sending.failed(error)


def _exception(error: BaseException | str) -> Exception:
    return error if isinstance(error, Exception) else NotAcknowledged(str(error))
