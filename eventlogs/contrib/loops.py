"""An event loop in a thread of its own, for sync code that uses an asynchronous client."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

from eventlogs.projections.publisher import BaseSink, Encode
from eventlogs.values import EventRecord

T = TypeVar("T")


class LoopThread:
    """A thread that runs an event loop from the first call on; one for each process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0  # of the process that has the thread: a fork has none

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread, and return what it returns, or raise what it raises."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._running())
        try:
            return future.result()
        except BaseException:
            future.cancel()  # e.g. after a signal in this thread
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(
                    target=self._loop.run_forever, name="eventlogs sinks", daemon=True
                ).start()
            return self._loop


loop_thread: Final = LoopThread()
"""The loop of all sinks of this process."""


class LoopSink(BaseSink):
    """A sink whose client is asynchronous, and whose connection no fork may use."""

    def send(self, records: Sequence[EventRecord], encode: Encode) -> None:
        if self._pid != os.getpid():
            self._forget()  # this is a fork: the connection is its parent's
        loop_thread.call(self._send(records, encode))

    def close(self) -> None:
        if self._pid == os.getpid():
            loop_thread.call(self._drop())

    def _forget(self) -> None:
        """Begin without a connection; call it at first, and in a fork."""
        self._pid = os.getpid()

    @abstractmethod
    async def _send(self, records: Sequence[EventRecord], encode: Encode) -> None:
        """Do what ``send`` says, in the loop."""

    @abstractmethod
    async def _drop(self) -> None:
        """Close the connection, if there is one, in the loop."""
