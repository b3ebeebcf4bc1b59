"""Events with their digests, as they are stored, for those who verify or compute them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.apps import apps
from django.db import connections
from django.db.models import QuerySet
from django.utils.module_loading import import_string

from eventlogs.ids import LogId
from eventlogs.stores.columns import STORED_WITH_LOG
from eventlogs.values import StoredEvent

BY_VENDOR: Final = {
    # By dotted path: psycopg is imported in projects that use PostgreSQL, and nowhere else.
    "postgresql": "eventlogs.stores.postgresql_digests.events_with_digests",
}
PAGE: Final = 2_000
LOGS: Final = 200  # whose events are read by one statement, a page at a time
NO_LOG: Final = UUID(int=0)  # in front of all others
LAST_LOG: Final = UUID(int=2**128 - 1)  # behind all others


class Digested(NamedTuple):
    """An event, and the digest that is stored with it, or None."""

    event: StoredEvent
    digest: bytes | None


def by_log(
    using: str, *, after: UUID | None = None, log_types: Collection[str] = ()
) -> Iterator[list[Digested]]:
    """
    Yield pages of all events, log by log in the order of the logs' UUIDs, each in index order.

    ``after`` leaves out the logs up to this one. Events without a row of their log are there too.
    """
    read: Callable[..., list[Digested]] = _page
    vendor = connections[using].vendor
    if vendor in BY_VENDOR:
        read = import_string(BY_VENDOR[vendor])
    log, index = after or NO_LOG, -1 if after is None else 2**31 - 1
    until = log
    while True:
        # Bounded by a log, not by LIMIT alone: without fresh statistics PostgreSQL would sort the
        # whole table for each page.
        if until <= log:
            until = _some_logs_behind(using, log)
        page = read(using, log, index, until, log_types, PAGE)
        if page:
            yield page
        if len(page) == PAGE:
            last = page[-1].event
            log, index = last.log_id.uuid, last.index
        elif until == LAST_LOG:
            return
        else:
            log, index = until, 2**31 - 1


def _some_logs_behind(using: str, log: UUID) -> UUID:
    rows: QuerySet[Any] = QuerySet(apps.get_model("eventlogs", "EventLog"), using=using)
    later = rows.filter(pk__gt=log).order_by("pk").values_list("pk", flat=True)
    found: UUID | None = later[LOGS - 1 : LOGS].first()
    return found or LAST_LOG


def of_log(using: str, log: UUID, *, start: int = 0, limit: int = PAGE) -> list[Digested]:
    """Return a page of a log's events from an index on."""
    events = _events(using).filter(log_id=log, index__gte=start).order_by("index")
    return _digested(events.values_list(*STORED_WITH_LOG, "digest")[:limit])


def of_logs(using: str, logs: Collection[UUID]) -> dict[UUID, list[Digested]]:
    """Return all events of a few logs, by log, in index order."""
    found: dict[UUID, list[Digested]] = {each: [] for each in logs}
    events = _events(using).filter(log_id__in=logs).order_by("log_id", "index")
    for each in _digested(events.values_list(*STORED_WITH_LOG, "digest")):
        found[each.event.log_id.uuid].append(each)
    return found


def _page(
    using: str, log: UUID, index: int, until: UUID, log_types: Collection[str], limit: int
) -> list[Digested]:
    events = _events(using)
    if log_types:
        events = events.filter(log_type__in=sorted(log_types))
    page = of_log(using, log, start=index + 1, limit=limit) if index < 2**31 - 1 else []
    if len(page) < limit:
        later = events.filter(log_id__gt=log, log_id__lte=until).order_by("log_id", "index")
        rest = limit - len(page)
        page += _digested(later.values_list(*STORED_WITH_LOG, "digest")[:rest])
    return page


def _digested(rows: Iterable[tuple[Any, ...]]) -> list[Digested]:
    found = []
    for log_type, log, *fields, digest in rows:
        event = StoredEvent(LogId.stored(log_type, log), *fields)
        found.append(Digested(event, None if digest is None else bytes(digest)))
    return found


def _events(using: str) -> QuerySet[Any]:
    return QuerySet(apps.get_model("eventlogs", "Event"), using=using)
