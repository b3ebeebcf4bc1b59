"""
Rows of the feed's events, a batch in each transaction.

Where an event of the batch cannot be applied, the batch is rolled back. The events before it are
applied again, without it; its log is held from it on, and the rest of the batch is tried. Where
it is not known which event it was (a worker that crashed, a deadline, an error of the database),
the batch is applied one by one, each attempt counted before it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from django.db.models import F

from eventlogs.projections.base import Failed
from eventlogs.projections.leases import Lease
from eventlogs.projections.one_by_one import OneByOne
from eventlogs.projections.releases import HOLD
from eventlogs.stores.clock import UTCNow
from eventlogs.values import StoredEvent


class RowBatches(OneByOne):
    """Applies events of the feed to rows, many in each transaction."""

    _rate = 0.0  # events a second, of the last batch

    def in_transaction(self, event: StoredEvent) -> None:
        partition = self.partition
        partition.projection.apply(partition.records([event]), partition.using)

    def advance(self, events: list[StoredEvent], reached: int) -> None:
        while events:
            careful = [event for event in events if event.position <= self.careful_until]
            careful = careful[: self.careful_for]
            if careful:
                self.careful_for -= len(careful)
                self.apply_each(careful)
                events = events[len(careful) :]
                continue
            failed = self._attempt(events, reached)
            if failed is None:
                return
            done = self._attempt_up_to(failed, events)
            if done is None:
                self.careful_until, self.careful_for = events[-1].position, len(events)
            else:
                events = events[done:]

    def _attempt_up_to(self, failed: Failed, events: list[StoredEvent]) -> int | None:
        """
        Apply the events before one that failed, and let the policy deal with that one.

        Return how many events are done with; None where it is not known which one failed.
        """
        at = next((n for n, event in enumerate(events) if event.position == failed.position), None)
        if at is None:
            return None
        if not self.policy.failed_in_batch(self._attempt, events[:at], events[at], failed.error):
            return None
        return at + 1

    def _attempt(
        self,
        events: Sequence[StoredEvent],
        reached: int,
        failing: StoredEvent | None = None,
        error: BaseException | None = None,
    ) -> Failed | None:
        """
        Apply events and move the checkpoint; hold the log of ``failing``, which comes next.

        Return why it failed; nothing is stored then.
        """
        partition = self.partition
        partition.renew_declaration()
        count, begun = 0, time.perf_counter()

        def batch(lease: Lease) -> None:
            nonlocal count
            free = self._free(events)
            partition.projection.apply(partition.records(free), lease.using)
            if failing is not None and error is not None:
                self.failed_events.hold_failed(failing, error)
            count = len(free)

        figures = {"applied": F("applied") + len(events), "moved_at": UTCNow(), "rate": self._rate}
        failed = partition.transact(batch, reached, **figures)
        if failed is None:
            partition.applied += count
            self._rate = len(events) / max(time.perf_counter() - begun, 1e-6)
        return failed

    def _free(self, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Return the events of logs that are not held; deal with those that wait for a release."""
        verdict = self.partition.verdict
        held = self.held_logs.held(event.log_id for event in events)
        if not held and not any(verdict(event) is HOLD for event in events):
            return events
        free: list[StoredEvent] = []
        for event in events:
            log_id = event.log_id
            if log_id in held:
                continue
            if verdict(event) is HOLD:
                self.policy.unread_in_batch(event)
                held.add(log_id)
            else:
                free.append(event)
        return free
