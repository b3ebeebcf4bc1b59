"""
Advancing one partition of a projection, a batch at a time: the heart of it.

The walk of a batch: read settled events behind the checkpoint; in one transaction move the
checkpoint (which proves that the lease is still ours), load the rows, let the handlers change
them, write the rows. Whatever is killed, rows and checkpoint are both stored, or neither is.

Where an event of the batch cannot be applied, the batch is taken back. What stands before the
event is applied again, without it; its log is held from it on (see ``parking.py``), and the rest
goes on. Where it is not known which event it was (a worker that crashed, a deadline, an error of
the database), the batch is done *carefully*: event by event, each attempt counted before it.

An event that this release does not know, or that another release handles beside it, is held with
its log until code comes that can apply it (see ``releases.py``).

A reactor has no rows. Its handler runs outside of a transaction and before the checkpoint moves,
event by event: it is called at least once for each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from django.db import Error, OperationalError, connections
from django.db.models import F
from django.db.models.functions import Now

from eventlogs.exceptions import (
    EventLogError,
    ProjectionTimedOut,
    ProjectionUnavailable,
    TransactionMustRetry,
    UndecodableEvent,
)
from eventlogs.feed.reader import Feed, FeedRows
from eventlogs.feed.sources import partition_of
from eventlogs.ids import LogId
from eventlogs.models import Event, ParkedEvent, SkippedEvent
from eventlogs.projections import checkpoints
from eventlogs.projections.checkpoints import Lease, LeaseLost, fenced
from eventlogs.projections.constraints import failure
from eventlogs.projections.deadlines import HandlerTimedOut, deadline
from eventlogs.projections.held_logs import Parking
from eventlogs.projections.releases import (
    APPLY,
    HOLD,
    PASS,
    RENEWED,
    Reading,
    Verdict,
    is_unread,
    reading_of,
    reading_of_rows,
)
from eventlogs.stores import store_for
from eventlogs.stores.retries import ATTEMPTS, in_transaction, must_retry
from eventlogs.values import EventRecord, StoredEvent

if TYPE_CHECKING:
    from eventlogs.projections.declarations import BaseProjection

logger = logging.getLogger("eventlogs.projections")

IDLE_MOVE: Final = 1.0  # seconds between two moves of a checkpoint over what is not ours
MANY: Final = 500  # logs that an inline projection catches up with in one transaction
LOGS: Final = 100  # that are held and tried again in one go, so that new events come too
RETRIES: Final = 200  # events of one of them, likewise
PAGE: Final = 200  # events of a held log that are read at once

LOOK_AROUND: Final = 10.0  # seconds between two looks at the releases that run beside this one

FAILURES: Final = (Exception, SystemExit, HandlerTimedOut)


class Failed(Exception):
    """
    An event could not be applied; ``position`` is None where nobody knows which one.

    ``is_lost`` says that the connection was lost meanwhile (and there is another one by now).
    """

    def __init__(
        self, position: int | None, error: BaseException, *, is_lost: bool = False
    ) -> None:
        super().__init__(position)
        self.position = position
        self.error = error
        self.is_lost = is_lost


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

        ``is_strict`` raises ProjectionFailed where an event cannot be applied, in the place of
        holding its log; one that is held already is tried again at once. ``renew`` is called every
        now and then, between two transactions: what this process has declared is to count as long
        as it is at work.
        """
        self.lease = lease
        self._renew = renew
        self._renewed_at = time.monotonic()
        self._is_strict = is_strict
        self.applied = 0
        self.parking = parking_of(projection, lease.using, is_rebuild=lease.is_rebuild)
        self._projection = projection
        self._feed = feed
        self._seen = lease.position
        self._moved_at = time.monotonic()
        self._rate = 0.0
        # With the lease in hand: whoever comes later takes it away.
        self._reading = self._look_around()
        self._read_at = time.monotonic()
        self._told: set[tuple[str, int]] = set()  # types and versions that wait for a release
        if not lease.is_rebuild:
            self.parking.take_up(self._reading)
        # Who had the lease before us did not give it back, and may have died of an event.
        self._careful_until = feed.settled() if lease.was_abandoned else 0
        self._careful_for = projection.batch_size
        if is_strict:
            # What a rebuild that was killed had in hand: it comes in the first batch.
            ahead = self.parking.rows().filter(position__gt=lease.position)
            self._careful_until = max(
                [self._careful_until, *ahead.values_list("position", flat=True)]
            )

    @property
    def position(self) -> int:
        """How far the partition is, by now."""
        return self._seen

    def step(self, upto: int | None = None) -> bool:
        """
        Apply one batch, of events at most at ``upto``; return whether there is more.

        Raise LeaseLost where another worker has taken over, and the database's error where
        the connection is lost. Nothing of the batch is stored then.
        """
        found = self._feed.read_rows(
            self._seen,
            limit=self._projection.batch_size,
            types=self._reading.types,
            log_types=self._reading.log_types,
            partition=self.lease.part,
            unknown=self._reading.unknown,
        )
        if upto is not None:
            found = _cut(found, upto)
        if found.rows:
            found = found._replace(rows=[row for row in found.rows if self._on(row) is not PASS])
        if found.rows and self.lease.is_rebuild:
            found = self._without_skipped(found)
        if found.rows:
            self._advance(found.rows, found.next_after)
        self._seen = max(self._seen, found.next_after)
        self._keep_up()
        return found.more

    def settle(self, upto: int | None = None) -> None:
        """Apply all that is settled now (at most up to a position), and what is due again."""
        while self.step(upto):
            pass
        if self._is_strict:
            self._retry_waiting()
        while self.retry_due():
            pass

    def rest(self) -> None:
        """There is nothing to apply: keep the lease, and what was passed over."""
        self._keep_up()

    def retry_due(self) -> bool:
        """
        Try events again whose time has come, and what waits behind them.

        Return whether there is more to try at once.
        """
        number, of = self.lease.partition, self.lease.partitions
        # What lies ahead of the checkpoint is not ours to try yet: it comes with its batch.
        due = [
            pk
            for pk, log_id in self.parking.due(self.lease.position)
            if partition_of(log_id.uuid, of) == number
        ]
        more = [self._retry(pk) for pk in due[:LOGS]]
        return len(due) > LOGS or any(more)

    def _retry_waiting(self) -> None:
        """Try again what waits for another attempt, whenever it is due."""
        waiting = self.parking.rows().filter(position__lte=self.lease.position, awaits="")
        for each in waiting.exclude(retry_at=None).order_by("position"):
            if partition_of(each.log_id.uuid, self.lease.partitions) == self.lease.partition:
                self.parking.hurry(each)
                while self._retry(each.pk):
                    pass

    def stand_at(self, position: int) -> None:
        """Move the checkpoint over what is not ours, up to a position that has been reached."""
        self._transact_or_raise(lambda lease: None, max(position, self.lease.position))

    def close(self) -> None:
        """Give the lease back."""
        checkpoints.release(self.lease, self._seen)

    def abandon(self) -> None:
        """Let others take the lease at once, and be careful: the connection was lost."""
        checkpoints.abandon(self.lease)

    # A batch

    def _advance(self, rows: list[StoredEvent], reached: int) -> None:
        if self._projection.is_inline:
            self._sweep(rows, reached)
            return
        if not self._projection.is_transactional:
            self._one_by_one(rows)
            return
        while rows:
            careful = [row for row in rows if row.position <= self._careful_until]
            careful = careful[: self._careful_for]
            if careful:
                self._careful_for -= len(careful)
                self._one_by_one(careful)
                rows = rows[len(careful) :]
                continue
            failed = self._attempt(rows, reached)
            if failed is None:
                return
            done = self._attempt_up_to(failed, rows)
            if done is None:
                self._careful_until, self._careful_for = rows[-1].position, len(rows)
            else:
                rows = rows[done:]

    def _attempt_up_to(self, failed: Failed, rows: list[StoredEvent]) -> int | None:
        """
        Apply what stands before an event that failed, and hold its log.

        Return how many rows are done with; None where nothing is, and care is needed.
        """
        at = next((n for n, row in enumerate(rows) if row.position == failed.position), None)
        if at is None:
            return None
        failing = rows[at]
        if self._is_strict:
            if at and self._attempt(rows[:at], rows[at - 1].position) is not None:
                return None
            self._give_up(failing, failed.error)
        if self._attempt(rows[:at], failing.position, failing, failed.error) is not None:
            return None
        return at + 1

    def _attempt(
        self,
        rows: Sequence[StoredEvent],
        reached: int,
        failing: StoredEvent | None = None,
        error: BaseException | None = None,
    ) -> Failed | None:
        """
        Apply rows and move the checkpoint; hold the log of ``failing``, which comes next.

        Return what went wrong; nothing is stored then.
        """
        self._renew_declaration()
        count, begun = 0, time.perf_counter()

        def batch(lease: Lease) -> None:
            nonlocal count
            free = self._free(rows)
            self._projection.apply(self._records(free), lease.using)
            if failing is not None and error is not None:
                self._hold_failed(failing, error)
            count = len(free)

        figures = {"applied": F("applied") + len(rows), "moved_at": Now(), "rate": self._rate}
        failed = self._transact(batch, reached, **figures)
        if failed is None:
            self.applied += count
            self._rate = len(rows) / max(time.perf_counter() - begun, 1e-6)
        return failed

    def _free(self, rows: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Return the rows of logs that are not held; hold those from an event of other code on."""
        held = self.parking.held(row.log_id for row in rows)
        if not held and not any(self._on(row) is HOLD for row in rows):
            return rows
        free: list[StoredEvent] = []
        for row in rows:
            log_id = row.log_id
            if log_id in held:
                continue
            if self._on(row) is HOLD:
                if self._is_strict:
                    raise Failed(row.position, self._unread(row))
                self._leave(row)
                held.add(log_id)
            else:
                free.append(row)
        return free

    def _on(self, row: StoredEvent) -> Verdict:
        return self._reading.verdict(row.log_id.log_type, row.type, row.schema_version)

    def _leave(self, row: StoredEvent, error: BaseException | None = None) -> None:
        """Leave an event to other code, and hold its log."""
        self.parking.leave(row, self._reading.mark, error or self._unread(row))
        kind = row.type, row.schema_version
        # A warning for each type, not for each of perhaps many logs.
        logger.log(
            logging.INFO if kind in self._told else logging.WARNING,
            "Projection %s: the event at position %s of %s waits for a release that can apply %s "
            "version %s; the later events of its log wait with it. Deploy that release, or declare "
            "retired_event() for a class that was deleted for good.",
            self._projection.name,
            row.position,
            row.log_id,
            *kind,
        )
        self._told.add(kind)

    def _unread(self, row: StoredEvent) -> EventLogError:
        return self._reading.why_held(row.log_id, row.index, row.type, row.schema_version)

    def _hold_failed(self, row: StoredEvent, error: BaseException) -> None:
        """Hold a log from an event on that failed for the first time."""
        if self._is_of_other_code(error):
            self._leave(row, error)
        else:
            self.parking.failed(self.parking.hold(row), error, row)

    def _is_of_other_code(self, error: BaseException) -> bool:
        """
        Return whether an event failed because newer code wrote what is to be read or changed.

        While another release runs that can apply more, that is taken for the reason of any event
        that cannot be decoded.
        """
        if isinstance(error, ProjectionUnavailable):  # a newer release has made the row
            return error.reason == "newer"
        if isinstance(error, UndecodableEvent) and not self._reading.is_alone:
            return True
        return is_unread(error)

    def _look_around(self) -> Reading:
        look = reading_of_rows if self.lease.is_rebuild else reading_of
        return look(type(self._projection), self.lease.using)

    def _sweep(self, rows: Sequence[StoredEvent], reached: int) -> None:
        """Let an inline projection catch up with logs that were appended to without it."""
        held = self.parking.held(row.log_id for row in rows)
        careful = self._careful_for > 0 and rows[0].position <= self._careful_until
        self._careful_for -= len(rows)
        missing = self._projection.missing(rows, self.lease.using)
        done = set() if careful else self._sweep_many(missing, held)
        for row in missing:
            if row.log_id in done:
                continue
            if row.log_id in held or (careful and self._set_aside(row)):
                continue
            failed = self._apply_one(row, self.lease.position, None)
            if failed is None:
                self.applied += 1
            else:
                self._note_failure(row, self.lease.position, None, failed)
        self._transact_or_raise(lambda lease: None, reached)

    def _sweep_many(self, rows: Sequence[StoredEvent], held: Collection[LogId]) -> set[LogId]:
        """
        Catch up with many logs in each transaction; return those that are done.

        The others are to be done one by one: logs that somebody else has locked at the moment,
        and all logs of a transaction in which an event failed.
        """
        wanted = {log: row.index + 1 for row in rows if (log := row.log_id) not in held}
        left, done = list(wanted), set[LogId]()
        using, most, size = self.lease.using, self._projection.batch_size, MANY
        is_own = not in_transaction(connections[using])
        while len(left) > 1 and self._projection.can_catch_up_many(using):
            self._renew_declaration()
            some, left = left[:size], left[size:]
            caught_up, later = set[LogId](), list[LogId]()

            def apply(lease: Lease, some: Sequence[LogId] = some) -> None:
                nonlocal caught_up, later
                caught_up, later = self._projection.catch_up_many(
                    {each: wanted[each] for each in some}, using, most=most, is_own=is_own
                )
                checkpoints.count(lease, len(caught_up))

            if self._transact(apply, self.lease.position, moved_at=Now()) is None:
                done |= caught_up
                left = [*later, *left]
                size = max(1, size - len(later))  # about as many as one transaction takes
        self.applied += len(done)
        return done

    def _set_aside(self, row: StoredEvent) -> bool:
        """
        Hold a log from its first event that is missing: they are tried later, one by one.

        Return False where none up to ``row`` is to be tried.
        """
        log_id, using = row.log_id, self.lease.using
        version = self._projection.applied_version(log_id, using)
        name = self._projection.name
        first = following(self._reading, name, log_id, version - 1, row.position, using)
        if first is not None:
            self._transact_or_raise(
                lambda lease: self.parking.set_aside(first), self.lease.position
            )
        return first is not None

    def _one_by_one(self, rows: Sequence[StoredEvent]) -> None:
        for row in rows:
            waiting = self._take_in_hand_again(row) if self._is_strict else None
            if waiting is None and self._pass_if_held(row):
                continue
            if self._on(row) is HOLD:
                self._leave_one(row)
                continue
            if self.lease.is_half_over:
                self._transact_or_raise(lambda lease: None, self.lease.position)
            careful = row.position <= self._careful_until or self._projection.is_transactional
            if waiting is None and careful:
                waiting = self._hold(row)
            failed = self._apply_one(row, row.position, waiting)
            if failed is None:
                self.applied += 1
            else:
                self._note_failure(row, row.position, waiting, failed)

    def _take_in_hand_again(self, row: StoredEvent) -> ParkedEvent | None:
        """
        Count another attempt at an event that a strict rebuild had in hand when it was killed.

        Return None for any other event. Nothing is passed over there, to come later: the rows
        are to be whole when they are swapped in.
        """
        left = self.parking.rows().filter(log_id=row.log_id, position=row.position).first()
        if left is None:
            return None
        if left.attempts >= self._projection.max_attempts:
            self._let_go(left)
            self._give_up(row, None)
        self._transact_or_raise(lambda lease: self.parking.count(left), self.lease.position)
        return left

    def _pass_if_held(self, row: StoredEvent) -> bool:
        log_id = row.log_id
        if log_id not in self.parking.held([log_id]):
            return False  # and nobody but us could hold it
        passed = True

        def look_again(lease: Lease) -> None:
            nonlocal passed
            passed = log_id in self.parking.held([log_id])
            if not passed:
                raise _TakenBack

        with suppress(_TakenBack):  # somebody has let it go meanwhile
            self._transact_or_raise(look_again, row.position)
        return passed

    def _leave_one(self, row: StoredEvent) -> None:
        if self._is_strict:
            self._give_up(row, self._unread(row))
        self._transact_or_raise(lambda lease: self._leave(row), row.position)

    def _hold(self, row: StoredEvent) -> ParkedEvent:
        held: list[ParkedEvent] = []
        with self._giving_back(held):
            self._transact_or_raise(
                lambda lease: held.append(self.parking.hold(row)), self.lease.position
            )
        return held[-1]

    @contextmanager
    def _giving_back(self, in_hand: Sequence[ParkedEvent]) -> Iterator[None]:
        """Give an attempt back that is counted by now, where the connection is lost inside."""
        try:
            yield
        except Error:
            for waiting in in_hand[-1:]:
                self.parking.give_back(waiting)
            raise

    def _apply_one(
        self, row: StoredEvent, position: int, waiting: ParkedEvent | None
    ) -> Failed | None:
        """
        Apply one event, move the checkpoint, and let go of what was held for it.

        Raise the database's error where the connection was lost. That is no attempt, unless the
        event took longer than it may: then the session may have been ended for that.
        """
        begun = time.monotonic()

        def give_back() -> bool:
            is_in_time = time.monotonic() - begun < self._projection.timeout
            return waiting is None or (is_in_time and self.parking.give_back(waiting))

        try:
            failed = self._apply_in_hand(row, position, waiting)
        except (Error, LeaseLost):  # a release that begins takes leases away
            give_back()
            raise
        if failed is not None and failed.is_lost and give_back():
            raise failed.error
        return failed

    def _apply_in_hand(
        self, row: StoredEvent, position: int, waiting: ParkedEvent | None
    ) -> Failed | None:
        self._renew_declaration()
        if not self._projection.is_transactional:
            failed = self._react(row)
            if failed is not None:
                return failed

        def apply(lease: Lease) -> None:
            if self._projection.is_transactional:
                self._projection.apply(self._records([row]), lease.using)
            if waiting is not None:
                if not self.parking.is_held_by(waiting):
                    raise _TakenBack
                self.parking.release(waiting, self._following(row, lease.position))

        return self._transact(apply, position, applied=F("applied") + 1, moved_at=Now())

    def _react(self, row: StoredEvent) -> Failed | None:
        raw = connections[self.lease.using].connection
        try:
            with deadline(self._projection.timeout):
                self._projection.apply(self._records([row]), self.lease.using)
        except Failed as failed:
            # Broken, and not closed, which a handler may do.
            broken = raw if getattr(raw, "broken", False) else None
            if broken is not None or connections[self.lease.using].connection is not None:
                return _lost(self.lease.using, broken, failed.error) or failed
            return failed
        except HandlerTimedOut:
            _break_off(self.lease.using)
            _drop(self.lease.using)
            return Failed(row.position, self._too_long())
        return None

    def _without_skipped(self, found: FeedRows) -> FeedRows:
        """Leave out what a person has said to skip: it could not be applied before, either."""
        first, last = found.rows[0].position, found.rows[-1].position
        skipped = self.parking.skipped(first, last)
        return found._replace(rows=[row for row in found.rows if row.position not in skipped])

    def _give_up(self, row: StoredEvent, error: BaseException | None) -> NoReturn:
        log_id, using = row.log_id, self.lease.using
        raise failure(self._projection, log_id, row.position, error, using) from error

    def _note_failure(
        self, row: StoredEvent, position: int, waiting: ParkedEvent | None, failed: Failed
    ) -> None:
        if self._projection.is_inline:
            row = self._first_failing(row, failed)
        if self._is_strict and (waiting is None or waiting.position > self.lease.position):
            if waiting is not None:
                self._let_go(waiting)  # it comes again, with its batch
            self._give_up(row, failed.error)

        def note(lease: Lease) -> None:
            if waiting is None:
                self._hold_failed(row, failed.error)
            elif self._is_of_other_code(failed.error):
                self.parking.leave_again(waiting, row, self._reading.mark, failed.error)
            else:
                self.parking.failed(waiting, failed.error, row)

        self._transact_or_raise(note, position)
        if self._is_strict:
            self._give_up(row, failed.error)

    def _first_failing(self, row: StoredEvent, failed: Failed) -> StoredEvent:
        """
        Return the event that failed when an inline projection applied its log up to ``row``.

        What stands before it is applied.
        """
        log_id, using = row.log_id, self.lease.using
        failing = row
        if failed.position is not None:
            events = Event.objects.using(using).for_log(log_id).filter(position=failed.position)
            index = events.values_list("index", flat=True).first()
            failing = row if index is None else row_at(log_id, index, using) or row
        before = row_at(log_id, failing.index - 1, using) if failing.index else None
        if before is not None:
            self._apply_one(before, self.lease.position, None)
        return failing

    # What waits

    def _retry(self, pk: int) -> bool:
        """Try an event, and those behind it; return whether there may be more of them."""
        for _ in range(RETRIES):
            begun = self._begin(pk)
            if begun is None:
                return False
            row = row_at(begun.log_id, begun.index, self.lease.using)
            if row is None:  # its log is erased
                self._let_go(begun)
                return False
            try:
                failed = self._apply_one(row, self.lease.position, begun)
            except _TakenBack:  # somebody has skipped it meanwhile
                return False
            if failed is not None:
                self._note_failure(row, self.lease.position, begun, failed)
                return False
            self.applied += 1
        return True

    def _let_go(self, waiting: ParkedEvent) -> None:
        self._transact_or_raise(
            lambda lease: self.parking.release(waiting, None), self.lease.position
        )

    def _begin(self, pk: int) -> ParkedEvent | None:
        """
        Count an attempt at an event that is due, and return it; None where it is not to be tried.

        Where no release wants the event any more, its log goes on with the one behind it.
        """
        begun: list[ParkedEvent] = []
        goes_on = True

        def count(lease: Lease) -> None:
            nonlocal goes_on
            begun.clear()
            goes_on = False
            due = self.parking.rows().filter(pk=pk, retry_at__lte=Now())
            found = due.first()
            if found is None:
                return
            log_type = found.log_id.log_type
            verdict = self._reading.verdict(log_type, found.type, found.schema_version)
            if verdict is APPLY:
                if self.parking.begin(found):
                    begun.append(found)
                return
            row = row_at(found.log_id, found.index, lease.using)
            if row is None or verdict is PASS:
                following = None if row is None else self._following(row, lease.position)
                self.parking.release(found, following)
                goes_on = following is not None
            else:
                self.parking.leave_again(found, row, self._reading.mark, self._unread(row))

        while goes_on:
            with self._giving_back(begun):
                self._transact_or_raise(count, self.lease.position)
        return begun[0] if begun else None

    def _following(self, row: StoredEvent, upto: int) -> StoredEvent | None:
        name, using = self._projection.name, self.lease.using
        return following(self._reading, name, row.log_id, row.index, upto, using)

    # Transactions

    def _transact(
        self, work: Callable[[Lease], object], position: int, **figures: Any
    ) -> Failed | None:
        """
        Do ``work`` in a transaction that moves the checkpoint, again where it must be.

        Return what went wrong in it; nothing is stored then.
        """
        using = self.lease.using
        for number in range(ATTEMPTS):
            raw: Any = None
            try:
                connections[using].ensure_connection()
                raw = connections[using].connection
                with (
                    deadline(self._projection.timeout),
                    fenced(self.lease, position, **figures) as moved,
                ):
                    try:
                        work(moved)
                    except HandlerTimedOut:
                        _break_off(using)
                        raise
                self.lease = moved
                self._seen = max(self._seen, moved.position)
                self._moved_at = time.monotonic()
                return None
            except Failed as failed:
                error, cause = failed, failed.error
            except HandlerTimedOut:
                # The connection may have been interrupted in the middle of a statement.
                _drop(using)
                return Failed(None, self._too_long())
            except (LeaseLost, _TakenBack):
                raise
            except Exception as raised:
                # Not of a handler: e.g. a value that a column does not take.
                error, cause = Failed(None, raised), raised
            if isinstance(cause, TransactionMustRetry) and isinstance(cause.__cause__, Error):
                cause = cause.__cause__
            lost = _lost(using, raw, cause)
            if lost is not None:
                return lost
            if isinstance(cause, Error) and must_retry(cause) and number < ATTEMPTS - 1:
                time.sleep(0.01 * 2**number)
                continue
            return error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _renew_declaration(self) -> None:
        if self._renew is not None and time.monotonic() - self._renewed_at > RENEWED:
            self._renew()
            self._renewed_at = time.monotonic()

    def _transact_or_raise(self, work: Callable[[Lease], object], position: int) -> None:
        failed = self._transact(work, position)
        if failed is not None:
            raise failed.error

    def _too_long(self) -> ProjectionTimedOut:
        return ProjectionTimedOut(self._projection.name, self._projection.timeout)

    def _keep_up(self) -> None:
        """Move the checkpoint over what is not ours, and renew the lease, now and then."""
        self._renew_declaration()
        if not self._reading.is_alone and time.monotonic() - self._read_at > LOOK_AROUND:
            # The other release may be gone for good: what was left to it may go on.
            self._reading, self._read_at = self._look_around(), time.monotonic()
            self.parking.take_up(self._reading)
        idle = self._seen > self.lease.position and time.monotonic() - self._moved_at > IDLE_MOVE
        if idle or self.lease.is_half_over:
            self._transact_or_raise(lambda lease: None, self._seen)

    def _records(self, rows: Sequence[StoredEvent]) -> list[EventRecord]:
        try:
            return list(self._feed.records(rows))
        except FAILURES:
            pass  # which one was it?
        records: list[EventRecord] = []
        for row in rows:
            try:
                records += self._feed.records([row])
            except HandlerTimedOut:
                raise
            except FAILURES as error:
                raise Failed(row.position, error) from error
        return records


class _TakenBack(Exception):
    """Take the transaction back: nothing is wrong."""


def parking_of(projection: Any, using: str, *, is_rebuild: bool = False) -> Parking:
    """Return where the events of a projection (a class or an instance of it) wait."""
    return Parking(
        projection.name,
        using,
        is_rebuild=is_rebuild,
        max_attempts=projection.max_attempts,
        backoff=projection.backoff,
    )


def history(log_id: LogId, start: int, using: str) -> Sequence[StoredEvent]:
    """Return a page of a log's events from an index on."""
    return store_for(using).events(log_id, start=start, limit=PAGE)


def row_at(log_id: LogId, index: int, using: str) -> StoredEvent | None:
    """Return one event of a log, or None where it is not there."""
    return next(iter(history(log_id, index, using)), None)


def following(
    reading: Reading, projection: str, log_id: LogId, index: int, upto: int, using: str
) -> StoredEvent | None:
    """
    Return the next event of a log that is not to be passed over, up to a position; or None.

    What a person has said to skip is passed over.
    """
    skips = SkippedEvent.objects.using(using).filter(projection=projection, log_id=log_id)
    skipped = set(skips.values_list("index", flat=True))
    while page := history(log_id, index + 1, using):
        for row in page:
            if row.position > upto:
                return None
            if row.index in skipped:
                continue
            if reading.verdict(row.log_id.log_type, row.type, row.schema_version) is not PASS:
                return row
        index = page[-1].index
    return None


def _cut(found: FeedRows, upto: int) -> FeedRows:
    rows = [row for row in found.rows if row.position <= upto]
    reached = min(found.next_after, upto)
    return found._replace(rows=rows, next_after=reached, more=found.more and reached < upto)


def _break_off(using: str) -> None:
    """End the statement that the database is at, so that nobody waits for its end."""
    raw = connections[using].connection
    cancel = getattr(raw, "cancel_safe", None) or getattr(raw, "cancel", None)
    if cancel is not None:
        with suppress(Exception):
            cancel()


def _lost(using: str, raw: Any, cause: BaseException) -> Failed | None:
    """
    Return a failure that no event is to blame for, where the connection ``raw`` was lost.

    The cause need not say so: a handler may have met the loss, and raised an error of its own.
    Raise the database's error where there is no other connection yet.
    """
    connection = connections[using]
    # Where a ROLLBACK fails, Django has another connection when its atomic() has ended; psycopg
    # knows which one is broken.
    is_lost = raw is not None and (
        (connection.connection is not raw and not connection.in_atomic_block)
        or getattr(raw, "broken", False)
    )
    if not is_lost and not isinstance(cause, Error):
        return None
    is_usable = connection.is_usable()
    if not is_lost and is_usable:
        return None
    error = cause
    if not isinstance(cause, Error):
        error = OperationalError("The connection was lost while an event was applied.")
        error.__cause__ = cause
    if not is_usable:
        _drop(using)
        if not is_lost or not _is_there(using):
            raise error
    return Failed(None, error, is_lost=True)


def _is_there(using: str) -> bool:
    """Return whether the database answers by now."""
    connection = connections[using]
    with suppress(Error):
        connection.ensure_connection()
        return not connection.in_atomic_block and connection.is_usable()
    return False


def _drop(using: str) -> None:
    connection = connections[using]
    if not connection.in_atomic_block:
        connection.close()
