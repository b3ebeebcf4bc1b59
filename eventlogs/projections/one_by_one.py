"""
Applying events one at a time: after a failure, after a worker has died, and to retry.

The common part of ``row_batches``, ``reactions`` and ``inline_batches``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from django.db import Error
from django.db.models import F

from eventlogs.exceptions import KeyUnavailable
from eventlogs.models import ParkedEvent
from eventlogs.projections.base import Failed
from eventlogs.projections.failed_events import FailedEvents, HoldLog
from eventlogs.projections.leases import Lease, LeaseLost
from eventlogs.projections.log_events import event_at
from eventlogs.projections.partitions import Partition, RolledBack
from eventlogs.projections.releases import HOLD
from eventlogs.stores.clock import UTCNow
from eventlogs.values import StoredEvent

RETRIES: Final = 200  # events of one held log that are retried in one go, so new events come too


class OneByOne:
    """One way of applying events: the steps that are the same in all of them."""

    counts_each_attempt = True  # before it is made, for each event that is applied alone

    def __init__(self, partition: Partition, policy: type[HoldLog]) -> None:
        self.partition = partition
        self.held_logs = partition.held_logs
        self.failed_events = FailedEvents(partition)
        self.policy = policy(partition, self.failed_events)
        # If it is not known which event has failed, or killed a worker: at most ``careful_for``
        # events up to ``careful_until`` are applied one by one, each attempt counted before it.
        self.careful_until = self.policy.careful_until()
        self.careful_for = partition.projection.batch_size

    @property
    def limit(self) -> int:
        """How many events to read for the next batch."""
        return self.partition.projection.batch_size

    def advance(self, events: list[StoredEvent], reached: int) -> None:
        """Apply a batch; ``reached`` is how far the feed was read."""
        raise NotImplementedError

    def before_transaction(self, event: StoredEvent) -> Failed | None:
        """Handle an event before its transaction, if need be; return why it failed."""
        return None

    def in_transaction(self, event: StoredEvent) -> None:
        """Apply an event in the open transaction."""

    def failing_event(self, event: StoredEvent, failed: Failed) -> StoredEvent:
        """Return the event that failed when ``event`` was applied."""
        return event

    def apply_each(self, events: Sequence[StoredEvent]) -> None:
        """Apply events one by one; each that fails is dealt with, and passed."""
        partition = self.partition
        for event in events:
            waiting = self.policy.resumed(event)
            if waiting is None and self.failed_events.pass_if_held(event):
                continue
            if partition.verdict(event) is HOLD:
                self.policy.unread(event)
                continue
            if partition.lease.is_half_over:
                partition.move_to(partition.lease.position)
            careful = event.position <= self.careful_until or self.counts_each_attempt
            if waiting is None and careful:
                waiting = self.failed_events.hold(event)
            self.apply_or_fail(event, event.position, waiting)

    def apply_or_fail(self, event: StoredEvent, position: int, waiting: ParkedEvent | None) -> bool:
        """Apply one event; where it fails, let the policy deal with it, and return False."""
        failed = self.apply_one(event, position, waiting)
        if failed is None:
            self.partition.applied += 1
            return True
        self.policy.failed(self.failing_event(event, failed), position, waiting, failed)
        return False

    def apply_one(
        self, event: StoredEvent, position: int, waiting: ParkedEvent | None
    ) -> Failed | None:
        """
        Apply one event, move the checkpoint, and end the hold of its log.

        Raise the database's error where the connection was lost. That is no attempt, unless the
        event took longer than it may: then the session may have been ended for that.
        """
        begun = time.monotonic()

        def uncount() -> bool:
            is_in_time = time.monotonic() - begun < self.partition.projection.timeout
            return waiting is None or (is_in_time and self.held_logs.uncount_attempt(waiting))

        try:
            failed = self._apply_in_hand(event, position, waiting)
        except (Error, LeaseLost, KeyUnavailable):  # a release that begins takes leases away
            uncount()
            raise
        if failed is not None and failed.is_lost and uncount():
            raise failed.error
        return failed

    def retry_all(self) -> None:
        """Retry the held events that the policy wants to be retried, due or not."""
        for pk in self.policy.to_retry():
            while self.retry(pk):
                pass

    def retry(self, pk: int) -> bool:
        """Retry a held event, then later ones of its log; return whether there may be more."""
        partition = self.partition
        for _ in range(RETRIES):
            begun = self.failed_events.begin_attempt(pk)
            if begun is None:
                return False
            event = event_at(begun.log_id, begun.index, partition.using)
            if event is None:  # its log is erased
                self.failed_events.end_hold(begun)
                return False
            try:
                if not self.apply_or_fail(event, partition.lease.position, begun):
                    return False
            except RolledBack:  # a person has skipped it meanwhile
                return False
        return True

    def _apply_in_hand(
        self, event: StoredEvent, position: int, waiting: ParkedEvent | None
    ) -> Failed | None:
        self.partition.renew_declaration()
        failed = self.before_transaction(event)
        if failed is not None:
            return failed

        def apply(lease: Lease) -> None:
            self.in_transaction(event)
            if waiting is not None:
                if not self.held_logs.is_held_by(waiting):
                    raise RolledBack
                following = self.partition.next_event(event, lease.position)
                self.held_logs.continue_with(following, waiting)

        return self.partition.transact(apply, position, applied=F("applied") + 1, moved_at=UTCNow())
