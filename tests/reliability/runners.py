"""
The processes of the campaigns of projections: runners, rebuilds, writers and readers.

They are killed on the way, and paused at a step: see tests/processes.
"""

from __future__ import annotations

import random
import resource
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from django.db import Error, connection
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
from tests.overriding import override
from tests.processes import Place, Process, Processes, Stop
from tests.processes.stops import order
from tests.reliability import read_models, steps
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import DECLARED, FLAKY, LedgerRow, Quick, ledgers

GRACE = 0.3  # seconds that a lease outlasts the time-out of its projection
LEASE = Quick.timeout + GRACE
LONGEST_LOCK_WAIT = 3  # seconds of a read: a swap keeps its place in the queue for one
# By the vendor of the database.
LIMITS = {
    "postgresql": f"SET lock_timeout = '{LONGEST_LOCK_WAIT}s'",
    "mysql": f"SET lock_wait_timeout = {LONGEST_LOCK_WAIT}",
}
BREATHING_SPACE = 5  # a writer pauses for this many times the duration of its append


class Conditions(NamedTuple):
    """The conditions of a process."""

    stop: Stop | None = None  # the step at which it is stopped
    host: str = ""  # another host name than the tests', so that its processes cannot be checked
    memory: int = 0  # bytes of memory that it may use beside those at its start
    timeout: float = Quick.timeout  # seconds, of each projection
    losses: int = 3  # lost connections during one event that are not counted
    fixed: str = ""  # the file that exists once the handlers are fixed
    broken: str = ""  # the path of a function that breaks something


class Campaign(Processes):
    """All processes of a campaign; a context manager."""

    def __init__(self, **conditions: Any) -> None:
        """``conditions`` are those of all of them."""
        super().__init__()
        self._conditions = Conditions(**conditions)

    def run(self, *names: str, **conditions: Any) -> Process:
        """Start a runner of projections."""
        return self.begin(run, list(names), **conditions)

    def rebuild(self, name: str, **conditions: Any) -> Process:
        return self.begin(rebuild, name, **conditions)

    def begin(self, job: Any, *arguments: Any, **conditions: Any) -> Process:
        """Start a process with a job, under conditions of its own."""
        given = self._conditions._replace(**conditions)
        return self.start(job, *arguments, prepare=partial(prepare, given))


# In the processes.


def prepare(conditions: Conditions, place: Place) -> None:
    """Put a process under its conditions."""
    for module in (starting, rebuilding):
        override(module, GRACE=GRACE)
    override(workers, BEAT=0.1, ALIVE=LEASE, FIRST_WAIT=0.05)
    Quick.timeout = conditions.timeout
    override(held_logs, MAX_LOSSES=conditions.losses)
    steps.install()
    if conditions.host:
        override(leases, HOST=conditions.host)
    if conditions.fixed:
        read_models.fixed.append(Path(conditions.fixed))
    if conditions.memory:
        have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = have + conditions.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if conditions.broken:
        import_string(conditions.broken)()
    if conditions.stop:
        order(conditions.stop, place.say)


def run(place: Place, names: list[str]) -> str:
    read_models.declare(names)
    stop: Any = place  # only is_set() and wait() are used
    Worker(names, stop=stop).run()
    return "done"


def rebuild(place: Place, name: str) -> int:
    read_models.declare([name])
    projection: Any = DECLARED[name]
    return projection.rebuild()


def write(
    place: Place,
    name: str,
    log_ids: list[LogId],
    pause: float,
    flaky: float,
) -> int:
    """
    Append to ledgers until told to stop; some entries are flaky. Return how many there are.

    The pause is ``pause`` seconds, and longer where the machine is busy, so that writers do not
    append faster than a rebuild can follow.
    """
    choices, manager = random.Random(name), ledgers()
    count = 0
    while not place.is_set():
        texts = [
            f"{FLAKY if choices.random() < flaky else ''} {name}-{count + n}"
            for n in range(choices.choice((1, 1, 1, 3)))
        ]
        entries = [Entered(text.strip(), choices.randrange(100)) for text in texts]
        began = time.monotonic()
        manager.append(choices.choice(log_ids), *entries, expected_version=ANY)
        count += len(entries)
        place.wait(max(pause, BREATHING_SPACE * (time.monotonic() - began)))
    return count


class Seen(NamedTuple):
    """The report of a reader."""

    reads: int
    wrong: list[str]
    slowest: float  # seconds


def watch(place: Place, tells: bool = False) -> Seen:
    """
    Read all rows, all the time: they are never fewer, and never in an earlier state.

    A read that waits for locks for longer than LONGEST_LOCK_WAIT is an error of the server, and so
    reported as wrong. A reader that ``tells`` sends "reading" after its first read of rows.
    """
    reads, slowest = 0, 0.0
    wrong: list[str] = []
    last: dict[Any, int] = {}
    while not place.is_set():
        began = time.monotonic()
        try:
            if connection.connection is None or not reads:
                with connection.cursor() as cursor:
                    cursor.execute(LIMITS[connection.vendor])
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
        if tells and reads == 1:
            place.say("reading")
    return Seen(reads, wrong[:10], slowest)
