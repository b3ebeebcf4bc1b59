"""
Publishers: whole batches are published, and then the checkpoint moves.

The order of each log is kept in spite of every failure. A batch that could not be published is
published again, from its first event on, and the checkpoint stays before it: no event of a log is
published for the first time before all earlier ones are. What a worker published that has lost its
lease is a repetition of events that its successor publishes from the same checkpoint on.

A failed batch says nothing about its events, so no log is held for it and no attempt is counted.
Only the records that the publisher names (Unpublishable), and those that cannot be decoded, hold
their logs, as the failed events of a reactor do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from django.db.models import F

from eventlogs.exceptions import KeyUnavailable, PublishingFailed, Unpublishable
from eventlogs.ids import LogId
from eventlogs.models import ParkedEvent
from eventlogs.projections.base import Failed
from eventlogs.projections.deadlines import HandlerTimedOut, deadline
from eventlogs.projections.failed_events import HoldLog
from eventlogs.projections.leases import Lease
from eventlogs.projections.lost_connections import cancel_statement, drop
from eventlogs.projections.one_by_one import OneByOne
from eventlogs.projections.partitions import Partition, RolledBack
from eventlogs.projections.releases import HOLD
from eventlogs.stores.clock import UTCNow
from eventlogs.values import EventRecord, StoredEvent


class Refused(Exception):
    """The publisher has named records of a batch that cannot be published, by their positions."""

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        super().__init__()
        self.errors = errors


class Published(NamedTuple):
    """What became of a batch: its events are published, or their logs are to be held."""

    done: set[int]  # positions
    behind: set[LogId]  # logs that were held already; their events were passed over
    unread: list[StoredEvent]  # events that wait for a release
    failed: list[tuple[StoredEvent, BaseException]]  # in the order of their positions


class Publications(OneByOne):
    """Publishes the events of the feed, a batch for each move of the checkpoint."""

    counts_each_attempt = False

    def __init__(self, partition: Partition, policy: type[HoldLog]) -> None:
        super().__init__(partition, policy)
        self._limit = partition.projection.batch_size
        self._rate = 0.0  # events a second, of the last batch

    @property
    def limit(self) -> int:
        """Smaller after a failure, so that a slow receiver can take a batch within its time."""
        return self._limit

    def advance(self, events: list[StoredEvent], reached: int) -> None:
        try:
            self._advance(events, reached)
        except PublishingFailed:
            self._limit = max(1, self._limit // 2)
            raise
        self._limit = min(self._limit * 2, self.partition.projection.batch_size)

    def _advance(self, events: list[StoredEvent], reached: int) -> None:
        careful = [event for event in events if event.position <= self.careful_until]
        careful = careful[: self.careful_for]
        if careful:
            self.apply_each(careful)
            self.careful_for -= len(careful)
            events = events[len(careful) :]
        while events:
            begun = time.perf_counter()
            found = self._publish(events)
            self._rate = len(events) / max(time.perf_counter() - begun, 1e-6)
            try:
                self._store(found, events, reached)
                return
            except RolledBack:  # a person has skipped an event meanwhile: its log is free now
                events = [
                    event for event in events if event.position > self.partition.lease.position
                ]

    def before_transaction(self, event: StoredEvent) -> Failed | None:
        """Publish one event: a held one, or one that may have killed a worker."""
        try:
            self._send(self.partition.records([event]))
        except Failed as failed:
            return failed
        except Refused as refused:
            return Failed(event.position, refused.errors[event.position])
        return None

    def apply_one(
        self, event: StoredEvent, position: int, waiting: ParkedEvent | None
    ) -> Failed | None:
        try:
            return super().apply_one(event, position, waiting)
        except PublishingFailed:
            if waiting is not None:
                self.held_logs.take_back_attempt(waiting)
            raise

    def _publish(self, events: Sequence[StoredEvent]) -> Published:
        """Publish the events of logs that are not held; find those whose logs are to be held."""
        partition = self.partition
        held = self.held_logs.held(event.log_id for event in events)
        blocked, behind = set(held), {event.log_id for event in events if event.log_id in held}
        unread: list[StoredEvent] = []
        free: list[StoredEvent] = []
        for event in events:
            if event.log_id in blocked:
                continue
            if partition.verdict(event) is HOLD:
                unread.append(event)
                blocked.add(event.log_id)
            else:
                free.append(event)
        failed: list[tuple[StoredEvent, BaseException]] = []
        while free:
            try:
                self._send(partition.records(free))
                break
            except Failed as undecodable:
                errors: Mapping[int, BaseException] = {
                    position: undecodable.error
                    for position in [undecodable.position]
                    if position is not None
                }
            except Refused as refused:
                errors = refused.errors
            kept: list[StoredEvent] = []
            refusing: set[LogId] = set()
            for event in free:
                if event.position in errors and event.log_id not in refusing:
                    refusing.add(event.log_id)
                    failed.append((event, errors[event.position]))
                elif event.log_id not in refusing:
                    kept.append(event)
            free = kept
            if partition.lease.is_half_over:
                partition.move_to(partition.lease.position)
        failed.sort(key=lambda each: each[0].position)
        return Published({event.position for event in free}, behind, unread, failed)

    def _send(self, records: Sequence[EventRecord]) -> None:
        """Publish records; raise Refused for named ones, PublishingFailed for another error."""
        partition = self.partition
        projection, using = partition.projection, partition.using
        failure = PublishingFailed(projection.name, len(records))
        try:
            with deadline(projection.timeout):
                projection.apply(records, using)
        except KeyUnavailable:  # of this process' settings: the other side has not caused it
            raise
        except Unpublishable as error:
            named = set(error.ids)
            errors = {each.position: error for each in records if each.id in named}
            if not errors:
                raise failure from error
            raise Refused(errors) from None
        except HandlerTimedOut:
            cancel_statement(using)
            drop(using)
            raise failure from partition.too_long()
        except (Exception, SystemExit) as error:
            raise failure from error

    def _store(self, found: Published, events: Sequence[StoredEvent], reached: int) -> None:
        """Move the checkpoint past a batch; hold the logs of events that could not be published."""

        def commit(
            some: Sequence[StoredEvent],
            upto: int,
            failing: StoredEvent | None = None,
            error: BaseException | None = None,
        ) -> Failed | None:
            return self._commit(found, some, upto, failing, error)

        for failing, error in found.failed:
            at = events.index(failing)
            if not self.policy.failed_in_batch(commit, events[:at], failing, error):
                raise error
            events = events[at + 1 :]
        failed = commit(events, reached)
        if failed is None:
            return
        at = next((n for n, each in enumerate(events) if each.position == failed.position), -1)
        if at < 0:
            raise failed.error
        self.policy.failed_in_batch(commit, events[:at], events[at], failed.error)

    def _commit(
        self,
        found: Published,
        events: Sequence[StoredEvent],
        reached: int,
        failing: StoredEvent | None,
        error: BaseException | None,
    ) -> Failed | None:
        partition = self.partition
        partition.renew_declaration()
        here = {event.position for event in events}
        unread = [event for event in found.unread if event.position in here]
        behind = {event.log_id for event in events} & found.behind
        count = len(here & found.done)

        def note(lease: Lease) -> None:
            if behind - self.held_logs.held(behind):
                raise RolledBack
            for event in unread:
                self.policy.unread_in_batch(event)
            if failing is not None and error is not None:
                self.failed_events.hold_failed(failing, error)

        passed = len(events) + (failing is not None)
        figures = {"applied": F("applied") + passed, "moved_at": UTCNow(), "rate": self._rate}
        failed = partition.transact(note, reached, **figures)
        if failed is None:
            partition.applied += count
            # Their later events may be in the next part of the batch, and a person may skip them.
            found.behind.update(event.log_id for event in unread)
            if failing is not None:
                found.behind.add(failing.log_id)
        return failed
