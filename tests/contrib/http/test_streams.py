"""Streams of a log's events, from a real ASGI server, over a real socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import AsyncRequestFactory, RequestFactory

from eventlogs import ANY, LogErased, LogId, LogNotFound
from eventlogs.contrib.http import Problem, event_stream
from eventlogs.stores import erasing
from tests.accounts import Account, Deposited, Opened
from tests.processes import Place, Processes, Program, until

pytestmark = pytest.mark.django_db(transaction=True)
accounts = Account.logs
SERVER = "tests.contrib.http.streaming_server:application"
COUNT = 120  # events that are appended while clients read
PATIENCE = 60  # seconds that a client waits for a line


class Server:
    """A server of the site, in a process of its own."""

    def __init__(self, port: int, program: Program) -> None:
        self.port = port
        self.program = program

    def connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    @contextmanager
    def stream(self, address: str, last_id: int | None = None) -> Iterator[HTTPResponse]:
        headers = {} if last_id is None else {"Last-Event-ID": str(last_id)}
        with closing(self.connection()) as connection:
            connection.request("GET", address, headers=headers)
            yield connection.getresponse()

    def tasks(self) -> int:
        """Return the number of its tasks."""
        with self.stream("/tasks/") as response:
            return json.loads(response.read())["tasks"]


@pytest.fixture
def server() -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        with Program(
            *("-m", "uvicorn", SERVER, "--factory", "--fd", str(number), "--lifespan", "off"),
            environ={"STREAMED_DATABASE": str(connection.settings_dict["NAME"])},
            pass_fds=[number],
        ) as program:
            yield Server(listening.getsockname()[1], program)


@pytest.fixture
def log_id() -> LogId:
    return accounts.create(Opened("ada"), Deposited(1)).log_id


def messages(response: HTTPResponse) -> Iterator[tuple[int, Any]]:
    """Yield the id and the data of each message, until the stream ends."""
    fields: dict[str, str] = {}
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "id" in fields:
            yield int(fields["id"]), json.loads(fields["data"])
            fields = {}


def append_events(place: Place, log_id: LogId, count: int) -> None:
    for number in range(count):
        accounts.append(log_id, Deposited(number), expected_version=ANY)


def test_a_stream_has_the_headers_of_the_standard_and_of_proxies(server, log_id):
    with server.stream(f"/{log_id}/?seconds=0.1") as response:
        text = response.read().decode()

    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    first, second, third, *rest = text.split("\n\n")
    assert first == "retry: 1000"
    assert second.startswith('id: 0\ndata: {"index": 0, "type": "account.opened", ')
    assert third.startswith("id: 1\n")
    assert "".join(rest).strip(":\n") == ""


def test_events_of_another_process_arrive_in_order_and_once_over_reconnects(server, log_id):
    seen: list[int] = []
    data: list[Any] = []
    with Processes() as processes:
        processes.start(append_events, log_id, COUNT)
        while len(seen) < COUNT + 2:
            last = seen[-1] if seen else None
            # Some streams are left by the client, others are ended by the server.
            seconds = 0.3 if len(seen) % 2 else 60
            with server.stream(f"/{log_id}/?seconds={seconds}", last) as response:
                for _, (index, event) in zip(range(7), messages(response), strict=False):
                    seen.append(index)
                    data.append(event)

    assert seen == list(range(COUNT + 2))
    assert [each["index"] for each in data] == seen
    assert [each["data"]["amount"] for each in data[2:]] == list(range(COUNT))


def test_one_stream_sends_what_is_appended_while_it_is_open(server, log_id):
    with server.stream(f"/{log_id}/?start=2") as response:
        found = messages(response)
        for number in range(3):
            accounts.append(log_id, Deposited(number), expected_version=ANY)
            assert next(found)[0] == number + 2


def test_a_stream_without_events_is_kept_by_comments_and_ends_in_time(server, log_id):
    with server.stream(f"/{log_id}/?start=2&heartbeat=0.2&seconds=1") as response:
        text = response.read().decode()

    assert text.startswith("retry: 1000\n\n:\n\n")
    assert 2 <= text.count(":\n\n") <= 6


def test_a_client_that_goes_away_leaves_no_task(server, log_id):
    before = server.tasks()
    for _ in range(3):
        with server.stream(f"/{log_id}/") as response:
            assert next(messages(response))[0] == 0
            assert server.tasks() > before

    until(lambda: server.tasks() == before, seconds=20, what="the end of the streams' tasks")


@pytest.mark.postgresql
def test_a_stream_that_waits_has_no_connection(server, log_id):
    def others() -> int:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
            return cursor.fetchone()[0]

    before = others()
    with server.stream(f"/{log_id}/") as response:
        found = messages(response)
        assert [next(found)[0], next(found)[0]] == [0, 1]
        # It is read up to ten times a second, for a few milliseconds.
        samples = [until(lambda: others() <= before, seconds=5) for _ in range(20)]
        accounts.append(log_id, Deposited(7), expected_version=ANY)
        assert next(found)[0] == 2

    assert len(samples) == 20


def test_a_stream_that_cannot_be_is_a_problem(server, log_id):
    with server.stream(f"/{accounts.new_id()}/") as response:
        assert (response.status, json.loads(response.read())["status"]) == (404, 404)
    with closing(server.connection()) as client:
        client.request("GET", f"/{log_id}/", headers={"Last-Event-ID": "x"})
        assert client.getresponse().status == 400
    with closing(server.connection()) as client:
        client.request("HEAD", f"/{log_id}/")
        response = client.getresponse()
        assert (response.status, response.read()) == (200, b"")


# Without a server


def opened(request: Any, log_id: LogId, **options: Any) -> Any:
    return async_to_sync(event_stream)(request, accounts, log_id, **options)


def test_wsgi_is_refused(log_id):
    with pytest.raises(ImproperlyConfigured, match=r"asgi\.py"):
        opened(RequestFactory().get("/"), log_id)


@pytest.mark.parametrize("last_id", ["x", "-1", "1.0", "٣", "2147483648", "9" * 5_000])
def test_a_malformed_last_event_id_is_400(log_id, last_id):
    request = AsyncRequestFactory().get("/")
    request.META["HTTP_LAST_EVENT_ID"] = last_id

    with pytest.raises(Problem) as caught:
        opened(request, log_id)

    assert caught.value.status == 400


def test_a_log_without_events_is_404():
    with pytest.raises(LogNotFound):
        opened(AsyncRequestFactory().get("/"), accounts.new_id())


def test_an_erased_log_is_log_erased(log_id):
    erasing.erase("default", log_id, by="grace", reason="order 7")
    with pytest.raises(LogErased):
        opened(AsyncRequestFactory().get("/"), log_id)


def test_data_is_of_ones_own_form_and_on_one_line(log_id):
    async def read() -> bytes:
        response = await event_stream(
            AsyncRequestFactory().get("/"),
            accounts,
            log_id,
            seconds=0.05,
            as_json=lambda record: {"text": "é\r\n\u2028", "at": record.recorded_at},
        )
        return b"".join([part async for part in response])  # type: ignore[attr-defined]

    first, *_ = (
        part for part in async_to_sync(read)().decode().split("\n\n") if part.startswith("id")
    )

    assert len(first.split("\n")) == 2
    assert json.loads(first.partition("data: ")[2])["text"] == "é\r\n\u2028"
