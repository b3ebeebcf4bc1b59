"""Events of many logs in one statement, on PostgreSQL; see ``many.py``."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from eventlogs.events.codec import FeedRow
from eventlogs.stores.many import Part
from eventlogs.stores.retries import run_again
from eventlogs.stores.statements import Statement

EVENTS_OF_LOGS = Statement("events_of_logs")


def rows(using: str, parts: Collection[Part]) -> list[FeedRow]:
    """Return the events of parts of logs, one log after the other."""
    parameters = {
        "types": [each.log_id.log_type for each in parts],
        "logs": [each.log_id.uuid for each in parts],
        "starts": [each.start for each in parts],
        "ends": [each.end for each in parts],
    }
    if not parts:
        return []
    found = run_again(using, lambda connection: EVENTS_OF_LOGS.rows(connection, parameters))
    return cast("list[FeedRow]", found)
