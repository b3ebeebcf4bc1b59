"""
Logs that several writers append to at the same time.

After a conflict on a log, calls of ``execute`` on it take turns from the beginning for one second.
That skips the first attempt, which would probably wait for the log and then find that its decision
is out of date. Each process remembers only its own conflicts, and without them the answers are the
same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from eventlogs.exceptions import ConcurrentAppend
from eventlogs.ids import LogId
from eventlogs.stores.base import BaseStore
from eventlogs.values import LogState

SPAN: Final = 1.0  # seconds after a conflict
MOST: Final = 1_000  # logs that are remembered


class Contended:
    """The logs on which there was a conflict within the last second. Threads may share it."""

    def __init__(self) -> None:
        self._until: dict[LogId, float] = {}

    def add(self, log_id: LogId) -> None:
        """Remember a conflict on a log."""
        if len(self._until) >= MOST:
            self._until.clear()
        self._until[log_id] = time.monotonic() + SPAN

    def __contains__(self, log_id: LogId) -> bool:
        if not self._until:  # nearly always
            return False
        until = self._until.get(log_id)
        if until is None or until > time.monotonic():
            return until is not None
        self._until.pop(log_id, None)
        return False


def take_turns(
    attempt: Callable[[], LogState | ConcurrentAppend],
    log_id: LogId,
    *,
    store: BaseStore,
    others: Sequence[LogState],
    retries: int,
    contended: Contended,
    is_inside: Callable[[], bool],
) -> LogState:
    """
    Return the answer of ``attempt``, which is called again, in turn, after each conflict.

    ``others`` are the states of other logs that it expects; ``is_inside`` says whether a caller's
    transaction is open. Raise the conflict with which the retries are used up.
    """

    def in_turn() -> LogState | ConcurrentAppend:
        if others:
            return store.in_turn(log_id, attempt, conflicts=conflicts, others=others)
        return store.in_turn(log_id, attempt, conflicts=conflicts)

    conflicts = 0
    # A caller's transaction is not made to lock a log before that is necessary.
    is_first = not retries or log_id not in contended or is_inside()
    answer = attempt() if is_first else in_turn()
    while isinstance(answer, ConcurrentAppend):
        if conflicts == retries:
            raise answer
        conflicts += 1
        contended.add(log_id)
        answer = in_turn()
    return answer
