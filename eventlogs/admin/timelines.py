"""
The timeline of a log: a page of its events, their changes, and the state as of one of them.

Reading a page of events costs the same in a long log as in a short one. A state has to be folded,
from a cached state where there is one. If that takes many events, the page is shown without the
state, and the user decides whether to fold them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from eventlogs.aggregates import Aggregate
from eventlogs.ids import LogId
from eventlogs.reductions.snapshots import INTERVAL, Snapshots
from eventlogs.reductions.timeline import Step, Unavailable, beginning, plain_value, steps
from eventlogs.refreshers import submit
from eventlogs.stores import store_for
from eventlogs.stores.base import BaseStore
from eventlogs.values import Reduction, StoredEvent

SIZE: Final = 25  # events of a page
AT_ONCE: Final = 2_000  # events that are folded without asking


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a state: the events folded on top of a cached version (0: on top of nothing)."""

    events: int
    seconds: float
    cached_version: int


@dataclass(slots=True)
class Timeline:
    """The page of a log."""

    log_id: LogId
    version: int
    selected: int  # the index of the selected event
    start: int  # the index of the first event of the page
    steps: list[Step] = field(default_factory=list)  # in the order of indexes
    rows: Sequence[StoredEvent] = ()  # as they are stored, one for each step
    state: Any = None  # a plain value, Unavailable, or None if it was not computed
    cost: Cost | None = None
    missing: int = 0  # events that would have to be folded, 0 if they are

    @property
    def last(self) -> int:
        """The index of the last event of the page."""
        return self.start + len(self.steps) - 1


def timeline(
    aggregate: type[Aggregate] | None,
    log_id: LogId,
    version: int,
    selected: int,
    *,
    using: str,
    fold_all: bool = False,
    store: BaseStore | None = None,
) -> Timeline:
    """
    Return the page with the event of index ``selected`` of a log that has ``version`` events.

    With ``fold_all``, any number of events is folded, not only AT_ONCE. An error of the project's
    own classes makes the state Unavailable, and is not raised. ``store`` is that of an archived
    log: nothing is cached of one.
    """
    is_caching, store = store is None, store or store_for(using)
    start = selected // SIZE * SIZE
    rows = store.events(log_id, start=start, limit=min(SIZE, version - start))
    found = Timeline(log_id, version, selected, start, rows=rows)
    began = time.perf_counter()
    base: Reduction[Any] | Unavailable | None = None
    snapshots: Snapshots[Any] | None = None
    if aggregate is not None:
        snapshots = Snapshots(aggregate, using)
        looks = is_caching and start >= INTERVAL
        base = snapshots.nearest(log_id, store, upto=start) if looks else None
        base = base or beginning(aggregate, log_id)
    here = base.version if isinstance(base, Reduction) else 0
    if isinstance(base, Reduction) and start - here > AT_ONCE and not fold_all:
        found.missing = start - here
        base = None
    if isinstance(base, Reduction) and snapshots is not None and start > here:
        base, writes = snapshots.fold(base, store, version=start)
        submit(*(writes if is_caching else ()))
    found.steps = list(steps(base or Unavailable("NotComputed"), rows, properties=True))
    if base is not None:
        # Find it by its index: if rows were removed despite the triggers, indexes are missing.
        shown = [step.state for step in found.steps if step.record.index == selected]
        found.state = shown[0] if shown else None
        found.cost = Cost(start - here + len(rows), time.perf_counter() - began, here)
    elif snapshots is not None and is_caching:
        _from_cache(found, snapshots, store, began)
    return found


def _from_cache(found: Timeline, snapshots: Snapshots[Any], store: BaseStore, began: float) -> None:
    """Set the state of the selected event from a cached entry near it, without the changes."""
    wanted = found.selected + 1
    near = snapshots.nearest(found.log_id, store, upto=wanted)
    if near is None or wanted - near.version > AT_ONCE:
        return
    here = near.version
    state, writes = snapshots.fold(near, store, version=wanted)
    submit(*writes)
    if isinstance(state, Reduction):
        found.state = plain_value(state.aggregate, properties=True)
    else:
        found.state = state
    found.cost = Cost(wanted - here, time.perf_counter() - began, here)
