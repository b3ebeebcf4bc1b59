"""Reductions of the past: a log as of a version or a moment. They are not cached."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import TypeVar

from django.utils import timezone

from eventlogs.aggregates import Aggregate, fold
from eventlogs.events.codec import EventReader
from eventlogs.exceptions import LogArchived, LogErased, LogNotFound, VersionNotReached
from eventlogs.ids import LogId
from eventlogs.stores import BaseStore
from eventlogs.stores.base import STREAM_PAGE
from eventlogs.utils.bounds import check_int
from eventlogs.values import EventRecord, Reduction

A = TypeVar("A", bound=Aggregate)


def reduce_to_version(
    aggregate: type[A], log_id: LogId, version: int, *, store: BaseStore, events: EventReader
) -> Reduction[A]:
    """
    Fold the first ``version`` events of a log.

    Raise ValueError for a version that is no int of 0 or more, LogNotFound for 0 and for a log
    without events, and VersionNotReached for a log that has fewer.
    """
    check_int("version", version)
    if version == 0:
        raise LogNotFound(log_id, reason="has no events at version 0")
    records = events.records(store.stream(log_id, page=min(version, STREAM_PAGE)))
    reduction = fold(aggregate.without_events(log_id), islice(records, version))
    if not reduction.version:
        raise store.missing(log_id)
    if reduction.version < version:
        raise VersionNotReached(log_id, version=version, actual_version=reduction.version)
    return reduction


def reduce_to_moment(
    aggregate: type[A], log_id: LogId, at: datetime, *, store: BaseStore, events: EventReader
) -> Reduction[A]:
    """
    Fold the events of a log that were recorded by ``at``.

    Raise ValueError for a naive ``at``, and LogNotFound if there were none.
    """
    if timezone.is_naive(at):
        raise ValueError(f"at is {at!r}. It must be a datetime with a time zone.")
    records = events.records(store.stream(log_id))
    reduction = fold(aggregate.without_events(log_id), _until(records, at))
    if not reduction.version:
        missing = store.missing(log_id)
        if isinstance(missing, LogErased | LogArchived):
            raise missing
        raise LogNotFound(log_id, reason=f"did not exist at {at.isoformat()}")
    return reduction


def _until(records: Iterator[EventRecord], at: datetime) -> Iterator[EventRecord]:
    for record in records:
        if record.recorded_at > at:
            return
        yield record
