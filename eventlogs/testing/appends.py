"""Assertions on what a block of code appends to the logs in the database."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from django.db import router
from django.db.models import QuerySet

from eventlogs.aggregates import Aggregate
from eventlogs.conf import max_event_bytes
from eventlogs.deciders import kind_of, why_no_event
from eventlogs.events.codec import EncodedEvent, EventReader, codec_for
from eventlogs.exceptions import InvalidEvent
from eventlogs.ids import LogId
from eventlogs.models import Event
from eventlogs.stores.columns import STORED_WITH_LOG, events_of_rows
from eventlogs.testing import texts
from eventlogs.utils.twins import AsyncBlock
from eventlogs.values import EventRecord, StoredEvent


def assert_appends(
    aggregate: type[Aggregate],
    /,
    *events: Any,
    log_id: LogId | str | None = None,
    using: str | None = None,
) -> Appended:
    """
    Assert that a ``with`` block appends exactly these events, in this order.

    ::

        with assert_appends(Loan, Repaid(30)) as appended:
            client.post(f"/loans/{loan}/repay/", {"amount": 30})
        assert appended.records[0].metadata["user"] == "ann"

    Without events, it asserts that the block appends something; ``assert_no_appends`` asserts that
    it does not. All logs of the aggregate's log type are looked at, or with ``log_id`` that log
    alone; they may be logs that the block creates. Events that are rolled back are not appended.
    ``using`` is a database alias, by default the one that logs are written to. It is an async
    context manager, too. Two events are equal here if a retry with one would be a replay of the
    other.

    Raise AssertionError, with the difference, at the end of the block. An error that the block
    raises is raised instead. Raise TypeError for anything but an aggregate class, InvalidEvent for
    an object that is not an event of it or cannot be stored, and InvalidLogId for text that is no
    log id.
    """
    return Appended(aggregate, events, expects_any=not events, log_id=log_id, using=using)


def assert_no_appends(
    aggregate: type[Aggregate], /, *, log_id: LogId | str | None = None, using: str | None = None
) -> Appended:
    """Assert that a ``with`` block appends nothing to the aggregate's logs: see assert_appends."""
    return Appended(aggregate, (), expects_any=False, log_id=log_id, using=using)


class Appended(AsyncBlock):
    """
    What a block has appended; ``assert_appends`` returns it, and its fields are set at the end.

    ``records`` are EventRecords in the order of their positions.
    """

    def __init__(
        self,
        aggregate: type[Aggregate],
        events: Sequence[Any],
        *,
        expects_any: bool,
        log_id: LogId | str | None,
        using: str | None,
    ) -> None:
        check_aggregate_class(aggregate)
        self.records: list[EventRecord] = []
        self._aggregate = aggregate
        self._expected = list(events)
        self._encoded = encoded(aggregate, events)
        self._expects_any = expects_any
        self._log_id = LogId.parse(log_id) if isinstance(log_id, str) else log_id
        self._using = using
        self._after = 0

    @property
    def events(self) -> list[Any]:
        """The events of the records."""
        return [record.event for record in self.records]

    def __enter__(self) -> Self:
        self._after = last_position(self._using)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        if kind is not None:
            return
        log_type = self._aggregate.log_type
        stored = events_after(self._after, self._using, log_type=log_type, log_id=self._log_id)
        reader = EventReader(self._aggregate.event_types)
        self.records = list(reader.records(stored))
        if self._expects_any:
            if not stored:
                raise AssertionError(f"The block appended nothing to {self._where}.")
        elif not reader.reads_as(stored, self._encoded):
            raise AssertionError(self._failure(reader, stored))

    @property
    def _where(self) -> str:
        return f"logs of type {self._aggregate.log_type!r}" if not self._log_id else self._log_id

    def _failure(self, reader: EventReader, stored: Sequence[StoredEvent]) -> str:
        if not self._expected:
            head = f"The block appended events to {self._where}, and none was expected"
        elif not stored:
            head = f"The block appended nothing to {self._where}"
        else:
            head = f"The block appended other events to {self._where} than expected"
        changes = difference(reader, self._expected, self._encoded, self.events, stored)
        return f"{head} (- expected, + appended):\n\n{changes}\n"


def check_aggregate_class(aggregate: Any) -> None:
    """Raise TypeError for anything but an aggregate class with a log type."""
    if isinstance(aggregate, type) and issubclass(aggregate, Aggregate):
        if hasattr(aggregate, "log_type"):
            return
        raise TypeError(f"{aggregate.__qualname__} has no log type. Pass one of its subclasses.")
    raise TypeError(f"An aggregate class comes first, e.g. Loan, not {kind_of(aggregate)}.")


def encoded(aggregate: type[Aggregate], events: Sequence[Any]) -> list[EncodedEvent]:
    """
    Return events as a store takes them.

    Raise InvalidEvent for an object that is not an event of the aggregate, or cannot be stored.
    """
    codecs = {each.cls: codec_for(each) for each in aggregate.event_types}
    limit, found = max_event_bytes(), []
    for event in events:
        codec = codecs.get(type(event))
        if codec is None:
            raise InvalidEvent(why_no_event(event, aggregate.__qualname__))
        found.append(codec.encode(event, limit))
    return found


def difference(
    reader: EventReader,
    expected: Sequence[Any],
    encoded_: Sequence[EncodedEvent],
    came: Sequence[Any],
    stored: Sequence[StoredEvent],
) -> str:
    """Return how the expected events differ from those that came, which are given as stored."""

    def alike(here: int, there: int) -> bool:
        return reader.reads_as([stored[there]], [encoded_[here]])

    return texts.difference(expected, came, alike)


def last_position(using: str | None) -> int:
    """Return the position of the newest event of a database, 0 where there is none."""
    found = _events(using).order_by("-position").values_list("position", flat=True).first()
    return found or 0


def events_after(
    position: int, using: str | None, *, log_type: str | None = None, log_id: LogId | None = None
) -> list[StoredEvent]:
    """Return the events of a database behind a position, in order."""
    events = _events(using).filter(position__gt=position)
    if log_type is not None:
        events = events.filter(log_type=log_type)
    if log_id is not None:
        events = events.filter(log=log_id.uuid)
    return events_of_rows(events.order_by("position").values_list(*STORED_WITH_LOG))


def _events(using: str | None) -> QuerySet[Event]:
    # Of the database that is written to: a replica may lag.
    return QuerySet(Event, using=using or router.db_for_write(Event))
