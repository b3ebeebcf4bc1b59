"""
A plugin for pytest: fixtures, which need pytest-django where they use a database.

pytest finds it by itself where eventlogs is installed; ``-p no:eventlogs`` turns it off. It is
imported in every run, also of projects without Django, so it imports nothing but pytest. What a
fixture needs is imported when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from importlib import import_module
from typing import Any

import pytest


@pytest.fixture
def memory_logs(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Any]], Any]:
    """
    Return a function that keeps the logs of an aggregate class in memory until the test ends.

    ``loans = memory_logs(Loan)`` replaces ``Loan.logs`` and returns the LogManager, so that code
    that uses ``Loan.logs`` needs no database. Logs begin empty.
    """

    def replace(aggregate: type[Any]) -> Any:
        store = import_module("eventlogs.testing").MemoryStore()
        cache = import_module("eventlogs.testing").RecordingCache()
        manager = import_module("eventlogs").LogManager(aggregate, store=store, cache=cache)
        monkeypatch.setattr(aggregate, "logs", manager)
        return manager

    return replace


@pytest.fixture
def catch_up_projections(db: None) -> Callable[..., dict[str, int]]:
    """Return ``eventlogs.testing.catch_up``, in a test that may use the database."""
    catch_up: Callable[..., dict[str, int]] = import_module("eventlogs.testing").catch_up
    return catch_up


@pytest.fixture
def freeze_recorded_at() -> Iterator[Callable[[datetime], Any]]:
    """
    Return a function that stops the clock of ``recorded_at`` until the test ends.

    ``clock = freeze_recorded_at(MONDAY)`` returns what ``eventlogs.testing.freeze_recorded_at``
    does; called again, it moves the clock.
    """
    with ExitStack() as stack:
        clocks: list[Any] = []

        def freeze(moment: datetime) -> Any:
            if clocks:
                clocks[-1].move_to(moment)
            else:
                clock = import_module("eventlogs.testing").freeze_recorded_at(moment)
                clocks.append(stack.enter_context(clock))
            return clocks[-1]

        yield freeze
