"""``eventlogs project``: run projections, until it is stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from argparse import ArgumentTypeError
from types import FrameType
from typing import Any, Final

from django.core.management.base import CommandParser
from django.db import connections

from eventlogs.management import arguments
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.management.projections import choose
from eventlogs.projections.running import Runner
from eventlogs.projections.running import run as run_once
from eventlogs.stores.feeds import feed_source_for

try:
    import resource
except ModuleNotFoundError:  # not a POSIX system
    resource = None  # type: ignore[assignment]

HELP = "Keep read models up to date and let reactors react, until SIGTERM or Ctrl-C."

TOLD_EVERY: Final = 5.0  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a worker that died is started again
LOOKS: Final = 0.2  # seconds between two looks at the workers, or at the parent


def add_arguments(parser: CommandParser) -> None:
    """Add which, how many processes, and for how long."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="By default, all that there are.")
    parser.add_argument(
        "--once", action="store_true", help="Apply what there is, then end. For cron, and tests."
    )
    parser.add_argument(
        "--workers",
        type=arguments.at_least(1),
        default=1,
        metavar="N",
        help="Processes that share the work; one that dies is started again. Worth it with "
        "several projections, or with partitions.",
    )
    parser.add_argument(
        "--max-memory",
        type=megabytes,
        metavar="MIB",
        help="An event for which a worker wants more memory than this fails, as one that raises.",
    )


def megabytes(text: str) -> int:
    """Read an amount of memory; return bytes."""
    if resource is None:
        raise ArgumentTypeError("this system cannot limit the memory of a process.")
    return arguments.at_least(64)(text) * 1024 * 1024


def run(
    out: Output,
    *,
    names: list[str],
    once: bool,
    workers: int,
    max_memory: int | None,
    **options: Any,
) -> None:
    """Run in this process, or in several that this one looks after."""
    chosen = choose(names)
    feed_source_for(options["using"])  # it says so where there can be none, and is not waited for
    if max_memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    if once:
        write_applied(out, run_once(chosen))
        return
    if not out.as_json:
        what = ", ".join(chosen)
        by = f" by {workers} workers" if workers > 1 else ""
        out.line(f"Running {what}{by}. Ctrl-C or SIGTERM ends it.", out.style.MIGRATE_HEADING)
        out.flush()
    if workers == 1:
        work(out, chosen)
    else:
        Crew(out, chosen, workers).run()


def work(out: Output, names: list[str], *, parent: int | None = None) -> None:
    """Run projections until a signal says to stop, or the parent is gone."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # somebody is in a hurry: what is not committed is taken back
        stop.set()

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        if parent is not None:
            threading.Thread(target=watch, args=(parent, stop), daemon=True).start()
        Runner(names, stop=stop, tell=Teller(out)).run()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def watch(parent: int, stop: threading.Event) -> None:
    """Stop when the parent is gone: nobody would look after this process."""
    while not stop.wait(LOOKS):
        if os.getppid() != parent:
            stop.set()


class Teller:
    """Says now and then what was applied."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._applied: dict[str, int] = {}
        self._next = time.monotonic()

    def __call__(self, applied: dict[str, int]) -> None:
        """Count, and say it where the last time is a while ago."""
        for name, count in applied.items():
            self._applied[name] = self._applied.get(name, 0) + count
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TOLD_EVERY
        write_applied(self._out, self._applied)
        self._applied = {}


def write_applied(out: Output, applied: dict[str, int]) -> None:
    """Write how many events were applied."""
    if out.as_json:
        out.record({"applied": applied})
    else:
        for name, count in sorted(applied.items()):
            out.line(f"{time.strftime('%H:%M:%S')}  {name}: {count:,} events applied")
        out.flush()


class Crew:
    """Worker processes, and one that starts those again which die."""

    def __init__(self, out: Output, names: list[str], count: int) -> None:
        if not hasattr(os, "fork"):
            raise mistake("This system has no fork(): run the command several times instead.")
        self._out = out
        self._names = names
        self._count = count
        self._workers: dict[int, float] = {}  # pid, and when it was started
        self._stopping = False

    def run(self) -> None:
        """Keep so many workers running, until a signal says to stop; then wait for them."""
        before = {each: signal.signal(each, self._stop) for each in (signal.SIGTERM, signal.SIGINT)}
        # A connection must not be shared with a child.
        connections.close_all()
        pause, next_start = FIRST_PAUSE, 0.0
        try:
            while self._workers or not self._stopping:
                while (
                    len(self._workers) < self._count
                    and not self._stopping
                    and time.monotonic() >= next_start
                ):
                    self._start()
                pid, status = os.waitpid(-1, os.WNOHANG) if self._workers else (0, 0)
                if not pid:
                    time.sleep(LOOKS)
                    continue
                lived = time.monotonic() - self._workers.pop(pid)
                if not self._stopping:
                    pause = FIRST_PAUSE if lived > 60 else min(pause * 2, LONGEST_PAUSE)
                    next_start = time.monotonic() + pause
                    self._out.note(
                        f"Worker {pid} ended ({ending(status)}). "
                        f"Another one starts in {pause:.0f} s."
                    )
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _start(self) -> None:
        self._out.flush()
        parent, pid = os.getpid(), os.fork()
        if pid:
            self._workers[pid] = time.monotonic()
            return
        code = 1
        try:
            work(self._out, self._names, parent=parent)
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:
            sys.stderr.write(f"A worker failed with {type(error).__name__}.\n")
        finally:
            self._out.flush()
            os._exit(code)  # what the parent has open is the parent's to close

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for pid in self._workers:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue


def ending(status: int) -> str:
    """Return how a process ended."""
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
