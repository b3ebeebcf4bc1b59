"""
Steps of a process, at which it stops itself by a signal.

Code under test is wrapped so that it calls ``passing(step)``. A process orders stops: at which
step, at which of the times that it comes there, and by which signal.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple


class Stop(NamedTuple):
    """A step at which a process stops."""

    step: str
    time: int  # 1 is the first
    signal: int


_ordered: list[tuple[Stop, Callable[[str], None]]] = []
_passed: Counter[str] = Counter()


def order(stop: Stop, tell: Callable[[str], None]) -> None:
    """Stop this process at the ordered step; ``tell`` is called before."""
    _ordered.append((stop, tell))


def passing(step: str) -> None:
    """Note that a step is reached, and stop if that was ordered."""
    _passed[step] += 1
    for stop, tell in _ordered:
        if stop.step == step and stop.time == _passed[step]:
            tell(step)
            os.kill(os.getpid(), stop.signal)
