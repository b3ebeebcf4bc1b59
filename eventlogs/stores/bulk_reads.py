"""
Reads of many logs at once: one statement for hundreds of logs, not one for each.

All events that are read are in memory together, so a caller limits the part of each log. The size
of events is not known before they are read; ``whole_logs`` reads as many logs as fit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.apps import apps
from django.db import connections
from django.db.models import Q, QuerySet
from django.utils.module_loading import import_string

from eventlogs.conf import MAX_VERSION
from eventlogs.ids import LogId
from eventlogs.stores.columns import STORED_WITH_LOG, events_of_rows
from eventlogs.values import StoredEvent

BY_VENDOR = {
    # By dotted path: psycopg is imported in projects that use PostgreSQL, and nowhere else.
    "postgresql": "eventlogs.stores.postgresql.events_of_logs",
}
WHOLE: Final = 500  # logs of one statement: SQLite takes a limited number of parameters
PARTS: Final = 100  # likewise, where each has bounds of its own
EVENTS: Final = 500  # that are read before their size is looked at
MEMORY: Final = 64 * 2**20  # characters of events, after which no further ones are read

_in_order = attrgetter("index")


class Part(NamedTuple):
    """Events ``start <= index < end`` of a log; by default all of them."""

    log_id: LogId
    start: int = 0
    end: int = MAX_VERSION

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole log."""
        return self.start == 0 and self.end == MAX_VERSION


def events_of_logs(using: str, parts: Collection[Part]) -> dict[LogId, list[StoredEvent]]:
    """
    Return the events of parts of logs, each of another log, in the order of their indexes.

    It joins a caller's transaction. Logs without events have an empty list.
    """
    by_uuid: dict[UUID, list[StoredEvent]] = {each.log_id.uuid: [] for each in parts}
    vendor = connections[using].vendor
    read: Callable[[str, Collection[Part]], Iterable[StoredEvent]] = _events
    if vendor in BY_VENDOR:
        read = import_string(BY_VENDOR[vendor])
    for event in read(using, parts):
        by_uuid[event.log_id.uuid].append(event)
    for events in by_uuid.values():
        events.sort(key=_in_order)
    return {each.log_id: by_uuid[each.log_id.uuid] for each in parts}


def whole_logs(using: str, versions: Mapping[LogId, int]) -> dict[LogId, list[StoredEvent]]:
    """
    Return the events of logs, of the first ones of them that fit into memory together.

    ``versions`` says about how many events each log has. The answer is empty if the first log is
    too large by itself. It joins a caller's transaction.
    """
    found: dict[LogId, list[StoredEvent]] = {}
    size = 0
    for parts in _pieces(versions):
        for log_id, events in events_of_logs(using, parts).items():
            found.setdefault(log_id, []).extend(events)
            size += sum(len(each.data) + len(each.metadata) for each in events)
        if size > MEMORY:
            if parts[-1].end != MAX_VERSION:  # a log that was not read to its end
                del found[parts[-1].log_id]
            break
    return found


def _pieces(versions: Mapping[LogId, int]) -> Iterator[list[Part]]:
    """Yield parts of logs in their order, about ``EVENTS`` events at a time."""
    piece: list[Part] = []
    left = EVENTS
    for log_id, version in versions.items():
        for start in range(0, max(version, 1), EVENTS):
            is_last = start + EVENTS >= version
            count = min(version - start, EVENTS)
            if piece and count > left:
                yield piece
                piece, left = [], EVENTS
            piece.append(Part(log_id, start, MAX_VERSION if is_last else start + EVENTS))
            left -= count
    if piece:
        yield piece


def _events(using: str, parts: Collection[Part]) -> Iterator[StoredEvent]:
    # By name: models import managers, which import stores.
    events: QuerySet[Any] = QuerySet(apps.get_model("eventlogs", "Event"), using=using)
    for some in _chunks([each for each in parts if each.is_whole], WHOLE):
        logs = [each.log_id.uuid for each in some]
        yield from events_of_rows(events.filter(log_id__in=logs).values_list(*STORED_WITH_LOG))
    for some in _chunks([each for each in parts if not each.is_whole], PARTS):
        wanted = Q()
        for each in some:
            wanted |= Q(log_id=each.log_id.uuid, index__gte=each.start, index__lt=each.end)
        yield from events_of_rows(events.filter(wanted).values_list(*STORED_WITH_LOG))


def _chunks(parts: Sequence[Part], size: int) -> Iterator[list[Part]]:
    rest = iter(parts)
    while some := list(islice(rest, size)):
        yield some
