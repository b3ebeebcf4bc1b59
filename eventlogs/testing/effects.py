"""
Run projections and reactors on a history: their real code, on a real database.

The history is stored by the database's own store, as an import stores it: with the times that it
has, and with new positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core import mail
from django.test import TestCase

from eventlogs.deciders import kind_of
from eventlogs.events.codec import EventReader
from eventlogs.events.metadata import is_adopted
from eventlogs.events.redaction import RedactingReader
from eventlogs.exceptions import FeedUnavailable, ProjectionFailed
from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.projections import Projection, Reactor
from eventlogs.projections.base import BaseProjection, Failed
from eventlogs.projections.operations import RowOperations
from eventlogs.stores import ExportedEvent
from eventlogs.testing.appends import events_after, last_position
from eventlogs.values import EventRecord, StoredEvent


class Reactions(list[Any]):
    """
    What a reactor did: a list of what its handlers returned, a value for each event handled.

    ``handled`` are the records that it handled, ``sent`` the e-mails that it sent (as Django's test
    runners collect them), ``appended`` the records that were appended meanwhile, to any log.
    Of a publisher, only ``handled`` is filled: the records that it published, one by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.handled: list[EventRecord] = []
        self.sent: list[Any] = []
        self.appended: list[EventRecord] = []


def project(
    projection: Any, log_id: LogId, history: Sequence[StoredEvent], *, using: str | None
) -> Any:
    """Store the events of a log, let a projection catch up, and return the row or None."""
    if not (isinstance(projection, type) and issubclass(projection, RowOperations)):
        raise TypeError(
            f"project() takes a projection that keeps rows, not {kind_of(projection)}. For a "
            f"reactor, use react()."
        )
    _check_reads(projection, log_id)
    alias = projection.database_alias(using=using)
    records = _stored(log_id, history, alias)
    try:
        projection.catch_up(strict=True, using=alias)
    except FeedUnavailable:
        if projection.mode != projection.INLINE:
            raise
        if records:
            projection.rebuild(log_id, using=alias)  # there are inline rows without a feed
    key: Any = log_id
    if issubclass(projection, Projection) and projection.has_shared_rows():
        keys = [projection().key(record) for record in records]
        key = next((each for each in reversed(keys) if each is not None), None)
    return projection.model._base_manager.using(alias).filter(pk=key).first()


def react(
    reactor: Any,
    log_id: LogId,
    history: Sequence[StoredEvent],
    *,
    since: int,
    using: str | None,
) -> Reactions:
    """
    Store the events of a log, let a reactor react to those from an index on; return what it did.

    Its checkpoint is neither read nor moved: it reacts to these events, and to no others.
    """
    if not (isinstance(reactor, type) and issubclass(reactor, Reactor)):
        raise TypeError(
            f"react() takes a reactor, not {kind_of(reactor)}. For a projection that keeps rows, "
            f"use project()."
        )
    _check_reads(reactor, log_id)
    alias = reactor.database_alias(using=using)
    reader = EventReader() if reactor.with_personal_data else RedactingReader()
    records = _stored(log_id, history, alias, reader)[since:]
    found, instance = Reactions(), reactor()
    call_handler = instance.call_handler

    def noted(name: str, record: EventRecord, *args: Any) -> Any:
        found.append(call_handler(name, record, *args))
        found.handled.append(record)

    vars(instance)["call_handler"] = noted
    if reactor.publishes:
        found.handled = records = [each for each in records if _is_published(reactor, each)]
    position, outbox = last_position(alias), len(getattr(mail, "outbox", ()))
    for record in records:
        # In production a handler is not in a transaction, so on_commit() calls at once.
        with TestCase.captureOnCommitCallbacks(using=alias, execute=True):
            _apply(instance, record, alias)
    found.sent = list(getattr(mail, "outbox", ())[outbox:])
    found.appended = list(EventReader().records(events_after(position, alias)))
    return found


def _is_published(publisher: type[Reactor], record: EventRecord) -> bool:
    names = publisher.event_types_read()
    return (names is None or record.type in names) and not is_adopted(record.metadata)


def _stored(
    log_id: LogId, history: Sequence[StoredEvent], using: str, reader: EventReader | None = None
) -> list[EventRecord]:
    """
    Store the events of one log, and return them as the database's records.

    Events that are stored already are left as they are. Raise ImportDiffers where the log has
    other events there.
    """
    if not history:
        return []
    store = EventLog.objects.store(using=using)
    store.restore([ExportedEvent(event) for event in history])
    reader = reader or EventReader()
    return list(reader.records(store.events(log_id, start=0, limit=len(history))))


def _apply(reactor: Reactor, record: EventRecord, using: str) -> None:
    try:
        reactor.apply([record], using)
    except Failed as failed:
        failure = ProjectionFailed(reactor.name, record.log_id, record.position)
        raise failure from failed.error


def _check_reads(projection: type[BaseProjection], log_id: LogId) -> None:
    """Raise TypeError for a projection that reads no logs of this type."""
    log_types = projection.log_types_read()
    if log_types is not None and log_id.log_type not in log_types:
        raise TypeError(
            f"{projection.__qualname__} reads logs of type {', '.join(log_types)}, not of type "
            f"{log_id.log_type}. Name that in its log_types."
        )
