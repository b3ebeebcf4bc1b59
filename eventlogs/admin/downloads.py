"""Downloads that are written while they are sent, under WSGI and under ASGI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final

from asgiref.sync import sync_to_async
from django.http import StreamingHttpResponse

END: Final = b""  # no part of a body is empty, because servers take an empty part for the end


class Download(StreamingHttpResponse):
    """
    A response whose parts come from an iterator that reads the database.

    Under ASGI, Django reads such an iterator to its end before it sends the first byte. This class
    takes one part at a time, in a thread, and sends it before it asks for the next one: memory
    holds one part, and a slow client slows the reading down. The thread is the one that the
    request's view ran in (``thread_sensitive``), so the parts are read through the same
    connections, and Django closes the iterator there when the client disconnects. Yield large
    parts, because each costs a change of threads.
    """

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the parts, or those with which a middleware has replaced them."""
        content = self.streaming_content
        if not isinstance(content, Iterator):
            async for part in content:
                yield part
            return
        while part := await sync_to_async(_next, thread_sensitive=True)(content):
            yield part


def _next(parts: Iterator[bytes]) -> bytes:
    """Return the next part that is not empty, or END: a future cannot carry StopIteration."""
    return next((part for part in parts if part), END)
