"""
Processes of the campaigns of projections: runners, rebuilds, writers and readers.

They are killed on the way, so they share nothing: a lock of several processes would stay locked
when its holder is killed. They are told to end by SIGTERM, and say what there is to say in a pipe
of their own.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import resource
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

from django.db import Error, connection, connections
from django.utils.module_loading import import_string

from eventlogs import ANY, LogId
from eventlogs.projections import (
    held_logs,
    leases,
    starting,
    workers,
)
from eventlogs.projections import (
    rebuild as rebuilding,
)
from eventlogs.projections.workers import Worker
from tests.races.crew import PROCESSES
from tests.reliability import read_models, steps
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import DECLARED, FLAKY, LedgerRow, Quick, ledgers
from tests.reliability.steps import Stop

PATIENCE = 60.0  # seconds that a process may take to do what it should
GRACE = 0.3  # seconds that a lease outlasts the time-out of its projection
LEASE = Quick.timeout + GRACE


class Conditions(NamedTuple):
    """Under which conditions a process works."""

    stop: Stop | None = None  # where it is stopped
    host: str = ""  # another machine than that of the tests, whose processes nobody can look at
    memory: int = 0  # bytes that it may have beside those that it begins with
    timeout: float = Quick.timeout  # seconds, of each projection
    losses: int = 3  # connections that may be lost with one event in hand, before they count
    mended: str = ""  # the file that is there when what misbehaves is mended
    twin: str = ""  # the path of a function that breaks something


class Process:
    """A process of a campaign."""

    def __init__(self, job: Callable[..., Any], conditions: Conditions, *arguments: Any) -> None:
        """Start it: it calls ``job(flag, *arguments)``, and says what that returns."""
        self.pipe, theirs = PROCESSES.Pipe()
        self._ready, announcement = PROCESSES.Pipe()
        self._process = PROCESSES.Process(
            target=_work,
            args=(theirs, announcement, dict(connection.settings_dict), conditions, job, arguments),
            daemon=True,
        )
        self._process.start()
        theirs.close()
        announcement.close()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    def heard(self, patience: float = PATIENCE) -> Any:
        """Return the next thing that it says; None where it ended without a word."""
        if not self.pipe.poll(patience):
            self.send(signal.SIGUSR1)  # it prints where it is
            raise AssertionError("a process says nothing")
        try:
            said = self.pipe.recv()
        except EOFError:
            return None
        assert not isinstance(said, Failure), said
        return said

    def send(self, number: int) -> None:
        if self.is_alive:
            os.kill(self.pid, number)

    def wake(self) -> None:
        """Let it go on. It says where it stops before it does: what comes earlier is lost."""
        until(lambda: is_stopped(self.pid), what="a process does not stop")
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self.join()

    def end(self) -> Any:
        """Let it end, and return its report."""
        assert self._ready.poll(PATIENCE), "a process does not begin"
        self.send(signal.SIGTERM)
        report = self.heard()
        self.join()
        return report

    def join(self, patience: float = PATIENCE) -> None:
        self._process.join(patience)
        assert not self.is_alive, "a process does not end"


class Troupe:
    """All processes of a campaign; a context manager."""

    def __init__(self, **conditions: Any) -> None:
        """``conditions`` are those of all of them."""
        self._conditions = Conditions(**conditions)
        self._processes: list[Process] = []

    def run(self, *names: str, **conditions: Any) -> Process:
        """Start a runner of projections."""
        return self.start(run, list(names), **conditions)

    def rebuild(self, name: str, **conditions: Any) -> Process:
        return self.start(rebuild, name, **conditions)

    def start(self, job: Callable[..., Any], *arguments: Any, **conditions: Any) -> Process:
        process = Process(job, self._conditions._replace(**conditions), *arguments)
        self._processes.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            process.send(signal.SIGKILL)
        for process in self._processes:
            process.join()


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal, as the system's process table has it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:  # not Linux
        listed = ["ps", "-o", "state=", "-p", str(pid)]
        state = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.strip()
    return state.startswith("T")


def until(condition: Callable[[], object], *, seconds: float = PATIENCE, what: str = "") -> float:
    """Wait until something is so, and return for how long."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, what or "what should come did not come"
        time.sleep(0.02)
    return time.monotonic() - began


# In the processes.


class Failure(str):
    """The traceback of a process that failed."""


class Flag:
    """Set by SIGTERM. A threading.Event could meet its own lock in the signal's handler."""

    def __init__(self) -> None:
        self._set = False
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float = 0) -> bool:
        end = time.monotonic() + timeout
        while not self._set and time.monotonic() < end:
            time.sleep(min(0.02, timeout))
        return self._set


def _work(
    pipe: Any,
    announcement: Any,
    database: dict[str, Any],
    conditions: Conditions,
    job: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    flag = Flag()
    announcement.send("it listens to SIGTERM")
    faulthandler.register(signal.SIGUSR1)
    logger = logging.getLogger("eventlogs")
    logger.addHandler(logging.NullHandler())  # what fails here is meant to fail
    logger.propagate = False
    connection.settings_dict.update(database)
    random.seed()
    for module in (starting, rebuilding):
        module.GRACE = GRACE  # type: ignore[attr-defined]
    workers.BEAT, workers.ALIVE, workers.FIRST_WAIT = 0.1, LEASE, 0.05  # type: ignore[misc]
    Quick.timeout = conditions.timeout
    held_logs.MAX_LOSSES = conditions.losses  # type: ignore[misc]
    steps.install()
    if conditions.host:
        leases.HOST = conditions.host  # type: ignore[misc]
    if conditions.mended:
        read_models.mended.append(Path(conditions.mended))
    if conditions.memory:
        have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = have + conditions.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if conditions.twin:
        import_string(conditions.twin)()
    if conditions.stop:
        steps.order(conditions.stop, pipe.send)
    report: Any
    try:
        report = job(flag, *arguments)
    except Exception:
        report = Failure(traceback.format_exc())
    finally:
        connections.close_all()
    pipe.send(report)


def run(flag: Any, names: list[str]) -> str:
    read_models.declare(names)
    Worker(names, stop=flag).run()
    return "done"


def rebuild(flag: Any, name: str) -> int:
    read_models.declare([name])
    return DECLARED[name].rebuild()  # type: ignore[attr-defined,no-any-return]


def write(
    flag: Any,
    name: str,
    log_ids: list[LogId],
    pause: float,
    flaky: float,
) -> int:
    """Append to ledgers until told to stop; some entries are flaky. Return how many there are."""
    choices, manager = random.Random(name), ledgers()
    count = 0
    while not flag.is_set():
        texts = [
            f"{FLAKY if choices.random() < flaky else ''} {name}-{count + n}"
            for n in range(choices.choice((1, 1, 1, 3)))
        ]
        entries = [Entered(text.strip(), choices.randrange(100)) for text in texts]
        manager.append(choices.choice(log_ids), *entries, expected_version=ANY)
        count += len(entries)
        flag.wait(pause)
    return count


class Seen(NamedTuple):
    """What a reader has seen."""

    reads: int
    wrong: list[str]
    slowest: float  # seconds


def watch(flag: Any) -> Seen:
    """Read all rows, all the time: they never become fewer, nor go back."""
    reads, slowest = 0, 0.0
    wrong: list[str] = []
    last: dict[Any, int] = {}
    while not flag.is_set():
        began = time.monotonic()
        try:
            rows = dict(LedgerRow.objects.values_list("log_id", "entries"))
        except Error as error:
            wrong.append(f"{type(error).__name__}: {error}")
            with suppress(Error):
                connection.close()
            continue
        slowest = max(slowest, time.monotonic() - began)
        wrong += [
            f"{log_id} went from {entries} to {rows.get(log_id)} entries"
            for log_id, entries in last.items()
            if rows.get(log_id, -1) < entries
        ][:3]
        last = rows
        reads += 1
    return Seen(reads, wrong[:10], slowest)
