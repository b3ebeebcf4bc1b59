"""``eventlogs project``: run projections until a signal stops the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from django.core.management.base import CommandParser
from django.db import connections
from django.utils import timezone

from eventlogs.feed.sources import feed_source_for
from eventlogs.management import arguments
from eventlogs.management.choosing import choose, operator
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.projections.all_databases import WorkerOfDatabases, names_by_database
from eventlogs.projections.base import BaseProjection
from eventlogs.projections.kinds import Reactor
from eventlogs.projections.workers import run as run_once
from eventlogs.utils.times import time_text
from eventlogs.utils.words import counted

try:
    import resource
except ModuleNotFoundError:  # not a POSIX system
    resource = None  # type: ignore[assignment]

HELP = "Keep read models up to date and let reactors react, until SIGTERM or Ctrl-C."

TOLD_EVERY: Final = 5.0  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a dead worker is replaced
LOOKS: Final = 0.2  # seconds between two looks at the workers, or at the parent
GRACE: Final = 20.0  # seconds for a worker to end; then it is interrupted, then killed
STOPS: Final = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: CommandParser) -> None:
    """Add which projections, how many processes, and for how long."""
    arguments.add_projections(parser, "Run these projections. By default, all.")
    arguments.add_flags(
        parser,
        once="Apply all settled events, then end. For cron, and tests.",
        from_now="Let the reactors NAME pass over all events up to now, permanently, then end: "
        "e.g. after an import. Needs --yes.",
        yes="Confirm --from-now.",
    )
    text = (
        "Share the work between N processes; one that dies is replaced. Useful for several "
        "projections, or for partitions."
    )
    arguments.add_number(parser, "--workers", default=1, text=text)
    parser.add_argument(
        "--max-memory",
        type=megabytes,
        metavar="MIB",
        help="Limit a worker's memory. An event that needs more fails, as one that raises.",
    )


def megabytes(text: str) -> int:
    """Read an amount of memory; return bytes."""
    if resource is None:
        raise ArgumentTypeError("this system cannot limit the memory of a process.")
    return arguments.at_least(64)(text) * 1024 * 1024


def run(
    out: Output,
    *,
    using: str,
    database: str | None,
    names: list[str],
    once: bool,
    from_now: bool,
    yes: bool,
    workers: int,
    max_memory: int | None,
    **options: Any,
) -> None:
    """Run in this process, or in several that this one supervises; on all their databases."""
    if from_now:
        if not names:
            raise mistake("Name the reactors that are to pass over all events up to now.")
        begin_from_now(out, choose(names, using, Reactor), using, yes=yes)
        return
    chosen = [each.name for each in choose(names, database, BaseProjection)]
    databases = list(names_by_database(chosen, using=database))
    for each in databases:
        feed_source_for(each)  # raises FeedUnavailable in a database that cannot have a feed
    if max_memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    if once:
        write_applied(out, run_once(chosen, using=database))
        return
    if not out.as_json:
        what = ", ".join(chosen)
        by = f" by {workers} workers" if workers > 1 else ""
        where = f" on {', '.join(databases)}" if len(databases) > 1 else ""
        out.line(
            f"Running {what}{where}{by}. Stop with Ctrl-C or SIGTERM.", out.style.MIGRATE_HEADING
        )
        out.flush()
    if workers == 1:
        work(out, chosen, database)
    else:
        Crew(out, chosen, database, workers).run()


def begin_from_now(out: Output, chosen: list[type[Reactor]], using: str, *, yes: bool) -> None:
    """Let reactors pass over all events up to now; without ``yes``, only count them."""
    for each in chosen:
        found = each.pass_over(dry_run=not yes, by=operator(), using=using)
        if out.as_json:
            out.record({"projection": each.name, "done": yes, **found._asdict()})
            continue
        done = "passed over" if yes else "would be passed over"
        events, logs = counted(found.events, "event"), counted(found.waiting, "log is", "logs are")
        out.line(f"{each.name}: {events} {done}, up to position {found.position:,}.")
        if found.waiting:
            out.line(
                f"{each.name}: {logs} held by an event that waits or is parked; their events are "
                f"{done}, too.",
                out.style.WARNING,
            )
    if not yes:
        raise mistake("Reactors never react to events that they pass over. Add --yes to confirm.")


def work(
    out: Output,
    names: list[str],
    using: str | None,
    *,
    parent: int | None = None,
    mask: Iterable[int] | None = None,
) -> None:
    """
    Run projections until a signal arrives, or the parent process has ended.

    ``mask`` is the signal mask to set once the handlers are installed.
    """
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # the second signal: roll back and end at once
        stop.set()

    before = {each: signal.signal(each, end) for each in STOPS}
    try:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if parent is not None:
            threading.Thread(target=watch, args=(parent, stop), daemon=True).start()
        WorkerOfDatabases(names, stop=stop, tell=Teller(out), using=using).run()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def watch(parent: int, stop: threading.Event) -> None:
    """End this process when its parent has ended: nothing would supervise it."""
    while os.getppid() == parent:
        time.sleep(LOOKS)
    stop.set()
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGTERM)  # the second signal interrupts the batch
    time.sleep(GRACE)
    os._exit(1)


def leave_databases() -> None:
    """
    Close all connections and pools of this process, so that none of them passes a fork.

    Two processes on one connection would read each other's answers. A forked pool would hand out
    connections of the parent, and wait for threads that the fork has not copied.
    """
    for each in connections.all():
        # Closing a connection of SQLAlchemy's pools would give it back to its pool.
        invalidate = getattr(each.connection, "invalidate", None)
        if invalidate is not None:
            invalidate()
        each.close()
        close_pool = getattr(each, "close_pool", None)
        if close_pool is not None:
            close_pool()


class Teller:
    """Reports now and then how many events were applied."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._applied: dict[str, int] = {}
        self._next = time.monotonic()

    def __call__(self, applied: dict[str, int]) -> None:
        """Count, and write a line if the last one is TOLD_EVERY seconds old."""
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
            out.line(f"{time_text(timezone.now())}  {name}: {counted(count, 'event')} applied")
        out.flush()


class Crew:
    """Supervises worker processes, and replaces those that die."""

    def __init__(self, out: Output, names: list[str], using: str | None, count: int) -> None:
        if not hasattr(os, "fork"):
            raise mistake("This system has no fork(): start the command several times instead.")
        self._out = out
        self._names = names
        self._using = using
        self._count = count
        self._workers: dict[int, float] = {}  # pid, and when it was started
        self._stopping = False
        self._hurry_at = 0.0  # by the monotonic clock
        self._is_urgent = False

    def run(self) -> None:
        """Keep the workers running until a signal arrives; then wait for them to end."""
        before = {each: signal.signal(each, self._stop) for each in STOPS}
        leave_databases()
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
                    self._hurry()
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
        # Block signals. Until the worker has installed its own handlers, it runs this process's:
        # a signal would be lost, and the worker would never stop. Until this process has recorded
        # the worker's pid, it would not pass a signal on to it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        parent, pid = os.getpid(), -1
        try:
            if not self._stopping:  # a signal may have arrived just before
                pid = os.fork()
                if pid:
                    self._workers[pid] = time.monotonic()
        finally:
            if pid:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if pid:
            return
        code = 1
        try:
            self._workers.clear()  # they are children of the parent
            work(self._out, self._names, self._using, parent=parent, mask=mask)
            leave_databases()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:
            sys.stderr.write(f"A worker failed with {type(error).__name__}.\n")
        finally:
            self._out.flush()
            os._exit(code)  # no clean-up: open files belong to the parent

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._hurry_at = time.monotonic() + GRACE
        self._tell_all(signal.SIGTERM)

    def _hurry(self) -> None:
        """Signal workers that do not end: the next SIGTERM interrupts them, then SIGKILL."""
        if not self._stopping or time.monotonic() < self._hurry_at:
            return
        self._hurry_at = time.monotonic() + GRACE
        self._tell_all(signal.SIGKILL if self._is_urgent else signal.SIGTERM)
        self._is_urgent = True

    def _tell_all(self, number: signal.Signals) -> None:
        for pid in list(self._workers):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def ending(status: int) -> str:
    """Return how a process ended."""
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
