"""
The tail of a log as server-sent events, under ASGI.

The format is that of the HTML standard, section 9.2
(https://html.spec.whatwg.org/multipage/server-sent-events.html). The id of a message is the index
of its event. A log has no gaps, and its events do not change, so a client that reconnects with the
last id misses nothing and gets nothing twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from eventlogs.conf import MAX_VERSION
from eventlogs.contrib.http.pages import event_as_json
from eventlogs.contrib.http.problems import Problem
from eventlogs.exceptions import LogNotFound
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.pages import EventPage
from eventlogs.values import EventRecord

PAGE: Final = 100  # events that are read at once
SHORTEST_PAUSE: Final = 0.1  # seconds between two reads after an event
LONGEST_PAUSE: Final = 1.0  # seconds between two reads when none have come for a while
PATIENCE: Final = 1.25  # the factor by which a pause grows after a read without events
RECONNECT: Final = b"retry: 1000\n\n"  # milliseconds after which the client connects again
COMMENT: Final = b":\n\n"

HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store, no-transform",  # proxies must not compress: that collects events
    "X-Accel-Buffering": "no",  # nginx must not collect them either
}


async def event_stream(
    request: HttpRequest,
    logs: LogManager[Any],
    log_id: LogId | str,
    *,
    start: int = 0,
    seconds: float = 300,
    heartbeat: float = 15,
    as_json: Callable[[EventRecord], Any] = event_as_json,
) -> HttpResponseBase:
    """
    Return a response that sends the events of a log, those to come included.

    It begins behind the event that the client names in ``Last-Event-ID``; for a new client, with
    the event of index ``start``. Each message has the index as its id, and the JSON value that
    ``as_json`` returns as its data, on one line.

    After ``seconds`` it ends, so that a server that is to stop need not wait longer; an EventSource
    connects again after one second. After ``heartbeat`` seconds without an event it sends a
    comment, so that proxies keep the connection, and a lost client is noticed.

    It reads the log after 0.1 to 1 second, in a thread of the event loop's own pool, and closes the
    database connection each time. Connections that the request has opened before are closed, too:
    a stream that waits has none.

    Raise Problem (400) for another Last-Event-ID, LogNotFound for a log without events, and what
    ``LogManager.load`` raises. Raise ImproperlyConfigured under WSGI, where the response would
    never begin.
    """
    if not isinstance(getattr(request, "_request", request), ASGIRequest):
        raise ImproperlyConfigured(
            "event_stream() needs ASGI, and this request came through WSGI. Serve the project's "
            "asgi.py by an ASGI server, such as uvicorn or daphne."
        )
    log_id = logs.parse_id(log_id)
    start = _after(request.headers.get("Last-Event-ID"), start)
    if not await _read(logs, log_id, 0, 1):
        raise await _not_found(logs, log_id)
    if request.method == "HEAD":
        return HttpResponse(headers=HEADERS)
    await _close_those_of_the_request()
    messages = _messages(logs, log_id, start, seconds, heartbeat, as_json)
    return StreamingHttpResponse(messages, headers=HEADERS)


async def _messages(
    logs: LogManager[Any],
    log_id: LogId,
    start: int,
    seconds: float,
    heartbeat: float,
    as_json: Callable[[EventRecord], Any],
) -> AsyncIterator[bytes]:
    clock = asyncio.get_running_loop().time
    end, sent, pause = clock() + seconds, clock(), SHORTEST_PAUSE
    yield RECONNECT  # at once, so that the client sees that it is connected
    while clock() < end:
        page = await _read(logs, log_id, start, PAGE)
        for record in page:
            yield _message(record, as_json)
        start += len(page)
        if page:
            sent, pause = clock(), SHORTEST_PAUSE
        elif clock() - sent >= heartbeat:
            yield COMMENT
            sent = clock()
        if page.next_start is None:
            await asyncio.sleep(max(0, min(pause, end - clock(), sent + heartbeat - clock())))
            pause = min(pause * PATIENCE, LONGEST_PAUSE)


def _message(record: EventRecord, as_json: Callable[[EventRecord], Any]) -> bytes:
    # JSON has no line breaks, which would end the data.
    data = json.dumps(as_json(record), cls=DjangoJSONEncoder, ensure_ascii=False)
    return f"id: {record.index}\ndata: {data}\n\n".encode()


def _after(last_id: str | None, start: int) -> int:
    """Return the index behind that of the last message, or ``start`` for a new client."""
    if not last_id:
        return start
    is_number = last_id.isascii() and last_id.isdigit() and len(last_id) <= len(str(MAX_VERSION))
    if not is_number or int(last_id) > MAX_VERSION:
        raise Problem(400, "Last-Event-ID must be the id of a message of this stream.")
    return int(last_id) + 1


def _load(logs: LogManager[Any], log_id: LogId, start: int, limit: int) -> EventPage:
    try:
        return logs.load(log_id, start=start, limit=limit)
    finally:
        _close()


def _missing(logs: LogManager[Any], log_id: LogId) -> LogNotFound:
    try:
        return logs.not_found(log_id)
    finally:
        _close()


def _close() -> None:
    """Close the connections of this thread, except those with an open transaction (of a test)."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


# The pool's few threads limit the connections of a process, however many streams it has.
_read: Final = sync_to_async(_load, thread_sensitive=False)
_not_found: Final = sync_to_async(_missing, thread_sensitive=False)
_close_those_of_the_request: Final = sync_to_async(_close, thread_sensitive=True)
