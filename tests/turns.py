"""Managers whose ``execute`` takes turns, however long a busy machine takes to begin a call."""

from __future__ import annotations

from typing import Any

from eventlogs import LogId, LogManager
from eventlogs.stores.turns import Contended


class ContendedForGood(Contended):
    """Logs on which there was a conflict, also longer ago than a second."""

    def __init__(self, log_id: LogId) -> None:
        super().__init__()
        self._log_id = log_id

    def __contains__(self, log_id: LogId) -> bool:
        return log_id == self._log_id or super().__contains__(log_id)


def take_turns_on(manager: LogManager[Any], log_id: LogId) -> None:
    """Have all later calls of ``execute`` on a log take their turn from the beginning."""
    manager._contended = ContendedForGood(log_id)
