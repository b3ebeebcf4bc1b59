"""
A sink for NATS JetStream: ``pip install "eventlogs[nats]"``.

The stream is yours: create it, with subjects that cover those of this sink. Each message has the
record's id as its ``Nats-Msg-Id``, so a stream stores a repetition within its duplicate window (two
minutes, unless the stream says otherwise) only once.

The client does not reconnect by itself. It would send messages from its buffer, after it has lost
earlier ones of the same log with the old connection.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error

from eventlogs.contrib.loops import LoopSink
from eventlogs.contrib.sending import MEDIA_TYPE, Address, Sending, messages_of
from eventlogs.exceptions import NotAcknowledged
from eventlogs.projections.publisher import Encode
from eventlogs.values import EventRecord

__all__ = ["JetStreamSink"]

logger = logging.getLogger("eventlogs.projections")

TOO_LONG: Final = 10054  # JSStreamMessageExceedsMaximumErr
CLOSES_IN: Final = 1.0  # seconds; the client would wait until the server has read all it was sent
HEADERS: Final = 1_000  # bytes, at most, of the headers of a message: its size counts them


class JetStreamSink(LoopSink):
    """Sends events to a stream of NATS JetStream, and waits for its acknowledgements."""

    def __init__(
        self,
        servers: str | list[str] = "nats://127.0.0.1:4222",
        *,
        subject: Address = "events.{type}",
        stream: str | None = None,
        timeout: float = 10.0,
        **options: Any,
    ) -> None:
        """
        Send to the servers of one cluster.

        ``subject`` is a text with ``{type}``, ``{log_type}`` and ``{log_id}``, or a function of a
        record and its CloudEvent. ``stream`` is the name of the stream: with it, no other stream
        takes the messages by mistake. A batch fails after ``timeout`` seconds; it is sent again.
        ``options`` are those of ``nats.connect()``, such as ``user_credentials``.
        """
        self.timeout = timeout
        self._servers, self._options = servers, options
        self._subject = subject
        self._headers = {"Content-Type": MEDIA_TYPE}
        if stream is not None:
            self._headers["Nats-Expected-Stream"] = stream
        self._numbers = itertools.count()
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._client: Client | None = None
        self._inbox = ""
        self._sendings: dict[str, Sending] = {}
        self._connecting: asyncio.Lock | None = None

    async def _send(self, records: Sequence[EventRecord], encode: Encode) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                client = await self._connected()
                most = client.max_payload - HEADERS
                sending = Sending(messages_of(records, encode, self._subject, most=most))
                number = str(next(self._numbers))
                self._sendings[number] = sending
                try:
                    await self._pump(client, number, sending)
                    await sending.end()
                finally:
                    del self._sendings[number]
        except (TimeoutError, Error):
            await self._drop()  # whatever it has in its buffers is lost with it
            raise

    async def _connected(self) -> Client:
        self._connecting = self._connecting or asyncio.Lock()
        async with self._connecting:
            if self._client is None or not self._client.is_connected:
                await self._drop()
                client, inbox = await self._open()
                self._client, self._inbox = client, inbox
            return self._client

    async def _open(self) -> tuple[Client, str]:
        client = Client()
        try:
            await client.connect(
                self._servers,
                **{
                    "connect_timeout": min(3, self.timeout),
                    "reconnect_time_wait": 0,
                    "max_reconnect_attempts": 1,
                    **self._options,
                    "allow_reconnect": False,
                    "error_cb": self._on_error,
                    "closed_cb": self._on_closed,
                },
            )
            inbox = client.new_inbox()
            await client.subscribe(
                f"{inbox}.>", cb=self._on_answer, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
        except BaseException:
            await _close(client)
            raise
        return client, inbox

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    async def _pump(self, client: Client, name: str, sending: Sending) -> None:
        while (number := sending.next()) is not None:
            message = sending.messages[number]
            await client.publish(
                message.address,
                message.body,
                reply=f"{self._inbox}.{name}.{number}",
                headers={"Nats-Msg-Id": message.record.id, **self._headers},
            )

    async def _on_answer(self, answer: Msg) -> None:
        name, _, number = answer.subject.removeprefix(f"{self._inbox}.").partition(".")
        sending, client = self._sendings.get(name), self._client
        if sending is None or client is None:
            return  # its batch has failed before
        try:
            if not answer.data:
                raise NotAcknowledged("No stream takes this subject, or JetStream is not there.")
            told = msgspec.json.decode(answer.data)
            if (error := told.get("error")) is None:
                sending.stored(int(number))
            elif error.get("err_code") == TOO_LONG:
                sending.refused(int(number))
            else:
                raise NotAcknowledged(f"JetStream says: {error.get('description')}.")
            await self._pump(client, name, sending)
        except Exception as error:
            sending.failed(error)

    async def _on_error(self, error: Exception) -> None:
        logger.debug("NATS: %s", type(error).__name__)  # what it means for a batch is raised there

    async def _on_closed(self) -> None:
        for sending in list(self._sendings.values()):
            sending.failed(NotAcknowledged("The connection was lost."))


async def _close(client: Client) -> None:
    with suppress(Exception):
        async with asyncio.timeout(CLOSES_IN):
            await client.close()
