"""
Scans of all events, for long jobs: export and verification.

A scan reads keyset pages over an index, so its memory is constant and it can be resumed after any
page. No transaction stays open between two pages, except in ``events_of_a_moment``. Events are not
decoded.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connections, transaction

from eventlogs.feed.reader import Feed
from eventlogs.ids import LogId
from eventlogs.managers import EventQuerySet
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.stores.columns import STORED_WITH_LOG, events_of_rows
from eventlogs.stores.restore import ExportedClaim, ExportedEvent
from eventlogs.stores.retries import in_transaction
from eventlogs.values import StoredEvent

PAGE = 2_000  # rows read at once

_index_of = attrgetter("index")
_position_of = attrgetter("position")


@dataclass(frozen=True, slots=True)
class LogRow:
    """A row of EventLog."""

    log_id: LogId
    version: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, log: EventLog) -> LogRow:
        """Return the row of a model."""
        return cls(log.log_id, log.version, log.created_at, log.updated_at)


class Stretch(NamedTuple):
    """Events of a stretch of the feed, and the position that it ends with."""

    events: list[StoredEvent]
    position: int


def events_by_position(
    using: str, *, after: int = 0, until: int, log_types: Collection[str] = ()
) -> Iterator[Stretch]:
    """
    Yield the events with ``after < position <= until``, in the order of positions.

    ``until`` must be a settled position, or events that are committed later may be skipped.
    ``log_types`` selects logs of these types; empty means all. Raise FeedUnavailable as the feed
    does.
    """
    feed = Feed(using=using)
    while after < until:
        found = feed.read_stored(after, limit=PAGE, log_types=log_types or None)
        after = min(found.next_after, until)
        yield Stretch([each for each in found.events if each.position <= until], after)
        if not found.more:
            return


@contextmanager
def a_moment(using: str) -> Iterator[None]:
    """
    Read everything inside as of one moment, in a REPEATABLE READ transaction.

    Inside of a caller's transaction, the isolation level of that one applies.
    """
    connection = connections[using]
    is_ours = not in_transaction(connection)
    with ExitStack() as stack:
        with _deferred(connection) if is_ours else nullcontext():
            stack.enter_context(transaction.atomic(using=using))
        if is_ours and connection.vendor != "sqlite":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield


@contextmanager
def _deferred(connection: Any) -> Iterator[None]:
    """Begin transactions without SQLite's write lock in this block: they only read."""
    connection.ensure_connection()
    mode = getattr(connection, "transaction_mode", None)
    if mode is None:
        yield
        return
    connection.transaction_mode = "DEFERRED"
    try:
        yield
    finally:
        connection.transaction_mode = mode


def events_of_a_moment(using: str, *, log_types: Collection[str] = ()) -> Iterator[Stretch]:
    """
    Yield all events in the order of positions, inside of ``a_moment``.

    It needs no feed: events that are committed later, at any position, are not of that moment.
    """
    after, events = 0, events_of(using).order_by("position")
    if log_types:
        events = events.filter(log_type__in=sorted(log_types))
    while True:
        later = events.filter(position__gt=after)
        found = read(later[:PAGE])
        if found:
            after = found[-1].position
            yield Stretch(found, after)
        if len(found) < PAGE:
            return


def events_of_logs(
    using: str, logs: Collection[LogId], *, after: int = 0, until: int
) -> Iterator[Stretch]:
    """Yield the events of some logs with ``after < position <= until``, in that order."""
    in_order = heapq.merge(*[_of_log(using, log) for log in logs], key=_position_of)
    wanted = (each for each in in_order if after < _position_of(each) <= until)
    while events := list(islice(wanted, PAGE)):
        yield Stretch(events, _position_of(events[-1]))


def _of_log(using: str, log: LogId) -> Iterator[StoredEvent]:
    if not EventLog.objects.using(using).filter(pk=log.uuid, log_type=log.log_type).exists():
        return
    for page in events_of_log(using, log.uuid):
        yield from page


def events_by_log(using: str, *, after: UUID | None = None) -> Iterator[list[StoredEvent]]:
    """
    Yield pages of events, log by log in the order of the logs' UUIDs, each in index order.

    ``after`` leaves out the logs up to this one. Events whose log has no row are there too.
    """
    events = events_of(using)
    log, index = after, None
    while True:
        page: list[StoredEvent] = []
        if log is not None and index is not None:
            page = _rest_of_log(events, log, index)
        if len(page) < PAGE:
            later = events.filter(log_id__gt=log) if log is not None else events
            page += read(later.order_by("log_id", "index")[: PAGE - len(page)])
        if page:
            yield page
            log, index = page[-1].log_id.uuid, page[-1].index
        if len(page) < PAGE:
            return


def _rest_of_log(events: EventQuerySet[Any], log: UUID, index: int) -> list[StoredEvent]:
    """
    Return up to a page of a log's events behind ``index``.

    Bounded from above, as a page of ``events_forwards.sql`` is; where events are missing, the
    bound is dropped.
    """
    rest = events.filter(log_id=log, index__gt=index).order_by("index")
    page = read(rest.filter(index__lte=index + PAGE))
    if len(page) < PAGE:
        page += read(rest.filter(index__gt=index + PAGE)[: PAGE - len(page)])
    return page


def logs_with_events(
    using: str, logs: Iterable[LogRow]
) -> Iterator[tuple[LogRow, Iterable[StoredEvent]]]:
    """
    Yield logs with their events in index order: short logs many at a time, long ones in pages.

    The events of one have to be read before the next is asked for.
    """
    short: list[LogRow] = []
    events = 0
    for log in logs:
        if short and events + log.version > PAGE:
            yield from _all_of(using, short)
            short, events = [], 0
        if log.version > PAGE:
            yield log, _flat(events_of_log(using, log.log_id.uuid))
        else:
            short.append(log)
            events += log.version
    if short:
        yield from _all_of(using, short)


def _all_of(using: str, logs: Sequence[LogRow]) -> Iterator[tuple[LogRow, Iterable[StoredEvent]]]:
    found: dict[UUID, list[StoredEvent]] = {log.log_id.uuid: [] for log in logs}
    for event in read(events_of(using).filter(log_id__in=list(found))):
        found[event.log_id.uuid].append(event)
    for log in logs:
        yield log, sorted(found.pop(log.log_id.uuid), key=_index_of)


def _flat(pages: Iterable[list[StoredEvent]]) -> Iterator[StoredEvent]:
    for page in pages:
        yield from page


def events_of_log(using: str, log: UUID) -> Iterator[list[StoredEvent]]:
    """Yield pages of one log's events, in index order."""
    events, index = events_of(using), -1
    while page := _rest_of_log(events, log, index):
        yield page
        index = page[-1].index


def logs_by_id(
    using: str, *, after: UUID | None = None, log_types: Collection[str] = ()
) -> Iterator[list[LogRow]]:
    """Yield pages of logs in the order of their UUIDs, those behind ``after``."""
    wanted = EventLog.objects.using(using).order_by("pk")
    if log_types:
        wanted = wanted.filter(log_type__in=sorted(log_types))
    while True:
        later = wanted.filter(pk__gt=after) if after is not None else wanted
        rows = later.values_list("log_type", "pk", "version", "created_at", "updated_at")[:PAGE]
        page = [LogRow(LogId.stored(log_type, pk), *rest) for log_type, pk, *rest in rows]
        if page:
            yield page
            after = page[-1].log_id.uuid
        if len(page) < PAGE:
            return


def keys_by_id(using: str) -> Iterator[list[IdempotencyKey]]:
    """Yield pages of idempotency keys in the order of their ids."""
    after = 0
    while page := list(
        IdempotencyKey.objects.using(using).filter(pk__gt=after).order_by("pk")[:PAGE]
    ):
        yield page
        after = page[-1].pk


def exported(using: str, page: Collection[StoredEvent]) -> Iterator[ExportedEvent]:
    """Yield a page's events with the rows of EventLog and IdempotencyKey that go with them."""
    claims = _claims_of(using, page)
    created_at = _created_at_of(using, page)
    digests = _digests_of(using, page)
    for event in page:
        place = event.log_id, event.index
        digest = digests.get(event.position)
        yield ExportedEvent(event, claims.get(place), created_at.get(place), digest)


def _claims_of(using: str, page: Collection[StoredEvent]) -> dict[tuple[LogId, int], ExportedClaim]:
    """
    Return the idempotency keys of a page's events, where they have not been pruned.

    They are found under the log and the index of their append's first event.
    """
    keys = {each.idempotency_key for each in page if each.idempotency_key is not None}
    if not keys:
        return {}
    found = IdempotencyKey.objects.using(using).filter(
        log_type__in={each.log_type for each in page}, key__in=keys
    )
    return {
        (LogId.stored(log_type, log), first_index): ExportedClaim(
            count, bytes(fingerprint), created_at
        )
        for log_type, log, first_index, count, fingerprint, created_at in found.values_list(
            "log_type", "log_id", "first_index", "count", "fingerprint", "created_at"
        )
    }


def _created_at_of(using: str, page: Collection[StoredEvent]) -> dict[tuple[LogId, int], datetime]:
    """Return created_at of the logs that begin on a page, under their id and index 0."""
    begun = {each.log_id.uuid: each.log_id for each in page if each.index == 0}
    found = EventLog.objects.using(using).filter(pk__in=begun).values_list("pk", "created_at")
    return {(begun[log], 0): created_at for log, created_at in found}


def _digests_of(using: str, page: Collection[StoredEvent]) -> dict[int, bytes]:
    """Return the digests of a page's events by position, of those in logs that are chained."""
    logs = EventLog.objects.using(using).filter(pk__in={each.log_id.uuid for each in page})
    chained = set(logs.filter(head__isnull=False).values_list("pk", flat=True))
    positions = [each.position for each in page if each.log_id.uuid in chained]
    if not positions:
        return {}
    found = events_of(using).filter(position__in=positions, digest__isnull=False)
    return {at: bytes(digest) for at, digest in found.values_list("position", "digest")}


def events_of(using: str) -> EventQuerySet[Any]:
    """Return the events of a database."""
    return Event.objects.using(using)


def read(events: EventQuerySet[Any]) -> list[StoredEvent]:
    """Return the events of a queryset as a store returns them."""
    return events_of_rows(events.values_list(*STORED_WITH_LOG))
