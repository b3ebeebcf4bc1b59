"""
The records of a batch on their way to a broker, which acknowledges each by itself.

Of each log only one record is on its way at a time: the next one is sent when that one is stored.
So a broker that refuses or loses one record, and takes later ones, cannot reverse their order.
Records of different logs are sent together, so that a batch waits for few round trips.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from eventlogs.exceptions import Unpublishable
from eventlogs.projections.publisher import Encode
from eventlogs.values import EventRecord

MEDIA_TYPE: Final = "application/cloudevents+json"
"""That of a CloudEvent as one JSON text (https://github.com/cloudevents/spec, JSON format 4)."""

WINDOW: Final = 1_000  # records on their way
WINDOW_BYTES: Final = 1_000_000  # of their bodies

Address = str | Callable[[EventRecord, dict[str, Any]], str]


class Message(NamedTuple):
    """A record as it is sent: to which address, and with which body."""

    record: EventRecord
    address: str
    body: bytes


def messages_of(
    records: Sequence[EventRecord], encode: Encode, address: Address, *, most: int | None = None
) -> list[Message]:
    """
    Return the messages of records.

    ``address`` is a text with ``{type}``, ``{log_type}`` and ``{log_id}``, or a function of a
    record and its CloudEvent. ``most`` is how many bytes a body may have.

    Raise Unpublishable for all records that cannot be encoded, or are too long.
    """
    made: list[Message] = []
    broken: list[EventRecord] = []
    why: Exception | None = None
    for record in records:
        try:
            event = encode(record)
            if isinstance(address, str):
                to = address.format(
                    type=event["type"], log_type=record.log_id.log_type, log_id=record.log_id
                )
            else:
                to = address(record, event)
            body = msgspec.json.encode(event)
            if most is not None and len(body) > most:
                raise ValueError(f"{len(body)} bytes, and the broker takes {most}")
            made.append(Message(record, to, body))
        except Exception as error:
            why = why or error
            broken.append(record)
    if broken:
        raise Unpublishable(*broken, reason="it cannot be encoded for the broker") from why
    return made


class Sending:
    """A batch that is being sent; used in one event loop."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self._later: dict[Any, deque[int]] = {}  # of each log, those behind the one on its way
        self._ready: deque[int] = deque()
        for number, message in enumerate(messages):
            log_id = message.record.log_id
            if log_id in self._later:
                self._later[log_id].append(number)
            else:
                self._later[log_id] = deque()
                self._ready.append(number)
        self._bytes = 0  # on their way
        self._flying: set[int] = set()
        self._refused: list[EventRecord] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._look()

    def next(self) -> int | None:
        """Return the number of the next message to send; None while others must arrive first."""
        if not self._ready or self._done.done() or len(self._flying) >= WINDOW:
            return None
        size = len(self.messages[self._ready[0]].body)
        if self._flying and self._bytes + size > WINDOW_BYTES:
            return None
        number = self._ready.popleft()
        self._flying.add(number)
        self._bytes += size
        return number

    def stored(self, number: int) -> None:
        """Note that the broker has stored a message: the next one of its log may be sent."""
        if self._landed(number):
            later = self._later[self.messages[number].record.log_id]
            if later:
                self._ready.append(later.popleft())
            self._look()

    def refused(self, number: int) -> None:
        """Note that the broker will never take a message; the later ones of its log stay here."""
        if self._landed(number):
            self._refused.append(self.messages[number].record)
            self._look()

    def failed(self, error: Exception) -> None:
        """End the batch: the broker does not take it now."""
        if not self._done.done():
            self._done.set_exception(error)
            self._done.exception()  # retrieved: nobody may wait for it any more

    async def end(self) -> None:
        """Wait until all are stored; raise Unpublishable for refused ones, or another failure."""
        await self._done
        if self._refused:
            raise Unpublishable(*self._refused, reason="the broker refuses it")

    def _landed(self, number: int) -> bool:
        if number not in self._flying:
            return False  # a second acknowledgement
        self._flying.discard(number)
        self._bytes -= len(self.messages[number].body)
        return True

    def _look(self) -> None:
        if not self._flying and not self._ready and not self._done.done():
            self._done.set_result(None)
