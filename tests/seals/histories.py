"""Keys for the tests, and what an attacker does who owns the tables and knows the code."""

from __future__ import annotations

from base64 import b64encode
from typing import Any
from uuid import UUID

from django.db.models import F, Min, QuerySet

from eventlogs import LogId
from eventlogs.events.chain import digest
from eventlogs.feed import scans
from eventlogs.models import Event, EventLog

SECRET = b64encode(bytes(range(32))).decode()
PUBLIC = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="  # of RFC 8032's algorithm, for that seed
OTHER_SECRET = b64encode(bytes(32)).decode()


def events() -> QuerySet[Any]:
    """Return the events, to be changed in spite of the manager."""
    return QuerySet(Event, using="default")


def logs() -> QuerySet[Any]:
    """Return the logs, to be changed in spite of the manager."""
    return QuerySet(EventLog, using="default")


def rewrite() -> None:
    """Compute all digests and heads anew, as they would be if nothing had happened."""
    last: LogId | None = None
    head: bytes | None = None
    for page in scans.events_by_log("default"):
        for event in page:
            head = digest(head if event.log_id == last else None, event)
            last = event.log_id
            events().filter(position=event.position).update(digest=head)
            logs().filter(pk=last.uuid).update(head=head, version=event.index + 1)


def swap(log: UUID, one: int, other: int) -> None:
    """Swap two events of a log: each takes the other's place."""
    fields = ("type", "data", "metadata", "schema_version")
    first, second = (events().values(*fields).get(log_id=log, index=at) for at in (one, other))
    events().filter(log_id=log, index=one).update(**second)
    events().filter(log_id=log, index=other).update(**first)


def insert_between(log: UUID, index: int) -> None:
    """Put a copy of an event behind it; all events before it get a lower position."""
    for event in events().filter(log_id=log, index__gt=index).order_by("-index"):
        events().filter(pk=event.pk).update(index=F("index") + 1)
    copied = events().filter(log_id=log, index=index).values().get()
    for event in events().filter(position__lte=copied["position"]).order_by("position"):
        events().filter(pk=event.pk).update(position=F("position") - 1)
    events().bulk_create([Event(**{**copied, "index": index + 1})])


def free_position() -> int:
    """Return a position before those of all events, that the tables of every layout accept."""
    lowest: int = events().aggregate(lowest=Min("position"))["lowest"]
    return lowest - 1


def remove(log: UUID, *, start: int = 0) -> None:
    """Remove a log's events from an index on, and the log if nothing is left."""
    events().filter(log_id=log, index__gte=start).delete()
    if not start:
        logs().filter(pk=log).delete()
