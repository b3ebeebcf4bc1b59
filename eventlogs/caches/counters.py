"""
Counters of the reduction cache, for people and for metrics.

They count in one process, from its start. For metrics across processes, receive the signal
``cache_used``, which is sent each time that something is counted.
"""

from __future__ import annotations

import os
from collections import Counter
from threading import Lock
from typing import Any, Final

from django.dispatch import Signal

from eventlogs.observers import CacheUse, observers, tell

# Why a reduction did not come from the cache alone. The answer is right in each case.
ABSENT: Final = "absent"
BEHIND: Final = "behind"  # an entry was there, and newer events were folded on top
FOREIGN_FINGERPRINT: Final = "foreign_fingerprint"  # made by other code than this
FOREIGN_LOG: Final = "foreign_log"  # another log's entry, or another database's
FOREIGN_HISTORY: Final = "foreign_history"  # of events that the log does not have (any more)
BAD_SIGNATURE: Final = "bad_signature"  # garbled, forged, or of an unknown SECRET_KEY
UNDECODABLE: Final = "undecodable"
UNREACHABLE: Final = "unreachable"
MISSES: Final = (
    ABSENT,
    BEHIND,
    FOREIGN_FINGERPRINT,
    FOREIGN_LOG,
    FOREIGN_HISTORY,
    BAD_SIGNATURE,
    UNDECODABLE,
    UNREACHABLE,
)

# Failures that made no answer wrong.
UNWRITABLE: Final = "unwritable"  # the cache could not be written
UNSTORABLE: Final = "unstorable"  # the aggregate would not come back equal
DROPPED: Final = "dropped"  # the refresher's queue was full
UNSENT: Final = "unsent"  # a message for a worker could not be sent
FAILED: Final = "failed"  # folding, the policy or the refresher raised
ERRORS: Final = (UNWRITABLE, UNSTORABLE, DROPPED, UNSENT, FAILED)

cache_used: Final = Signal()
"""
Sent after each use of the reduction cache, by the aggregate class.

``outcome`` is "hit", "miss", "refresh" or "error"; ``reason`` says why, by the words that
``eventlogs.caches.statistics()`` has for it, and is "" for a hit and a refresh. Receivers
should be quick: they run where the reduction is wanted. Django logs their exceptions;
the reader does not get them.
"""


class Counters:
    """The counters of a process; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        # A lock that another thread holds while a process forks would stay held in the child.
        os.register_at_fork(after_in_child=self._unlock)
        self._counts: Counter[tuple[str, str]] = Counter()

    def _unlock(self) -> None:
        self._lock = Lock()

    def count(self, outcome: str, reason: str = "", *, aggregate: type) -> None:
        """Count one use, and send ``cache_used`` if it has receivers."""
        with self._lock:
            self._counts[outcome, reason] += 1
        if observers:
            tell(CacheUse(aggregate, outcome, reason))
        if cache_used.has_listeners(aggregate):
            cache_used.send_robust(aggregate, outcome=outcome, reason=reason)

    def statistics(self) -> dict[str, Any]:
        """Return the counters; see ``eventlogs.caches.statistics``."""
        with self._lock:
            counts = self._counts.copy()
        return {
            "hits": counts["hit", ""],
            "misses": {reason: counts["miss", reason] for reason in MISSES},
            "refreshes": counts["refresh", ""],
            "errors": {reason: counts["error", reason] for reason in ERRORS},
        }

    def reset(self) -> None:
        """Start again from 0."""
        with self._lock:
            self._counts.clear()


counters: Final = Counters()
