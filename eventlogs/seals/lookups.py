"""
Queries of the log of seals, for those who show seals.

Nothing is decoded: a process that only shows seals need not know the class of their events.
"""

from __future__ import annotations

from typing import Any, Final

from eventlogs.ids import LogId
from eventlogs.models import Event
from eventlogs.operations.jsonl import SEAL_LOG_TYPE

LOG_TYPE: Final = SEAL_LOG_TYPE
SEALS: Final = LogId.from_key(LOG_TYPE, "seals")  # the log, in each database


def covering(using: str, position: int) -> dict[str, Any] | None:
    """Return the members of the first seal that stands over a position, or None."""
    seals = _seals(using).filter(data__position__gte=position).order_by("index")
    found: dict[str, Any] | None = seals.first()
    return found


def newest(using: str) -> dict[str, Any] | None:
    """Return the members of the newest seal, or None."""
    found: dict[str, Any] | None = _seals(using).order_by("-index").first()
    return found


def _seals(using: str) -> Any:
    events = Event.objects.using(using).filter(log_id=SEALS.uuid, log_type=LOG_TYPE)
    return events.values_list("data", flat=True)
