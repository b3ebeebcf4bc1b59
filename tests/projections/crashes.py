"""Processes that die in the middle of their work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import ModuleType

import pytest
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


def before(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, *, call: int = 1
) -> None:
    """Let the process die before a function is called for the given time."""
    function, die = getattr(module, name), die_on(call)

    def die_and_call(*args: object, **kwargs: object) -> object:
        die()
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, die_and_call)


def after(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, *, call: int = 1) -> None:
    """Let the process die when a function has returned for the given time."""
    function, die = getattr(module, name), die_on(call)

    def call_and_die(*args: object, **kwargs: object) -> object:
        answer = function(*args, **kwargs)
        die()
        return answer

    monkeypatch.setattr(module, name, call_and_die)
