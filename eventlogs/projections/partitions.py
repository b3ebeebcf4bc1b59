"""
One worker at one partition: its lease, and the transaction that moves the checkpoint.

Every change of a worker is made in ``Partition.transact``. It begins with the fencing token (see
``leases.py``), so rows and checkpoint are committed together, or nothing is, and a worker that
has lost its lease changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from django.db import Error, connections

from eventlogs.events import used_keys
from eventlogs.events.redaction import RedactingReader
from eventlogs.exceptions import (
    EventLogError,
    KeyUnavailable,
    ProjectionTimedOut,
    TransactionMustRetry,
)
from eventlogs.feed.reader import Feed
from eventlogs.feed.sources import partition_of
from eventlogs.ids import LogId
from eventlogs.projections.base import BaseProjection, Failed
from eventlogs.projections.deadlines import HandlerTimedOut, deadline
from eventlogs.projections.held_logs import HeldLogs
from eventlogs.projections.leases import Lease, LeaseLost, fenced
from eventlogs.projections.log_events import next_event
from eventlogs.projections.lost_connections import cancel_statement, drop, failure_of_loss
from eventlogs.projections.releases import (
    RENEWED,
    Reading,
    Verdict,
    reading_of,
    reading_of_rows,
)
from eventlogs.stores.retries import ATTEMPTS, must_retry
from eventlogs.values import EventRecord, StoredEvent

IDLE_MOVE: Final = 1.0  # seconds between two moves of a checkpoint past events of others
LOOK_AROUND: Final = 10.0  # seconds between two looks at the releases that run beside this one
FIRST_PAUSE: Final = 0.01  # seconds before a transaction is run again, doubled each time

FAILURES: Final = (Exception, SystemExit, HandlerTimedOut)


class RolledBack(Exception):
    """Roll the transaction back: nothing failed."""


class Partition:
    """The lease of one worker, and its progress under it."""

    def __init__(
        self,
        projection: BaseProjection,
        lease: Lease,
        feed: Feed,
        *,
        renew: Callable[[], object] | None = None,
    ) -> None:
        """
        Work on a partition that is leased.

        ``renew`` renews the declaration of this process; it is called every minute or so, between
        two transactions.
        """
        self.projection = projection
        self.lease = lease
        self.feed = feed
        self.held_logs = HeldLogs(projection, lease.using, is_rebuild=lease.is_rebuild)
        self.seen = lease.position  # the position up to which the feed was read
        self.applied = 0  # events
        self._read = feed.records if projection.with_personal_data else RedactingReader().records
        self._renew = renew
        self._renewed_at = self._moved_at = time.monotonic()
        # After the lease is taken: a release that declares itself later takes it away.
        self.reading = self._look_around()
        self._read_at = time.monotonic()
        if not lease.is_rebuild:
            self.held_logs.make_readable_due(self.reading)

    @property
    def using(self) -> str:
        return self.lease.using

    def has(self, log_id: LogId) -> bool:
        """Return whether a log is in this partition."""
        return partition_of(log_id.uuid, self.lease.partitions) == self.lease.partition

    def verdict(self, event: StoredEvent) -> Verdict:
        """Return the verdict of this release on an event."""
        return self.reading.verdict(event.log_type, event.type, event.schema_version)

    def why_held(self, event: StoredEvent) -> EventLogError:
        """Return the error that says why an event waits for another release."""
        return self.reading.why_held(event.log_id, event.index, event.type, event.schema_version)

    def next_event(self, event: StoredEvent, upto: int) -> StoredEvent | None:
        """Return the next event of the log after ``event`` that is to be applied or held."""
        name, using = self.projection.name, self.using
        return next_event(self.reading, name, event.log_id, event.index, upto, using)

    def records(self, events: Sequence[StoredEvent]) -> list[EventRecord]:
        """Decode events; raise Failed with the position of the first one that cannot be."""
        try:
            return list(self._read(events))
        except KeyUnavailable:  # of this process' settings: no event has caused it
            raise
        except FAILURES:
            pass  # decode them one by one, to find which one it was
        records: list[EventRecord] = []
        for event in events:
            try:
                records += self._read([event])
            except (HandlerTimedOut, KeyUnavailable):
                raise
            except FAILURES as error:
                raise Failed(event.position, error) from error
        return records

    def transact(
        self, work: Callable[[Lease], object], position: int, **figures: Any
    ) -> Failed | None:
        """
        Do ``work`` in a transaction that moves the checkpoint; run it again where it must be.

        Return why it failed; nothing is stored then. Raise LeaseLost where another worker has
        taken over, and the database's error where the connection is lost and there is no other.
        """
        using = self.using
        for number in range(ATTEMPTS):
            raw: Any = None
            try:
                connections[using].ensure_connection()
                raw = connections[using].connection
                with (
                    used_keys.Noting(),
                    deadline(self.projection.timeout),
                    fenced(self.lease, position, **figures) as moved,
                ):
                    try:
                        work(moved)
                    except HandlerTimedOut:
                        cancel_statement(using)
                        raise
                self.lease = moved
                self.seen = max(self.seen, moved.position)
                self._moved_at = time.monotonic()
                return None
            except Failed as failed:
                error, cause = failed, failed.error
            except HandlerTimedOut:
                # The connection may have been interrupted in the middle of a statement.
                drop(using)
                return Failed(None, self.too_long())
            except (LeaseLost, RolledBack, KeyUnavailable):
                raise
            except Exception as raised:
                # Not a handler's: e.g. a value that a column does not take.
                error, cause = Failed(None, raised), raised
            if isinstance(cause, TransactionMustRetry) and isinstance(cause.__cause__, Error):
                cause = cause.__cause__
            lost = failure_of_loss(using, raw, cause)
            if lost is not None:
                return lost
            if isinstance(cause, Error) and must_retry(cause) and connections[using].needs_rollback:
                raise cause  # MariaDB has rolled back the transaction of the caller as well
            if isinstance(cause, Error) and must_retry(cause) and number < ATTEMPTS - 1:
                time.sleep(FIRST_PAUSE * 2**number)
                continue
            return error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def transact_or_raise(self, work: Callable[[Lease], object], position: int) -> None:
        """Do the same as ``transact``, and raise the error that it failed with."""
        failed = self.transact(work, position)
        if failed is not None:
            raise failed.error

    def move_to(self, position: int) -> None:
        """Move the checkpoint (or leave it where it is), and renew the lease."""
        self.transact_or_raise(lambda lease: None, position)

    def too_long(self) -> ProjectionTimedOut:
        """Return the error for a transaction, or a handler, that took longer than it may."""
        return ProjectionTimedOut(self.projection.name, self.projection.timeout)

    def renew_declaration(self) -> None:
        """Renew this process' declaration, once a minute."""
        if self._renew is not None and time.monotonic() - self._renewed_at > RENEWED:
            self._renew()
            self._renewed_at = time.monotonic()

    def keep_up(self) -> None:
        """Move the checkpoint past events of other partitions, and renew the lease, in time."""
        self.renew_declaration()
        if not self.reading.is_alone and time.monotonic() - self._read_at > LOOK_AROUND:
            # The other release may be gone permanently: this one may apply the events it left.
            self.reading, self._read_at = self._look_around(), time.monotonic()
            self.held_logs.make_readable_due(self.reading)
        idle = self.seen > self.lease.position and time.monotonic() - self._moved_at > IDLE_MOVE
        if idle or self.lease.is_half_over:
            self.move_to(self.seen)

    def _look_around(self) -> Reading:
        look = reading_of_rows if self.lease.is_rebuild else reading_of
        return look(type(self.projection), self.using)
