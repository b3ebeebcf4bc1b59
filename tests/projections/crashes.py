"""Processes that die in the middle of their work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from django.db import connections

from tests.processes import exit_of_fork


def killed_in(job: Callable[[], object]) -> bool:
    """Call ``job`` in a new process, and return whether a signal ended it."""
    connections.close_all()
    return exit_of_fork(job) < 0


def kill_this_process(*_: object, **__: object) -> None:
    """Kill this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_on(number: int) -> Callable[..., None]:
    """Return a function that kills the process at the given call."""
    calls: list[int] = []

    def count(*_: object, **__: object) -> None:
        calls.append(1)
        if len(calls) == number:
            kill_this_process()

    return count
