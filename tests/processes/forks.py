"""
Processes that are forked and run one function, their *job*.

The test and a process talk over one pipe, of their own: a lock or an event of several
processes would stay locked when its holder is killed. A job is asked to end through the pipe, so no
signal interrupts what it is doing, and it ends when the test is gone.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random
import signal
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from threading import Barrier
from typing import Any, Self

from django.db import connection, connections
from django.test import override_settings

from tests.processes import ready
from tests.processes.waiting import PATIENCE, stories, until, witnesses

# Forked from a process that has Django, and neither connections nor threads.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([ready.__name__])

SHOWN = 4_000  # characters at the end of what a process printed


class Signal(Enum):
    """Messages between the test and a process besides values."""

    READY = "it has a connection"
    GO = "it may begin"
    END = "it is to end"


class Failure(str):
    """The traceback of a job that failed."""


class ProcessFailed(AssertionError):
    """A job failed in its process; the message is the traceback there."""


class Place:
    """The process of a job, and its connection to the test."""

    def __init__(self, pipe: Any, number: int) -> None:
        self.number = number
        self.size = 1
        self.random = random.Random(number)
        self.barrier: Barrier | None = None
        self._pipe = pipe
        self._ended = False
        self._lock = threading.Lock()

    def together(self) -> None:
        """Wait until the other processes of the race are here, too."""
        assert self.barrier is not None
        self.barrier.wait(PATIENCE)

    def say(self, message: Any) -> None:
        """Send a picklable value to the test."""
        self._pipe.send(message)

    def hear(self) -> Any:
        """Wait for a message of the test; Signal.END if the test has ended."""
        try:
            return self._pipe.recv()
        except EOFError:
            return Signal.END

    def is_set(self) -> bool:
        """Return whether the job is to end. Named as in threading.Event, whose place it takes."""
        return self.wait(0)

    def wait(self, timeout: float = 0) -> bool:
        """Wait up to ``timeout`` seconds for the request to end; return whether it has come."""
        with self._lock:
            if not self._ended and self._pipe.poll(timeout):
                self._ended = self.hear() is Signal.END
            return self._ended


def no_preparation(place: Place) -> None:
    """Change nothing in the process."""


class Process:
    """A process that runs ``job(place, *arguments)`` once, and reports the result."""

    def __init__(
        self,
        job: Callable[..., Any],
        *arguments: Any,
        number: int = 0,
        prepare: Callable[[Place], None] = no_preparation,
        database: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        is_held: bool = False,
    ) -> None:
        """
        Start it.

        ``number`` is its place's. ``prepare`` is called first, in the process. ``database`` is
        Django's settings of its database, by default the test's, and ``settings`` are other ones
        that it has. One that is held connects to its database, and begins with ``go()``.
        """
        self.pipe, theirs = CONTEXT.Pipe()
        descriptor, name = tempfile.mkstemp(prefix="eventlogs-process-")
        os.close(descriptor)
        self._printed = Path(name)
        self._process = CONTEXT.Process(
            target=_work,
            args=(
                theirs,
                name,
                number,
                prepare,
                dict(connection.settings_dict if database is None else database),
                dict(settings or {}),
                is_held,
                job,
                arguments,
            ),
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self._job = job.__name__
        witnesses.append(self.story)

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

    def tell(self, message: Any) -> None:
        """Send a value to the job; a job that has ended does not get it."""
        with suppress(OSError):
            self.pipe.send(message)

    def next_message(self, patience: float = PATIENCE) -> Any:
        """Return the job's next message, including a Failure; None if the job has ended."""
        if not self.pipe.poll(patience):
            raise AssertionError(stories(f"{self._job} said nothing for {patience} s"))
        try:
            return self.pipe.recv()
        except (EOFError, OSError):  # OSError: it was killed in the middle of a message
            return None

    def heard(self, patience: float = PATIENCE) -> Any:
        """Return the job's next message; None if the job ended without one."""
        said = self.next_message(patience)
        if isinstance(said, Failure):
            raise ProcessFailed(f"{said}\n{self.story()}")
        return said

    def wait_until_ready(self) -> None:
        """Wait until one that is held has its connection."""
        assert self.heard() is Signal.READY

    def go(self) -> None:
        """Let one that is held begin."""
        self.tell(Signal.GO)

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.is_alive:
            os.kill(self.pid, number)

    def wake(self) -> None:
        """Continue the process. A job reports its step before it stops: an earlier call is lost."""
        until(self._is_stopped, what=f"the stop of {self._job}")
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait for its end."""
        self._process.kill()
        self.join()

    def tell_to_end(self) -> None:
        self.tell(Signal.END)

    def end(self) -> Any:
        """Ask the job to end, and return its report."""
        self.tell_to_end()
        return self.report()

    def report(self) -> Any:
        """Wait for its end, and return its report."""
        report = self.heard()
        self.join()
        return report

    def join(self) -> None:
        self._process.join(PATIENCE)
        if self.is_alive:
            raise AssertionError(stories(f"{self._job} has not ended within {PATIENCE} s"))

    def close(self) -> None:
        """End the process, and release its resources."""
        if self.story in witnesses:
            witnesses.remove(self.story)
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()
        self._printed.unlink()

    def story(self) -> str:
        """Return the state of the process, its stack and its output."""
        title = f"{self._job} (pid {self.pid})"
        if not self.is_alive:
            state = f"ended with {self.exit_code}"
        elif self._is_stopped():
            state = "stopped by a signal"
        else:
            state = "at work"
            before = self._printed.stat().st_size
            self.send(signal.SIGUSR1)  # the process prints its stack
            with suppress(AssertionError):
                _until_grown(self._printed, before)
        printed = self._printed.read_text(errors="replace")[-SHOWN:]
        return f"--- {title}: {state}\n{printed}"

    def _is_stopped(self) -> bool:
        """Return whether it is stopped by a signal, according to the system's process table."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
            state = stat.rpartition(")")[2].split()[0]
        except FileNotFoundError:  # not Linux
            listed = ["ps", "-o", "state=", "-p", str(self.pid)]
            done = subprocess.run(listed, capture_output=True, text=True, check=False)
            state = done.stdout.strip()
        return state.startswith("T")


def _until_grown(path: Path, size: int) -> None:
    """Wait a moment for more output in a file. Not with ``until``, whose error calls this."""
    waiting = threading.Event()
    for _ in range(50):
        if path.stat().st_size > size:
            return
        waiting.wait(0.02)


class Processes:
    """The processes of a test; a context manager that leaves none behind."""

    def __init__(self, **options: Any) -> None:
        """``options`` are the default options of each process: see Process."""
        self._options = options
        self._all: list[Process] = []
        self._held: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._all:
            process.send(signal.SIGKILL)  # all of them first: one may wait for another
        for process in self._all:
            process.close()

    def start(self, job: Callable[..., Any], *arguments: Any, **options: Any) -> Process:
        """Start a process with a job."""
        process = Process(job, *arguments, **{**self._options, **options})
        self._all.append(process)
        return process

    def line_up(self, count: int, job: Callable[..., Any], *arguments: Any) -> list[Process]:
        """Start ``count`` processes, and wait until they are ready to go together."""
        held = [self.start(job, *arguments, number=number, is_held=True) for number in range(count)]
        for process in held:
            process.wait_until_ready()
        self._held += held
        return held

    def go(self) -> None:
        """Let those that are lined up begin."""
        for process in self._held:
            process.go()

    def end(self) -> list[Any]:
        """Tell those that were lined up to end, and return their reports."""
        for process in self._held:
            process.tell_to_end()
        return self.reports()

    def reports(self) -> list[Any]:
        """Wait for those that were lined up and not killed; return their reports, in order."""
        return [process.report() for process in self._held if process.exit_code != -signal.SIGKILL]


# In the process.


def _work(
    pipe: Any,
    printed: str,
    number: int,
    prepare: Callable[[Place], None],
    database: dict[str, Any],
    settings: dict[str, Any],
    is_held: bool,
    job: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    output = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    faulthandler.register(signal.SIGUSR1)
    random.seed()
    override_settings(**settings).enable()
    connection.settings_dict.update(database)
    place = Place(pipe, number)
    report: Any
    try:
        prepare(place)
        if is_held:
            connection.ensure_connection()
            place.say(Signal.READY)
            place.hear()
        report = job(place, *arguments)
    except BaseException:
        report = Failure(traceback.format_exc())
    finally:
        connections.close_all()
    with suppress(OSError):  # the test is gone
        place.say(report)
