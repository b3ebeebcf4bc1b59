"""A log's export is sent while it is read, by Django's handlers for ASGI and for WSGI."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.conf import settings as django_settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.db.backends.signals import connection_created
from django.test import RequestFactory
from django.urls import reverse

from eventlogs import LogId
from eventlogs.admin.downloads import Download
from eventlogs.feed import scans
from tests.accounts import Account, Deposited, Opened
from tests.admin.test_logs import user

pytestmark = pytest.mark.django_db(transaction=True)
EVENTS = 40
TIMEOUT = 20  # seconds


@pytest.fixture
def log_id(monkeypatch: pytest.MonkeyPatch) -> LogId:
    """A log that is read in pages of two events."""
    monkeypatch.setattr(scans, "PAGE", 2)
    return Account.logs.create(Opened("ada"), *[Deposited(1)] * (EVENTS - 1)).log_id


@pytest.fixture
def cookie(client: Any) -> str:
    """The cookie of a user with the permission to export."""
    client.force_login(user("view_eventlog", "view_event", "view_payload", name="reader"))
    return client.cookies[django_settings.SESSION_COOKIE_NAME].value


class Reading:
    """The threads that read events over connections made from now on, one entry for each read."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __len__(self) -> int:
        return len(self.threads)

    def watch(self, connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(self.count)

    def count(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "schema_version" in sql:
            self.threads.append(threading.get_ident())
        return execute(sql, params, many, context)


@pytest.fixture
def reading() -> Iterator[Reading]:
    found = Reading()
    connection_created.connect(found.watch)
    yield found
    connection_created.disconnect(found.watch)


def append_another(log_id: LogId) -> None:
    """Append an event, in a thread that keeps no connection."""
    Account.logs.append(log_id, Deposited(7), expected_version=EVENTS)
    connections.close_all()


def asked(log_id: LogId, cookie: str, **headers: str) -> ApplicationCommunicator:
    """Return Django, asked for the export of a log as a server asks it."""
    address = reverse("admin:eventlogs_eventlog_export", args=[log_id])
    names = {"cookie": f"{django_settings.SESSION_COOKIE_NAME}={cookie}", **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": address,
        "query_string": b"",
        "headers": [(b"host", b"testserver")]
        + [(name.encode(), text.encode()) for name, text in names.items()],
    }
    return ApplicationCommunicator(ASGIHandler(), scope)


def served(
    log_id: LogId,
    cookie: str,
    use: Callable[[ApplicationCommunicator], Awaitable[Any]],
    **headers: str,
) -> Any:
    """Ask for an export in an event loop of its own, as a server has one, and use the answer."""

    async def serve() -> Any:
        communicator = asked(log_id, cookie, **headers)
        # As a server whose client is slow: the application waits until its message is taken.
        communicator._output_queue = asyncio.Queue(maxsize=1)
        await communicator.send_input({"type": "http.request", "body": b""})
        found = await use(communicator)
        await communicator.wait(TIMEOUT)
        return found

    return asyncio.run(serve())


async def rest_of(communicator: ApplicationCommunicator) -> bytes:
    """Return the messages sent from here on."""
    body = b""
    while True:
        message = await communicator.receive_output(TIMEOUT)
        body += message.get("body", b"")
        if message["type"] == "http.response.body" and not message.get("more_body"):
            return body


def test_under_asgi_the_first_lines_are_sent_before_the_last_are_read(log_id, cookie, reading):
    async def use(communicator: ApplicationCommunicator) -> tuple[int, bytes]:
        start = await communicator.receive_output(TIMEOUT)
        assert start["status"] == 200
        first = await communicator.receive_output(TIMEOUT)
        early = len(reading)
        await asyncio.to_thread(append_another, log_id)
        return early, first["body"] + await rest_of(communicator)

    early, body = served(log_id, cookie, use)
    lines = [json.loads(line) for line in body.splitlines()]

    assert early < EVENTS // 4
    # If the log had been read as a whole, the event would have come too late.
    assert [each["data"] for each in lines[-3:-1]] == [{"amount": 1}, {"amount": 7}]
    assert lines[-1]["events"] == EVENTS + 1


def test_under_asgi_all_lines_are_read_in_the_thread_of_the_request(log_id, cookie, reading):
    body = served(log_id, cookie, rest_of)

    assert len(body.splitlines()) == EVENTS + 2
    assert len(reading) > EVENTS // 2
    assert len(set(reading.threads)) == 1
    assert threading.get_ident() not in reading.threads


def test_under_asgi_a_client_that_disconnects_ends_the_reading(log_id, cookie, reading):
    async def use(communicator: ApplicationCommunicator) -> int:
        for _ in range(2):
            await communicator.receive_output(TIMEOUT)
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait(TIMEOUT)
        return len(reading)

    assert served(log_id, cookie, use) < EVENTS // 2


def test_under_asgi_a_middleware_may_wrap_the_download(log_id, cookie, settings):
    settings.MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware", *settings.MIDDLEWARE]
    body = served(log_id, cookie, rest_of, **{"accept-encoding": "gzip"})

    assert len(gzip.decompress(body).splitlines()) == EVENTS + 2


def test_an_asynchronous_iterator_of_a_middleware_is_used_unchanged():
    async def others() -> AsyncIterator[str]:
        yield "x"
        yield "y"

    async def read() -> list[bytes]:
        response = Download(iter(["a", "b"]))
        response.streaming_content = others()
        return [part async for part in response]

    assert asyncio.run(read()) == [b"x", b"y"]


def test_an_empty_part_is_not_taken_for_the_end():
    async def read() -> list[bytes]:
        return [part async for part in Download(iter(["a", "", "b"]))]

    assert asyncio.run(read()) == [b"a", b"b"]


def test_an_error_in_the_middle_is_not_taken_for_the_end():
    def parts() -> Iterator[str]:
        yield "a"
        raise ValueError("in the middle")

    async def read(response: Download, found: list[bytes]) -> None:
        async for part in response:
            found.append(part)

    found: list[bytes] = []
    with pytest.raises(ValueError, match="in the middle"):
        asyncio.run(read(Download(parts()), found))
    assert found == [b"a"]


def test_under_wsgi_the_first_lines_are_sent_before_the_last_are_read(log_id, cookie):
    address = reverse("admin:eventlogs_eventlog_export", args=[log_id])
    environ = RequestFactory().get(address).environ
    environ["HTTP_COOKIE"] = f"{django_settings.SESSION_COOKIE_NAME}={cookie}"
    parts = iter(WSGIHandler()(environ, lambda status, headers, exc_info=None: lambda data: None))
    body = next(parts)
    append_another(log_id)
    lines = [json.loads(line) for line in (body + b"".join(parts)).splitlines()]

    assert lines[-1]["events"] == EVENTS + 1
