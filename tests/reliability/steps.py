"""
The steps of a worker, where campaigns stop it: killed or paused by its own hand.

A process orders one stop: at which step, at which of the times that it comes there, and by which
signal. It says so to the test before.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from eventlogs.feed.reader import Feed
from eventlogs.projections import leases, partitions, rebuild, rows, shadow_tables
from eventlogs.projections.batches import Advancer
from eventlogs.projections.held_logs import HeldLogs


class Stop(NamedTuple):
    """Where a process is to be stopped."""

    step: str
    time: int  # 1 is the first
    signal: int


_ordered: list[tuple[Stop, Callable[[str], None]]] = []
_passed: Counter[str] = Counter()


def order(stop: Stop, tell: Callable[[str], None]) -> None:
    """Stop this process there; ``tell`` is called before."""
    _ordered.append((stop, tell))


def passing(step: str) -> None:
    """A step is reached."""
    _passed[step] += 1
    for stop, tell in _ordered:
        if stop.step == step and stop.time == _passed[step]:
            tell(step)
            os.kill(os.getpid(), stop.signal)


def install() -> None:
    """Let the machinery of projections pass steps."""
    _around(rows.Rows, "write", "the rows are written")
    _around(leases, "move", "the checkpoint moves")
    _around(HeldLogs, "hold", "a log is held")
    _around(HeldLogs, "begin_attempt", "an attempt is counted")
    _around(HeldLogs, "note_failure", "a failure is noted")
    _around(HeldLogs, "park", "an event is parked")
    _around(HeldLogs, "continue_with", "a log is let go")
    _around(Feed, "read_rows", "the feed is read")
    _around(Advancer, "rest", "a rest")
    _around(rebuild._ShadowRebuild, "_prepare", "the preparation")
    _around(rebuild._ShadowRebuild, "_switch", "the checkpoints are switched")
    _around(rebuild._ShadowRebuild, "_swap", "the swap")
    _around(shadow_tables, "create", "the shadow is made")
    _around(shadow_tables, "swap", "the tables are swapped")
    partitions.fenced = leases.fenced = _commits(leases.fenced)


def _around(owner: Any, name: str, step: str) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        passing(f"before {step}")
        answer = original(*args, **options)
        passing(f"after {step}")
        return answer

    setattr(owner, name, wrapped)


def _commits(original: Any) -> Any:
    @contextmanager
    def fenced(*args: Any, **options: Any) -> Iterator[Any]:
        with original(*args, **options) as lease:
            yield lease
            passing("before the commit")
        passing("after the commit")

    return fenced
