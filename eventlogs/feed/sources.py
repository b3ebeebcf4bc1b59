"""
Where the feed's events come from: a source for each kind of database.

A source knows how far the feed of its database is settled, and reads stored events up to there,
as a store does; ``Feed`` makes records of them.

On SQLite the argument is short. There is one writer at a time for the whole file, from its
first write to its commit, and AUTOINCREMENT gives a position above all that were ever
committed (https://sqlite.org/autoinc.html). So commits are in the order of positions: a reader
that sees an event sees all events that can ever be below it. PostgreSQL needs a fence, see
``feed/postgresql.py``. On any other database a lower position may be committed later, and
this module could not notice: it refuses to read a feed there, unless positions come from counters
(``EVENTLOGS["LAYOUT"] = "buckets"``), see ``feed/buckets.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import starmap
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from django.apps import apps
from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet
from django.utils.module_loading import import_string

from eventlogs import conf
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.tokens import Place
from eventlogs.stores.buckets import last_position_at
from eventlogs.stores.columns import STORED_WITH_LOG, events_of_rows
from eventlogs.values import StoredEvent

T = TypeVar("T")

BY_VENDOR = {
    # By dotted path: psycopg is imported in projects that use PostgreSQL, and nowhere else.
    "postgresql": "eventlogs.feed.postgresql.PostgreSQLFeedSource",
    "sqlite": "eventlogs.feed.sources.SQLiteFeedSource",
}

WITH_BUCKETS = {
    "postgresql": "eventlogs.feed.postgresql.PostgreSQLBucketFeedSource",
    "sqlite": "eventlogs.feed.sources.SQLiteBucketFeedSource",
}
BUCKETS = "eventlogs.feed.buckets.BucketFeedSource"

uuid_of = itemgetter(STORED_WITH_LOG.index("log_id"))
position_of = itemgetter(STORED_WITH_LOG.index("position"))

MAX_ROWS = 10_000  # rows of all partitions that a reader of one of them holds at once

PLACE: Final = ("position", "log_id", "index", "recorded_at")  # the columns of a Place

MAX_PARTITIONS = 65_536  # what two bytes can tell apart


@dataclass(frozen=True, slots=True)
class FeedHolder:
    """A transaction that has appended and is still open: events above ``position`` wait for it."""

    position: int
    pid: int | None  # of its server process; None for a prepared transaction
    age: timedelta | None  # since it began
    user: str | None
    application: str | None
    state: str | None  # as in pg_stat_activity, or "prepared"
    query: str | None  # its last statement; None where this user may not see it
    prepared_as: str | None  # the name to COMMIT or ROLLBACK PREPARED by
    transaction: str | None = None  # an id that no other one has; None where it is not known


class UnknownTypes(NamedTuple):
    """Event types that a process does not know: all but ``known``, in logs of ``log_types``."""

    known: Sequence[str]
    log_types: Sequence[str]


class FeedQuery(NamedTuple):
    """
    The events to read: those with ``after < position <= upto`` that match the other conditions.

    With ``unknown``, events of unknown types are read in addition to those of ``types``.
    """

    after: int
    upto: int
    limit: int
    types: Sequence[str] | None = None
    log_types: Sequence[str] | None = None
    partition: tuple[int, int] | None = None  # number, of how many
    unknown: UnknownTypes | None = None


class Watermark(NamedTuple):
    """How far the positions of a feed are assigned and settled, at one moment."""

    assigned: int  # the highest position that was assigned to an append
    settled: int  # no further event can appear at or below it
    is_replica: bool = False  # then the primary may have assigned, and settled, higher ones
    is_snapshot: bool = False  # then others may have done so, since the transaction began


class Blocked(NamedTuple):
    """Sessions that wait for an open transaction to end, e.g. to append to the same log."""

    pid: int | None  # of the transaction's server process
    prepared_as: str | None  # its name, where it is prepared
    sessions: int
    since: datetime  # when the first of them began to wait


class FeedSource(ABC):
    """The feed of one database, as stored events."""

    def __init__(self, using: str) -> None:
        self.using = using

    @abstractmethod
    def watermark(self) -> Watermark:
        """
        Return how far the positions of the feed are assigned and settled.

        Use it for reading now, by ``events``. Never store it: after a crash of the server,
        positions above the last event may be assigned again. Raise FeedUnavailable where reading
        could skip events.
        """

    def refusals(self) -> list[str]:
        """Return the reasons for which ``watermark`` raises FeedUnavailable now, for a check."""
        return []

    @abstractmethod
    def events(self, query: FeedQuery) -> tuple[list[StoredEvent], int]:
        """
        Return at most ``query.limit`` events in the order of positions, and how far they go.

        The second value is a position: no other event of the query is at or below it. If it is
        below ``query.upto`` with fewer events than the limit, the read ended early, because many
        positions were skipped.
        """

    @abstractmethod
    def last(self, upto: int) -> Place | None:
        """Return the place of the last event at or below the position ``upto``, if there is one."""

    def at_one_moment(self, read: Callable[[], T]) -> T:
        """
        Call ``read`` so that its statements see one state of a replica, and return its answer.

        It may be called several times, if the database aborts its transaction.
        """
        return read()

    def places(self, positions: Collection[int]) -> dict[int, Place]:
        """Return the places of the events at some positions, by position."""
        found = self.rows("Event").filter(position__in=positions).values_list(*PLACE)
        return {place.position: place for place in starmap(Place, found)}

    def removed(self, logs: Collection[UUID]) -> set[UUID]:
        """
        Return the logs, of some, whose events were removed on purpose: their row is there alone.

        Erasing or archiving a log leaves its row (``stores/erasing.py``). No append does: a row is
        stored together with the log's first event.
        """
        events = self.rows("Event").filter(log_id=models.OuterRef("pk"))
        found = self.rows("EventLog").filter(~models.Exists(events), pk__in=logs)
        return set(found.values_list("pk", flat=True))

    def rows(self, model: str) -> QuerySet[Any]:
        """Return the rows of a model, by its name."""
        # By name: models import managers, which import stores.
        return QuerySet(apps.get_model("eventlogs", model), using=self.using)

    @abstractmethod
    def holding_back(self) -> list[FeedHolder]:
        """Return the transactions that hold the feed back, in the order of their positions."""

    def blocked(self) -> list[Blocked]:
        """Return the sessions that wait for open transactions; none if the database cannot tell."""
        return []


class RowFeedSource(FeedSource):
    """The feed of any database, through the ORM."""

    def last(self, upto: int) -> Place | None:
        events = self.rows("Event").filter(position__lte=upto).order_by("-position")
        row = events.values_list(*PLACE).first()
        return None if row is None else Place(*row)

    def events(self, query: FeedQuery) -> tuple[list[StoredEvent], int]:
        events = self.rows("Event").filter(position__lte=query.upto)
        if query.types is not None:
            wanted = models.Q(type__in=query.types)
            if query.unknown is not None:
                wanted |= ~models.Q(type__in=query.unknown.known) & models.Q(
                    log_type__in=query.unknown.log_types
                )
            events = events.filter(wanted)
        if query.log_types is not None:
            events = events.filter(log_type__in=query.log_types)
        events = events.order_by("position")
        if query.partition is None:
            rows = events.filter(position__gt=query.after).values_list(*STORED_WITH_LOG)
            found = events_of_rows(rows[: query.limit])
        else:
            found = events_of_rows(self._of_partition(events, query, *query.partition))
        return found, found[-1].position if len(found) == query.limit else query.upto

    def _of_partition(
        self, events: QuerySet[Any], query: FeedQuery, number: int, of: int
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of one partition, at most as many as the limit."""
        found, after, size = 0, query.after, min(query.limit * of, MAX_ROWS)
        while True:
            # In pieces: MariaDB's and MySQL's client would take all rows of the table at once.
            rows = list(events.filter(position__gt=after).values_list(*STORED_WITH_LOG)[:size])
            for row in rows:
                if partition_of(uuid_of(row), of) == number:
                    yield row
                    found += 1
                    if found == query.limit:
                        return
            if len(rows) < size:
                return
            after = position_of(rows[-1])


class SQLiteFeedSource(RowFeedSource):
    """The feed of a database with one writer at a time."""

    def watermark(self) -> Watermark:
        with connections[self.using].cursor() as cursor:
            cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = 'eventlogs_event'")
            [last] = cursor.fetchone() or (0,)
        return Watermark(last, last)

    def holding_back(self) -> list[FeedHolder]:
        return []


class SQLiteBucketFeedSource(SQLiteFeedSource):
    """The same, where positions come from counters: each append is above all of them."""

    def watermark(self) -> Watermark:
        highest = self.rows("Bucket").aggregate(highest=models.Max("number"))["highest"]
        if highest is None:
            raise FeedUnavailable("layout", using=self.using)
        return Watermark(last_position_at(highest), last_position_at(highest))

    def refusals(self) -> list[str]:
        return [] if self.rows("Bucket").exists() else ["layout"]


def partition_of(log: UUID, of: int) -> int:
    """
    Return which of ``of`` partitions a log is in; the same on every database.

    A UUIDv7 ends in random bits, so its last two bytes are as good as a hash of it.
    """
    return (log.int & 0xFFFF) % of


def feed_source_for(using: str) -> FeedSource:
    """Return the source of a database alias; raise FeedUnavailable where there can be none."""
    return source_in(using, has_buckets=conf.has_buckets())


def beginning(using: str) -> int:
    """
    Return a position before the first event, for showing how far a reader is.

    Positions from counters are times: from 0 on, a reader would be at 99 % with its first event.
    """
    if not conf.has_buckets():
        return 0
    events: QuerySet[Any] = QuerySet(apps.get_model("eventlogs", "Event"), using=using)
    first: int | None = events.aggregate(first=models.Min("position"))["first"]
    return 0 if first is None else first - 1


def has_feed(using: str) -> bool:
    """Return whether a database of this kind can have a feed, in the layout of the settings."""
    if conf.has_buckets():
        return has_row_locks(connections[using])
    return connections[using].vendor in BY_VENDOR


def has_row_locks(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a database has what a feed by counters needs."""
    return connection.vendor in WITH_BUCKETS or bool(
        connection.features.has_select_for_update_skip_locked
    )


@cache
def source_in(using: str, *, has_buckets: bool) -> FeedSource:
    """Return the source of a database alias in one of the layouts."""
    if not has_feed(using):
        raise FeedUnavailable("database", using=using)
    vendor = connections[using].vendor
    path = WITH_BUCKETS.get(vendor, BUCKETS) if has_buckets else BY_VENDOR[vendor]
    source: FeedSource = import_string(path)(using)
    return source
