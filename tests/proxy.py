"""A proxy before a server that counts the round trips which its clients make."""

from __future__ import annotations

import selectors
import socket
from threading import Event, Thread
from types import TracebackType
from typing import Self

Address = tuple[str, int] | str  # a host and port, or the path of a socket


class CountingProxy:
    """
    Forward one connection at a time; a context manager.

    A round trip begins when the client sends something for the first time since the server
    has: however many packets that takes, the client has waited once.
    """

    def __init__(self, server: Address) -> None:
        self.server = server
        self.round_trips = 0
        self._end = Event()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._thread = Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._end.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            with client, self._connect() as server:
                self._forward(client, server)

    def _connect(self) -> socket.socket:
        if isinstance(self.server, tuple):
            return socket.create_connection(self.server)
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.server)
        return server

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        clients_turn = True
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self._end.is_set():
                for key, _ in selector.select(timeout=0.05):
                    source, target = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    data = source.recv(65_536)
                    if not data:
                        return
                    if source is client and clients_turn:
                        self.round_trips += 1
                    clients_turn = source is server
                    target.sendall(data)
