"""
Events that came to a database by a move of their log: reactors pass over them.

A log leaves its database only when all reactors there have come to its last event. So its first
``LogMove.version`` events have been reacted to.
"""

from __future__ import annotations

from django.db.models import Max, QuerySet

from eventlogs.models import LogMove
from eventlogs.projections.rows import chunks
from eventlogs.values import StoredEvent


def without_arrived(events: list[StoredEvent], using: str) -> list[StoredEvent]:
    """Leave out the events that logs have brought with them. One query."""
    uuids = {each.log_id.uuid for each in events}
    moves: QuerySet[LogMove] = LogMove.objects.using(using).filter(state=LogMove.ARRIVED)
    arrived: dict[object, int] = {}
    for some in chunks(uuids):
        found = moves.filter(uuid__in=some).values("uuid").annotate(last=Max("version"))
        arrived.update(found.values_list("uuid", "last"))
    if not arrived:
        return events
    return [each for each in events if each.index >= arrived.get(each.log_id.uuid, 0)]
