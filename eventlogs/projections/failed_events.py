"""
Events that fail, one at a time: their logs are held, attempts counted, failures noted.

Each step is a transaction of the partition. An attempt is counted in a transaction of its own
before it is made, so an event that kills its worker is counted, too.

A policy decides how to continue after a failure. ``HoldLog`` holds the log; other logs continue.
``RaiseFailure`` (a strict call, a rebuild) raises ProjectionFailed: nothing is passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from django.db import Error

from eventlogs.exceptions import ProjectionUnavailable, UndecodableEvent
from eventlogs.models import ParkedEvent
from eventlogs.projections.base import Failed
from eventlogs.projections.constraints import failure
from eventlogs.projections.leases import Lease
from eventlogs.projections.log_events import event_at
from eventlogs.projections.partitions import Partition, RolledBack
from eventlogs.projections.releases import APPLY, PASS, is_unread
from eventlogs.stores.clock import UTCNow
from eventlogs.values import StoredEvent

logger = logging.getLogger("eventlogs.projections")


class FailedEvents:
    """The events of a partition that are held, or are to be."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._held_logs = partition.held_logs
        self._logged: set[tuple[str, int]] = set()  # types and versions that wait for a release

    def hold(self, row: StoredEvent) -> ParkedEvent:
        """Hold a log from an event on, and count an attempt that is about to be made."""
        held: list[ParkedEvent] = []
        with self._uncounting(held):
            self._transact(lambda lease: held.append(self._held_logs.hold(row)))
        return held[-1]

    def begin_attempt(self, pk: int) -> ParkedEvent | None:
        """
        Count an attempt at an event that is due, and return it; None where it is not to be tried.

        If no running release handles the event any more, its log continues with the next one.
        """
        partition = self._partition
        begun: list[ParkedEvent] = []
        goes_on = True

        def count(lease: Lease) -> None:
            nonlocal goes_on
            begun.clear()
            goes_on = False
            due = self._held_logs.rows().filter(pk=pk, retry_at__lte=UTCNow())
            found = due.first()
            if found is None:
                return
            log_type = found.log_id.log_type
            verdict = partition.reading.verdict(log_type, found.type, found.schema_version)
            if verdict is APPLY:
                if self._held_logs.begin_attempt(found):
                    begun.append(found)
                return
            row = event_at(found.log_id, found.index, lease.using)
            if row is None or verdict is PASS:
                following = None if row is None else partition.next_event(row, lease.position)
                self._held_logs.continue_with(following, found)
                goes_on = following is not None
            else:
                mark, why = partition.reading.mark, partition.why_held(row)
                self._held_logs.wait_for_release(found, row, mark, why)

        while goes_on:
            with self._uncounting(begun):
                self._transact(count)
        return begun[0] if begun else None

    def count_attempt(self, waiting: ParkedEvent) -> None:
        """Count an attempt that is about to be made at an event that is held already."""
        self._transact(lambda lease: self._held_logs.count_attempt(waiting))

    def end_hold(self, waiting: ParkedEvent) -> None:
        """Hold the log no longer."""
        self._transact(lambda lease: self._held_logs.continue_with(None, waiting))

    def _transact(self, work: Callable[[Lease], object]) -> None:
        """Do ``work`` in a transaction of the partition that leaves the checkpoint in its place."""
        self._partition.transact_or_raise(work, self._partition.lease.position)

    def pass_if_held(self, row: StoredEvent) -> bool:
        """Move the checkpoint past an event whose log is held; return False where it is not."""
        log_id = row.log_id
        if log_id not in self._held_logs.held([log_id]):
            return False  # and no other worker could hold it
        passed = True

        def look_again(lease: Lease) -> None:
            nonlocal passed
            passed = log_id in self._held_logs.held([log_id])
            if not passed:
                raise RolledBack

        with suppress(RolledBack):  # a person has skipped the event meanwhile
            self._partition.transact_or_raise(look_again, row.position)
        return passed

    def hold_for_release(self, row: StoredEvent, error: BaseException | None = None) -> None:
        """Hold a log, in the open transaction, from an event on that waits for a release."""
        partition = self._partition
        why = error or partition.why_held(row)
        self._held_logs.hold_for_release(row, partition.reading.mark, why)
        kind = row.type, row.schema_version
        # A warning for each type, not for each of perhaps many logs.
        logger.log(
            logging.INFO if kind in self._logged else logging.WARNING,
            "Projection %s: the event at position %s of %s waits for a release that can apply %s "
            "version %s; the later events of its log wait with it. Deploy that release, or declare "
            "retired_event() for a class that was deleted permanently.",
            partition.projection.name,
            row.position,
            row.log_id,
            *kind,
        )
        self._logged.add(kind)

    def hold_failed(self, row: StoredEvent, error: BaseException) -> None:
        """Hold a log, in the open transaction, from an event on that failed for the first time."""
        if self._waits_for_release(error):
            self.hold_for_release(row, error)
        else:
            self._held_logs.note_failure(self._held_logs.hold(row), error, row)

    def note(
        self, row: StoredEvent, position: int, waiting: ParkedEvent | None, error: BaseException
    ) -> None:
        """Note that an event failed, and move the checkpoint; ``waiting`` holds its log."""

        def note(lease: Lease) -> None:
            if waiting is None:
                self.hold_failed(row, error)
            elif self._waits_for_release(error):
                mark = self._partition.reading.mark
                self._held_logs.wait_for_release(waiting, row, mark, error)
            else:
                self._held_logs.note_failure(waiting, error, row)

        self._partition.transact_or_raise(note, position)

    def _waits_for_release(self, error: BaseException) -> bool:
        """
        Return whether an event failed because newer code wrote it, or the row that it changes.

        While another release runs that can apply more, that is assumed of every event that cannot
        be decoded.
        """
        if isinstance(error, ProjectionUnavailable):  # a newer release has made the row
            return error.reason == "newer"
        if isinstance(error, UndecodableEvent) and not self._partition.reading.is_alone:
            return True
        return is_unread(error)

    @contextmanager
    def _uncounting(self, counted: Sequence[ParkedEvent]) -> Iterator[None]:
        """Uncount an attempt that is counted by now, where the connection is lost inside."""
        try:
            yield
        except Error:
            for waiting in counted[-1:]:
                self._held_logs.uncount_attempt(waiting)
            raise


class HoldLog:
    """Policy: hold the log of an event that fails; the other logs continue."""

    def __init__(self, partition: Partition, failed_events: FailedEvents) -> None:
        self._partition = partition
        self._failed_events = failed_events

    def careful_until(self) -> int:
        """Return the position up to which events may have killed a worker, as far as known."""
        # The previous worker did not release its lease: an event may have killed it.
        return self._partition.feed.settled() if self._partition.lease.was_abandoned else 0

    def resumed(self, row: StoredEvent) -> ParkedEvent | None:
        """Return the hold of an event that comes again with its batch, its attempt counted."""
        return None

    def to_retry(self) -> Iterable[int]:
        """Yield the keys of held events to retry in this call, due or not."""
        return ()

    def unread_in_batch(self, row: StoredEvent) -> None:
        """Deal with an event of a batch that waits for a release, in its transaction."""
        self._failed_events.hold_for_release(row)

    def unread(self, row: StoredEvent) -> None:
        """Deal with an event that waits for a release, and move the checkpoint past it."""
        self._partition.transact_or_raise(
            lambda lease: self._failed_events.hold_for_release(row), row.position
        )

    def failed_in_batch(
        self,
        attempt: Callable[..., Failed | None],
        before: Sequence[StoredEvent],
        failing: StoredEvent,
        error: BaseException,
    ) -> bool:
        """
        Apply the events before one that failed in a batch, and deal with that one.

        ``attempt`` applies a batch. Return False where it fails again.
        """
        return attempt(before, failing.position, failing, error) is None

    def failed(
        self, row: StoredEvent, position: int, waiting: ParkedEvent | None, failed: Failed
    ) -> None:
        """Deal with an event that failed by itself, and move the checkpoint."""
        self._failed_events.note(row, position, waiting, failed.error)


class RaiseFailure(HoldLog):
    """
    Policy: raise ProjectionFailed at the first event that cannot be applied.

    The events before it stay applied. The event is not held: the next call begins with it. An event
    that was held before is tried again, and its failure is noted.
    """

    def careful_until(self) -> int:
        # Events that a killed rebuild had begun: they come again in the first batch.
        lease = self._partition.lease
        ahead = self._partition.held_logs.rows().filter(position__gt=lease.position)
        return max([super().careful_until(), *ahead.values_list("position", flat=True)])

    def resumed(self, row: StoredEvent) -> ParkedEvent | None:
        """
        Count another attempt at an event that a strict rebuild was applying when it was killed.

        Return None for any other event. A rebuild passes over no event: the rows
        have to be complete when they are swapped in.
        """
        held = self._partition.held_logs.rows()
        left = held.filter(log_id=row.log_id, position=row.position).first()
        if left is None:
            return None
        if left.attempts >= self._partition.projection.max_attempts:
            self._failed_events.end_hold(left)
            self._raise(row, None)
        self._failed_events.count_attempt(left)
        return left

    def to_retry(self) -> Iterator[int]:
        lease, held_logs = self._partition.lease, self._partition.held_logs
        waiting = held_logs.rows().filter(position__lte=lease.position, awaits="")
        for each in waiting.exclude(retry_at=None).order_by("position"):
            if self._partition.has(each.log_id):
                held_logs.make_due(each)
                yield each.pk

    def unread_in_batch(self, row: StoredEvent) -> None:
        raise Failed(row.position, self._partition.why_held(row))

    def unread(self, row: StoredEvent) -> None:
        self._raise(row, self._partition.why_held(row))

    def failed_in_batch(
        self,
        attempt: Callable[..., Failed | None],
        before: Sequence[StoredEvent],
        failing: StoredEvent,
        error: BaseException,
    ) -> bool:
        if before and attempt(before, before[-1].position) is not None:
            return False
        self._raise(failing, error)

    def failed(
        self, row: StoredEvent, position: int, waiting: ParkedEvent | None, failed: Failed
    ) -> None:
        if waiting is None or waiting.position > self._partition.lease.position:
            if waiting is not None:
                self._failed_events.end_hold(waiting)  # it comes again, with its batch
        else:
            super().failed(row, position, waiting, failed)
        self._raise(row, failed.error)

    def _raise(self, row: StoredEvent, error: BaseException | None) -> NoReturn:
        projection, using = self._partition.projection, self._partition.using
        raise failure(projection, row.log_id, row.position, error, using) from error
