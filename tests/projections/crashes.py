"""Processes that die in the middle of something."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from django.db import connections

from tests.processes import exit_of_fork


def killed_in(job: Callable[[], object]) -> bool:
    """Call ``job`` in a process of its own, and return whether a signal ended it."""
    connections.close_all()
    return exit_of_fork(job) < 0


def kill_me(*_: object, **__: object) -> None:
    """Die here and now."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_on(number: int) -> Callable[..., None]:
    """Return a function that lets the process die when it is called so many times."""
    calls: list[int] = []

    def count(*_: object, **__: object) -> None:
        calls.append(1)
        if len(calls) == number:
            kill_me()

    return count
