"""
Logs that several writers append to at the same time.

After a conflict on a log, calls of ``execute`` on it take turns from the beginning for one second.
That skips the first attempt, which would probably wait for the log and then find that its decision
is out of date. Each process remembers only its own conflicts, and without them the answers are the
same.
"""

from __future__ import annotations

import time
from typing import Final

from eventlogs.ids import LogId

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
