"""
Advancing one partition of a projection, a batch at a time.

A batch: read settled events after the checkpoint; in one transaction move the checkpoint (which
proves that the lease is still ours), load the rows, let the handlers change them, write the rows.
Rows and checkpoint are both stored, or neither is, whatever is killed.

How a batch is applied differs (``row_batches``, ``inline_batches``, ``reactions``,
``publications``), and so does what follows a failure (the policies of ``failed_events``). An event
that this release does not know, or that another release handles beside it, is held with its log
until code runs that can apply it (see ``releases.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from eventlogs.events.metadata import is_stored_adopted
from eventlogs.feed.reader import Feed
from eventlogs.feed.stored_pages import StoredPage
from eventlogs.observers import Batch, observed, observers
from eventlogs.projections import leases
from eventlogs.projections.arrivals import without_arrived
from eventlogs.projections.base import BaseProjection, RowProjection
from eventlogs.projections.failed_events import HoldLog, RaiseFailure
from eventlogs.projections.inline_batches import InlineBatches
from eventlogs.projections.leases import Lease
from eventlogs.projections.one_by_one import OneByOne
from eventlogs.projections.partitions import Partition
from eventlogs.projections.publications import Publications
from eventlogs.projections.reactions import Reactions
from eventlogs.projections.releases import PASS
from eventlogs.projections.row_batches import RowBatches

LOGS: Final = 100  # held logs that are retried in one go, so that new events come, too


class Advancer:
    """One worker at one partition."""

    def __init__(
        self,
        projection: BaseProjection,
        lease: Lease,
        feed: Feed,
        *,
        is_strict: bool = False,
        renew: Callable[[], object] | None = None,
    ) -> None:
        """
        Apply the events of a partition that is leased.

        ``is_strict`` raises ProjectionFailed where an event cannot be applied, instead of holding
        its log; events that are held already are retried at once. ``renew`` renews the
        declaration of this process; it is called every minute, between two transactions.
        """
        self._partition = Partition(projection, lease, feed, renew=renew)
        self._batches = _batches_of(self._partition, RaiseFailure if is_strict else HoldLog)

    @property
    def lease(self) -> Lease:
        """The lease, as of the last transaction."""
        return self._partition.lease

    @property
    def feed(self) -> Feed:
        """The feed that is read."""
        return self._partition.feed

    @feed.setter
    def feed(self, feed: Feed) -> None:
        self._partition.feed = feed

    @property
    def backoff(self) -> float:
        """The seconds to wait after the first failure."""
        return self._partition.projection.backoff

    @property
    def applied(self) -> int:
        """How many events were applied so far."""
        return self._partition.applied

    @property
    def position(self) -> int:
        """How far the feed is applied, or passed."""
        return self._partition.seen

    def step(self, upto: int | None = None) -> bool:
        """
        Apply one batch, up to the position ``upto``; return whether there are more events.

        Raise LeaseLost where another worker has taken over, PublishingFailed where a publisher
        could not publish the batch, and the database's error where the connection is lost. Nothing
        of the batch is stored then.
        """
        partition = self._partition
        reading, lease = partition.reading, partition.lease
        found = partition.feed.read_stored(
            partition.seen,
            limit=self._batches.limit,
            types=reading.types,
            log_types=reading.log_types,
            partition=lease.part,
            unknown=reading.unknown,
        )
        if upto is not None:
            found = _cut(found, upto)
        events = [each for each in found.events if partition.verdict(each) is not PASS]
        if not partition.projection.is_transactional:
            # A reactor does not react to adopted events: skip them a page at a time.
            events = [each for each in events if not is_stored_adopted(each.metadata)]
            # Nor to those that came by a move: the reactor of the other database has done it.
            events = without_arrived(events, partition.using)
        if events:
            # Leave out events that a person has skipped: they could not be applied before. Outside
            # of a rebuild, they have come with a log from another database.
            first, last = events[0].position, events[-1].position
            skipped = partition.held_logs.skipped_positions(first, last)
            events = [each for each in events if each.position not in skipped]
        if events:
            with self._observed(read=len(events)):
                self._batches.advance(events, found.next_after)
        partition.seen = max(partition.seen, found.next_after)
        partition.keep_up()
        return found.more

    def settle(self, upto: int | None = None) -> None:
        """Apply all events that are settled now (at most up to a position), and retry due ones."""
        while self.step(upto):
            pass
        self._batches.retry_all()
        while self.retry_due():
            pass

    def rest(self) -> None:
        """Keep the lease, and the position, where there is nothing to apply."""
        self._partition.keep_up()

    def retry_due(self) -> bool:
        """
        Retry held events whose next attempt is due, and the later events of their logs.

        Return whether there is more to retry at once.
        """
        # Events past the checkpoint are left out: their batch will apply them.
        found = self._partition.held_logs.due(self.lease.position)
        due = [pk for pk, log_id in found if self._partition.has(log_id)]
        if not due:
            return False
        with self._observed(is_retry=True):
            more = [self._batches.retry(pk) for pk in due[:LOGS]]
        return len(due) > LOGS or any(more)

    @contextmanager
    def _observed(self, *, read: int = 0, is_retry: bool = False) -> Iterator[None]:
        if not observers:
            yield
            return
        partition = self._partition
        before = partition.applied
        batch = Batch(
            projection=type(partition.projection),
            using=partition.using,
            is_retry=is_retry,
            read=read,
        )
        with observed(batch):
            try:
                yield
                batch.outcome = "applied"
            finally:
                batch.events = partition.applied - before

    def move_to(self, position: int) -> None:
        """Move the checkpoint to a position up to which there is nothing left to apply."""
        self._partition.move_to(max(position, self.lease.position))

    def close(self) -> None:
        """Give the lease back."""
        leases.release(self.lease, self.position)

    def abandon(self) -> None:
        """Give the lease up after a lost connection; the next worker applies events one by one."""
        leases.abandon(self.lease)


def _batches_of(partition: Partition, policy: type[HoldLog]) -> OneByOne:
    projection = partition.projection
    if isinstance(projection, RowProjection) and projection.is_inline:
        return InlineBatches(partition, policy, projection)
    if projection.publishes:
        return Publications(partition, policy)
    return (RowBatches if projection.is_transactional else Reactions)(partition, policy)


def _cut(found: StoredPage, upto: int) -> StoredPage:
    events = [each for each in found.events if each.position <= upto]
    reached = min(found.next_after, upto)
    return found._replace(events=events, next_after=reached, more=found.more and reached < upto)
