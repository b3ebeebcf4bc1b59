"""
A cache in which anything may happen, and processes that read and write logs through it.

Each reader compares what it was answered with a full replay at the same version, and says what
it saw: how many reductions, and every one that was wrong, and every error.
"""

from __future__ import annotations

import pickle
import random
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import redis
from django.core.cache import caches
from django.db import connection

from eventlogs import ANY, LogId, LogManager, entries, reducers
from eventlogs.background import background
from eventlogs.caches import statistics
from tests.accounts import Account, Deposited, Withdrawn
from tests.races.crew import PATIENCE, PROCESSES
from tests.servers import Redis

ALIAS = "chaos"


class Seen(NamedTuple):
    """What one process saw."""

    reductions: int
    wrong: list[str]
    errors: list[str]
    statistics: dict[str, Any]


def use_cache(url: str) -> None:
    """Have an alias for a Redis that comes and goes, in this process."""
    caches.settings[ALIAS] = {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": url,
        "OPTIONS": {"SOCKET_TIMEOUT": 0.5, "SOCKET_CONNECT_TIMEOUT": 0.5},  # seconds
    }


def manager() -> LogManager[Account]:
    return LogManager(Account, cache=ALIAS, refresh_on_append=True)


# Broken implementations, for one process each: the same campaign has to find them out.


def believe_anybody() -> None:
    """Entries without a look at their signature."""

    def opened(raw: bytes) -> tuple[entries.Head, bytes]:
        head, _, body = raw[entries.HEADER_BYTES : -entries.SIGNATURE_BYTES].partition(b"\n")
        try:
            return entries._HEAD.decode(head), body
        except Exception:
            raise entries.Untrusted("undecodable") from None

    entries.opened = opened


def believe_any_log() -> None:
    """Entries that are signed, of whatever log, and not proven by it."""
    decode = entries.EntryCodec.decode

    def decode_any(self: Any, raw: bytes, log_id: LogId) -> Any:
        head, _ = entries.opened(raw)
        return decode(self, raw, LogId.parse(head.log_id))

    entries.EntryCodec.decode = decode_any  # type: ignore[method-assign]
    entries.Entry.is_proven_by = (  # type: ignore[method-assign]
        lambda self, row: row is not None and row[0] == self.head.version - 1
    )


def let_errors_through() -> None:
    """A cache whose failures reach the reader."""
    reducers.Unreachable = ZeroDivisionError  # type: ignore[misc, attr-defined]


TWINS: dict[str, Callable[[], None]] = {
    twin.__name__: twin for twin in (believe_anybody, believe_any_log, let_errors_through)
}


# The processes.


def read(pipe: Any, stop: Any, url: str, database: Any, log_ids: list[LogId], twin: str) -> None:
    """Reduce logs until told to stop; compare with a replay."""
    _begin(url, database, twin)
    accounts, choices = manager(), random.Random()
    count, wrong, errors = 0, [], []
    while not stop.is_set():
        log_id = choices.choice(log_ids)
        try:
            reduction = accounts.reduce(log_id)
            expected = accounts.reduce(log_id, version=reduction.version)
        except Exception as error:
            errors.append(repr(error))
            connection.close()
            continue
        count += 1
        if reduction.aggregate != expected.aggregate:
            wrong.append(f"{log_id} at {reduction.version}: {reduction.aggregate}")
    background.flush(5)
    pipe.send(Seen(count, wrong, errors, statistics()))


def write(pipe: Any, stop: Any, url: str, database: Any, log_ids: list[LogId], twin: str) -> None:
    """Append to logs until told to stop."""
    _begin(url, database, "")
    accounts, choices = manager(), random.Random()
    count, errors = 0, []
    while not stop.is_set():
        kind = choices.choice((Deposited, Withdrawn))
        events = [kind(choices.randrange(1, 10_000)) for _ in range(choices.randrange(1, 4))]
        try:
            accounts.append(choices.choice(log_ids), *events, expected_version=ANY)
            count += 1
        except Exception as error:
            errors.append(repr(error))
            connection.close()
        time.sleep(0.005)
    background.flush(5)
    pipe.send(Seen(count, [], errors, statistics()))


def _begin(url: str, database: Any, twin: str) -> None:
    connection.settings_dict.update(database)
    use_cache(url)
    if twin:
        TWINS[twin]()


class Bomb:
    """A pickle that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Chaos:
    """What happens to the cache."""

    def __init__(self, server: Redis, fuse: Path) -> None:
        self.server = server
        self.fuse = fuse
        self.done: dict[str, int] = {}
        self._seen: dict[bytes, list[bytes]] = {}
        self._random = random.Random()
        self._ways: list[Callable[[redis.Redis], object]] = [
            self.flush,
            self.restart,
            self.garbage,
            self.cut_off,
            self.flip,
            self.flip,
            self.another_logs,
            self.another_logs,
            self.older,
            self.pickle,
            self.huge_version,
        ]

    def only(self, name: str) -> None:
        """Let but one of them happen."""
        self._ways = [getattr(self, name)]

    def strike(self) -> None:
        """Do one of the things that may happen."""
        way = self._random.choice(self._ways)
        with suppress(redis.RedisError), redis.Redis.from_url(self.server.url) as client:
            for key in client.scan_iter("*reduction*"):
                value = client.get(key)
                if isinstance(value, bytes) and value.startswith(entries.MAGIC):
                    self._seen.setdefault(key, []).append(value)
            way(client)
            self.done[way.__name__] = self.done.get(way.__name__, 0) + 1

    def flush(self, client: redis.Redis) -> None:
        client.flushall()

    def restart(self, client: redis.Redis) -> None:
        self.server.process.kill()
        self.server.process.wait()
        time.sleep(self._random.uniform(0, 0.3))
        self.server.socket.unlink(missing_ok=True)
        self.server._start()

    def garbage(self, client: redis.Redis) -> None:
        self._put(client, lambda key: self._random.randbytes(self._random.randrange(200)))

    def cut_off(self, client: redis.Redis) -> None:
        self._put(client, lambda key: self._entry(key)[: self._random.randrange(300)])

    def flip(self, client: redis.Redis) -> None:
        """Change a balance: it is JSON as before, and another amount."""
        self._put(client, lambda key: re.sub(rb'"balance":-?\d+', b'"balance":7', self._entry(key)))

    def another_logs(self, client: redis.Redis) -> None:
        keys = list(self._seen)
        self._put(client, lambda key: self._entry(self._random.choice(keys)))

    def older(self, client: redis.Redis) -> None:
        self._put(client, lambda key: self._random.choice(self._seen[key]))

    def pickle(self, client: redis.Redis) -> None:
        self._put(client, lambda key: pickle.dumps(Bomb(self.fuse)))

    def huge_version(self, client: redis.Redis) -> None:
        self._put(client, lambda key: b"EL1\x7f\xff\xff\xff" + self._entry(key)[7:])

    def _entry(self, key: bytes) -> bytes:
        return self._seen[key][-1]

    def _put(self, client: redis.Redis, value: Callable[[bytes], bytes]) -> None:
        for key in self._seen:
            client.set(key, value(key))


def campaign(
    chaos: Chaos,
    database: dict[str, Any],
    log_ids: Iterable[LogId],
    *,
    seconds: float,
    readers: int = 8,
    writers: int = 8,
    twin: str = "",
) -> list[Seen]:
    """Have readers and writers at work while the cache is struck; return what they saw."""
    stop = PROCESSES.Event()
    pipes, processes = [], []
    for job in [read] * readers + [write] * writers:
        ours, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(
            target=job,
            args=(theirs, stop, chaos.server.url, database, list(log_ids), twin),
            daemon=True,
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
        chaos.strike()
    stop.set()
    seen = []
    for pipe, process in zip(pipes, processes, strict=True):
        assert pipe.poll(PATIENCE), "a process does not end"
        seen.append(pipe.recv())
        process.join(PATIENCE)
    return seen
