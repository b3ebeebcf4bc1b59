"""Waiting for a condition, with a limit, and an error that shows the state of the processes."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 240.0  # limit in seconds of each wait; large, for busy machines
PAUSES = (0.001, 0.02)  # seconds between two checks: the first ones, and the later ones

# The processes of the current test: each is a function that returns the state of one.
witnesses: list[Callable[[], str]] = []


def until(condition: Callable[[], object], *, seconds: float = PATIENCE, what: str = "") -> float:
    """
    Wait until ``condition()`` is true, and return for how many seconds.

    Fail after ``seconds``; ``what`` names the condition in the error.
    """
    began, (pause, longest) = time.monotonic(), PAUSES
    while not condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(stories(f"{what or 'a condition'}: not within {seconds} s"))
        time.sleep(pause)
        pause = min(pause * 1.5, longest)
    return time.monotonic() - began


def stories(headline: str) -> str:
    """Return a message that ends with the state of the test's processes."""
    return "\n".join([headline, *(witness() for witness in witnesses)])
