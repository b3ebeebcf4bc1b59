"""Downloads that are written while they are sent, under WSGI and under ASGI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final

from asgiref.sync import sync_to_async
from django.http import StreamingHttpResponse

END: Final = b""  # no part of a body is empty: servers take an empty one for its end


class Download(StreamingHttpResponse):
    """
    A response whose parts come from an iterator that reads the database.

    Under ASGI, Django reads such an iterator to its end before it sends the first byte. Here
    each part is taken in a thread, and sent before the next one is asked for: memory holds one
    part, and a slow client slows the reading down. It is the thread that the request's view ran
    in (``thread_sensitive``), so the parts come through the same connections, and Django closes
    the iterator there when the client hangs up. Yield large parts: each is a trip to the thread.
    """

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the parts, or those of what a middleware has put in their place."""
        content = self.streaming_content
        if not isinstance(content, Iterator):
            async for part in content:
                yield part
            return
        while part := await sync_to_async(_next, thread_sensitive=True)(content):
            yield part


def _next(parts: Iterator[bytes]) -> bytes:
    """Return the next part that is not empty, or END: no StopIteration passes through a future."""
    return next((part for part in parts if part), END)
