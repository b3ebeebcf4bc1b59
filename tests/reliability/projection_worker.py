"""
A worker that runs projections, and meets with an accident if it is told to.

    python -m tests.reliability.projection_worker DATABASE '{"names": ["balances"], …}'

    names       the projections to run
    timeout     seconds, of each projection
    grace       seconds that a lease lasts longer
    partitions  of each projection
    batch_size  likewise
    at, after   the place of the accident, and how often it is passed before
    how         "SIGKILL" or "SIGSTOP"
    twin        the name of a function in projection_twins that breaks the code
    poison      a file: while it is there, poisonous events are
    memory      bytes that the process may have
    journal     a file to note in what the reactor was called for
    rebuild     a projection to rebuild, in the place of running any
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
from django.conf import settings

# What an event of such an amount does to whoever handles it.
RAISES, HANGS, SPINS, EXITS, LEAVES, EATS = range(1_000_001, 1_000_007)
POISONS = {
    "raises": RAISES,
    "hangs": HANGS,
    "spins": SPINS,
    "exits": EXITS,
    "leaves": LEAVES,
    "eats memory": EATS,
}


def suffer(amount: int) -> None:
    """Do what an event of a poisonous amount does."""
    if amount == RAISES:
        raise ValueError("poison")
    if amount == HANGS:
        time.sleep(1_000)
    while amount == SPINS:
        pass
    if amount == EXITS:
        os._exit(7)
    if amount == LEAVES:
        sys.exit(8)
    if amount == EATS:
        eaten = []
        while True:
            eaten.append(bytearray(10_000_000))


class Journal:
    """What a reactor was called for, kept in a file that outlives its worker."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, reaction: tuple[str, int]) -> None:
        """Note the position of an event."""
        with self._path.open("a") as file:
            file.write(f"{reaction[1]}\n")


class Accident:
    """Something that happens to a process when it comes by for the nth time."""

    def __init__(self, how: str, after: int) -> None:
        self._signal = getattr(signal, how)
        self._left = after

    def __call__(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), self._signal)
        self._left -= 1


def wrapped(function: Callable[..., Any], accident: Accident, *, before: bool) -> Any:
    """Return a function with an accident before or behind it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if before:
            accident()
        answer = function(*args, **kwargs)
        if not before:
            accident()
        return answer

    return call


def prepare(at: str, accident: Accident) -> None:
    """Let an accident happen at a place, which is its name."""
    from django.db import connection

    from eventlogs.feed import Feed
    from eventlogs.projections import leases, shadows
    from eventlogs.projections.parking import Parking
    from eventlogs.projections.rows import Rows
    from tests.projections import readmodels

    places: dict[str, tuple[Any, str]] = {
        "read": (Feed, "read_rows"),
        "checkpoint": (leases, "move"),
        "rows": (Rows, "write"),
        "commit": (connection, "commit"),
        "hold": (Parking, "hold"),
        "begin": (Parking, "begin"),
        "release": (Parking, "release"),
        "swap": (shadows, "swap"),
    }
    when, _, what = at.partition(" ")
    if what == "handler":
        handled = readmodels.behaviour["before"]

        def before(record: Any) -> None:
            accident()
            handled(record)

        readmodels.behaviour["before"] = before
        return
    owner, name = places[what]
    setattr(owner, name, wrapped(getattr(owner, name), accident, before=when == "before"))


def main(database: str, told: dict[str, Any]) -> None:
    """Run until SIGTERM."""
    settings.DATABASES["default"]["NAME"] = database
    django.setup()
    from eventlogs.projections import catching_up, declarations, rebuilding
    from eventlogs.projections.running import Runner
    from tests.projections import readmodels
    from tests.reliability import projection_twins

    declarations.projections.update(readmodels.DECLARED)
    for module in (catching_up, rebuilding):
        module.GRACE = told.get("grace", 0.3)
    for name in told["names"]:
        projection: Any = readmodels.DECLARED[name]
        for attribute in ("timeout", "partitions", "batch_size", "max_attempts", "backoff"):
            if attribute in told:
                setattr(projection, attribute, told[attribute])
    if "poison" in told:

        def before(record: Any) -> None:
            amount = getattr(record.event, "amount", 0)
            if amount > 1_000_000 and Path(told["poison"]).exists():
                suffer(amount)

        readmodels.behaviour["before"] = before
    if "journal" in told:
        readmodels.reactions = Journal(Path(told["journal"]))  # type: ignore[assignment]
    if "memory" in told:
        resource.setrlimit(resource.RLIMIT_AS, (told["memory"], told["memory"]))
    if "twin" in told:
        getattr(projection_twins, told["twin"])()
    if "at" in told:
        prepare(told["at"], Accident(told.get("how", "SIGKILL"), told.get("after", 0)))
    if "rebuild" in told:
        readmodels.DECLARED[told["rebuild"]].rebuild()
        return
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Runner(told["names"], stop=stop).run()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
