"""
Inline projections in the feed: logs that were appended to without them are brought up to date.

Their rows change in the appends' own transactions (see ``inline.py``). A worker finds the logs
whose rows lack events, and applies what is missing: many logs in each transaction, and one by one
those that were locked, or in whose transaction an event failed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from django.db import connections

from eventlogs.ids import LogId
from eventlogs.models import Event
from eventlogs.projections import inline, inline_bulk, leases
from eventlogs.projections.base import Failed, RowProjection
from eventlogs.projections.failed_events import HoldLog
from eventlogs.projections.leases import Lease
from eventlogs.projections.log_events import event_at, next_event
from eventlogs.projections.one_by_one import OneByOne
from eventlogs.projections.partitions import Partition
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.retries import in_transaction
from eventlogs.values import StoredEvent

MANY: Final = 500  # logs that are brought up to date in one transaction


class InlineBatches(OneByOne):
    """Brings the rows of an inline projection up to date with their logs."""

    def __init__(
        self, partition: Partition, policy: type[HoldLog], projection: RowProjection
    ) -> None:
        super().__init__(partition, policy)
        self._projection = projection

    def in_transaction(self, event: StoredEvent) -> None:
        using = self.partition.using
        inline.update_row(self._projection, event.log_id, using, upto=event.index + 1)

    def advance(self, events: list[StoredEvent], reached: int) -> None:
        partition = self.partition
        held = self.held_logs.held(event.log_id for event in events)
        careful = self.careful_for > 0 and events[0].position <= self.careful_until
        self.careful_for -= len(events)
        missing = inline.missing(self._projection, events, partition.using)
        done = set() if careful else self._update_many(missing, held)
        for event in missing:
            if event.log_id in done:
                continue
            if event.log_id in held or (careful and self._hold_untried(event)):
                continue
            self.apply_or_fail(event, partition.lease.position, None)
        partition.move_to(reached)

    def failing_event(self, event: StoredEvent, failed: Failed) -> StoredEvent:
        """
        Return the event that failed when a log was applied up to ``event``.

        The events before it are applied.
        """
        log_id, using = event.log_id, self.partition.using
        failing = event
        if failed.position is not None:
            events = Event.objects.using(using).for_log(log_id).filter(position=failed.position)
            index = events.values_list("index", flat=True).first()
            failing = event if index is None else event_at(log_id, index, using) or event
        before = event_at(log_id, failing.index - 1, using) if failing.index else None
        if before is not None:
            self.apply_one(before, self.partition.lease.position, None)
        return failing

    def _update_many(self, events: Sequence[StoredEvent], held: Collection[LogId]) -> set[LogId]:
        """
        Bring many logs up to date in each transaction; return those that are.

        The others have to be done one by one: logs that another transaction has locked at the
        moment, and all logs of a transaction in which an event failed.
        """
        partition, projection = self.partition, self._projection
        wanted = {log: event.index + 1 for event in events if (log := event.log_id) not in held}
        left, done = list(wanted), set[LogId]()
        using, most, size = partition.using, projection.batch_size, MANY
        is_own = not in_transaction(connections[using])
        while len(left) > 1 and inline_bulk.is_possible(using):
            partition.renew_declaration()
            some, left = left[:size], left[size:]
            updated, later = set[LogId](), list[LogId]()

            def apply(lease: Lease, some: Sequence[LogId] = some) -> None:
                nonlocal updated, later
                versions = {each: wanted[each] for each in some}
                updated, later = inline_bulk.update_rows(
                    projection, versions, using, most=most, is_own=is_own
                )
                leases.count(lease, len(updated))

            if partition.transact(apply, partition.lease.position, moved_at=UTCNow()) is None:
                done |= updated
                left = [*later, *left]
                size = max(1, size - len(later))  # about as many as one transaction takes
        partition.applied += len(done)
        return done

    def _hold_untried(self, event: StoredEvent) -> bool:
        """
        Hold a log from its first event that is missing: its events are retried later, one by one.

        Return False where none up to ``event`` is missing.
        """
        partition, log_id = self.partition, event.log_id
        name, using = partition.projection.name, partition.using
        version = inline.applied_version(self._projection, log_id, using)
        first = next_event(partition.reading, name, log_id, version - 1, event.position, using)
        if first is not None:
            partition.transact_or_raise(
                lambda lease: self.held_logs.hold_untried(first), partition.lease.position
            )
        return first is not None
