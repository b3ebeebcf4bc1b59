"""The steps of a projection's worker at which campaigns stop it: see tests/processes/stops.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eventlogs.feed.reader import Feed
from eventlogs.projections import leases, partitions, rebuild, rows, shadow_tables
from eventlogs.projections.batches import Advancer
from eventlogs.projections.held_logs import HeldLogs
from tests.overriding import override
from tests.processes.stops import passing


def install() -> None:
    """Wrap functions of projections so that they pass steps."""
    _around(rows.Rows, "write", "the rows are written")
    _around(leases, "move", "the checkpoint moves")
    _around(HeldLogs, "hold", "a log is held")
    _around(HeldLogs, "begin_attempt", "an attempt is counted")
    _around(HeldLogs, "note_failure", "a failure is noted")
    _around(HeldLogs, "park", "an event is parked")
    _around(HeldLogs, "continue_with", "a log is let go")
    _around(Feed, "read_stored", "the feed is read")
    _around(Advancer, "rest", "a rest")
    _around(rebuild._ShadowRebuild, "_prepare", "the preparation")
    _around(rebuild._ShadowRebuild, "_switch", "the checkpoints are switched")
    _around(rebuild._ShadowRebuild, "_swap", "the swap")
    _around(shadow_tables, "create", "the shadow is made")
    _around(shadow_tables, "swap", "the tables are swapped")
    fenced = _commits(leases.fenced)
    for module in (partitions, leases):
        override(module, fenced=fenced)


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
