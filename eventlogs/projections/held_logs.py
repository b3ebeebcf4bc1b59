"""
Held logs: events that could not be applied are tried again, then parked.

While an event of a log waits here, the log is *held*: its later events are passed over. They are
read from the log itself when the event has been applied or skipped. Other logs are not affected.

An event whose type or schema version this release does not know waits for another release: its
log is held, without an attempt, until a process can apply it (see ``releases.py``).

An attempt is counted before it is made, in a transaction of its own. So an event that kills its
worker is counted as well, and cannot kill one worker after the other for ever.

A worker that survives the loss of its connection (a failover, a restart of the server) uncounts
the attempt: the loss says nothing about the event. Where the database does not answer yet, that
is done later, see ``uncount_lost_attempts``. It is done MAX_LOSSES times for one event: an event
that always ends its connection, e.g. by a statement that kills its server process, is parked in
the end.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NamedTuple

from django.db import Error, connections, models
from django.utils import timezone

from eventlogs.ids import LogId
from eventlogs.models import ParkedEvent, SkippedEvent
from eventlogs.observers import (
    EventFailed,
    EventParked,
    EventSkipped,
    HeldEvent,
    observers,
    tell_after_commit,
)
from eventlogs.projections.base import BaseProjection
from eventlogs.projections.error_text import described, details_of, handler_of, traceback_of
from eventlogs.projections.releases import HOLD, Reading
from eventlogs.projections.rows import chunks
from eventlogs.stores.clock import UTCNow
from eventlogs.values import StoredEvent

logger = logging.getLogger("eventlogs.projections")

LONGEST_WAIT: Final = 300.0  # seconds until the next attempt
MANY: Final = 500  # held logs, up to which all of them are read
MAX_ERROR: Final = 200  # characters of the name of an error's class
IN_FLIGHT: Final = "a crash"  # the error that is stored while an attempt is under way

MAX_LOSSES: Final = 25  # attempts at one event that are uncounted, in one process
REST: Final = timedelta(seconds=1)  # before the next attempt, so that the worker can do other work


class LostAttempt(NamedTuple):
    """An attempt to be uncounted, because the connection was lost in it."""

    using: str
    pk: int
    at: int  # the event's index
    attempts: int
    delay: timedelta  # until the event is tried again


_lost_attempts: list[LostAttempt] = []
_losses: Counter[tuple[str, int, int]] = Counter()  # by database, key and index of an event


class HeldLogs:
    """The held logs of one projection (or of its rebuild)."""

    def __init__(
        self,
        projection: BaseProjection | type[BaseProjection],
        using: str,
        *,
        is_rebuild: bool = False,
    ) -> None:
        self._projection = projection if isinstance(projection, type) else type(projection)
        self._name = projection.name
        self._using = using
        self._is_rebuild = is_rebuild
        self._max_attempts = projection.max_attempts
        self._backoff = projection.backoff

    def rows(self) -> models.QuerySet[ParkedEvent]:
        """Return the events that hold logs, parked or not."""
        return ParkedEvent.objects.using(self._using).filter(
            projection=self._name, is_rebuild=self._is_rebuild
        )

    def held(self, among: Iterable[LogId] | None = None) -> set[LogId]:
        """Return the ids of held logs: at least of those in ``among``, or of all for None."""
        held = self.rows().values_list("log_id", flat=True)
        few = set(held if among is None else held[: MANY + 1])
        if among is None or len(few) <= MANY:
            return few
        return {log_id for some in chunks(among, MANY) for log_id in held.filter(log_id__in=some)}

    def due(self, upto: int) -> list[tuple[int, LogId]]:
        """Return the keys and logs of the events up to a position whose next attempt is due."""
        due = self.rows().filter(retry_at__lte=UTCNow(), position__lte=upto)
        return list(due.order_by("retry_at").values_list("pk", "log_id"))

    def is_held_by(self, waiting: ParkedEvent) -> bool:
        """Return whether a log is still held by this event."""
        return self.rows().filter(pk=waiting.pk, index=waiting.index).exists()

    def hold(self, row: StoredEvent) -> ParkedEvent:
        """Hold a log from this event on, and count an attempt that is about to be made."""
        return self._add(
            row,
            attempts=1,
            retry_at=self._later(1),
            error=IN_FLIGHT,
        )

    def hold_for_release(
        self, row: StoredEvent, mark: str, error: BaseException | None = None
    ) -> None:
        """Hold a log from this event on until a release can apply it; no attempt is counted."""
        name, details = _name_and_details(error)
        self._add(row, attempts=0, retry_at=None, error=name, details=details, awaits=mark)

    def wait_for_release(
        self, waiting: ParkedEvent, row: StoredEvent, mark: str, error: BaseException | None = None
    ) -> None:
        """
        Let a held log wait at ``row`` for another release; the current attempt does not count.

        Nothing is changed where a person has skipped the event, or asked for another attempt,
        meanwhile.
        """
        name, details = _name_and_details(error)
        self._as_counted(waiting).update(
            **_place_of(row),
            attempts=0,
            retry_at=None,
            awaits=mark,
            error=name,
            handler="",
            details=details,
            failed_at=UTCNow(),
        )

    def make_readable_due(self, reading: Reading) -> int:
        """
        Make the events due that wait for another release, and that this one may apply.

        Events that this process marked itself, beside the same releases, are left out. Return how
        many became due.
        """
        left = self.rows().exclude(awaits="").exclude(awaits=reading.mark)
        found = left.values_list("pk", "log_id", "type", "schema_version")
        ours = [
            pk
            for pk, log_id, name, version in found.iterator()
            if reading.verdict(log_id.log_type, name, version) is not HOLD
        ]
        due = {"attempts": 0, "retry_at": UTCNow(), "awaits": ""}
        return sum(left.filter(pk__in=some).update(**due) for some in chunks(ours, MANY))

    def hold_untried(self, row: StoredEvent) -> None:
        """Hold a log from this event on; its first attempt is due at once."""
        self._add(row, attempts=0, retry_at=UTCNow(), error="")

    def _add(self, row: StoredEvent, **state: Any) -> ParkedEvent:
        waiting = ParkedEvent(
            projection=self._name,
            is_rebuild=self._is_rebuild,
            log_id=row.log_id,
            **_place_of(row),
            first_failed_at=UTCNow(),
            failed_at=UTCNow(),
            **state,
        )
        waiting.save(using=self._using, force_insert=True)
        return waiting

    def begin_attempt(self, waiting: ParkedEvent) -> bool:
        """
        Count an attempt that is about to be made; return False after ``max_attempts`` of them.

        The event is parked then, unless a person has asked for another attempt at this moment.
        An event whose last attempt ended in a crash is parked here.
        """
        if waiting.attempts >= self._max_attempts:
            self.park(waiting)
            return False
        return self.count_attempt(waiting)

    def count_attempt(self, waiting: ParkedEvent) -> bool:
        """
        Count an attempt that is about to be made, on top of what is counted by now.

        Return False where a person has skipped the event meanwhile.
        """
        counted = self.rows().filter(pk=waiting.pk, index=waiting.index)
        if not counted.update(
            attempts=models.F("attempts") + 1,
            retry_at=self._later(waiting.attempts + 1),
            error=IN_FLIGHT,
            handler="",
        ):
            return False
        waiting.refresh_from_db(using=self._using, fields=["attempts", "retry_at", "error"])
        return True

    def uncount_attempt(self, waiting: ParkedEvent) -> bool:
        """
        Uncount an attempt in which the connection was lost; the event is due again soon.

        It is not due at once, so that other projections continue where the event ends each
        connection. Return False where that was done MAX_LOSSES times for this event: the attempt
        counts. Nothing is raised where the database does not answer yet. Nothing is uncounted
        where the event was skipped, or a person has asked for another attempt.
        """
        event = (self._using, waiting.pk, waiting.index)
        if _losses[event] >= MAX_LOSSES:
            return False
        _losses[event] += 1
        _lost_attempts.append(LostAttempt(*event, waiting.attempts, max(self._delay(1), REST)))
        if not connections[self._using].in_atomic_block:
            with suppress(Error):
                uncount_lost_attempts(self._using)
        return True

    def take_back_attempt(self, waiting: ParkedEvent) -> None:
        """
        Uncount an attempt that says nothing about the event; it is due again at once.

        Unlike a lost connection, that may happen any number of times: an event cannot cause it.
        """
        self._as_counted(waiting).update(
            attempts=models.F("attempts") - 1, retry_at=UTCNow(), error="", handler=""
        )

    def note_failure(self, waiting: ParkedEvent, error: BaseException, row: StoredEvent) -> None:
        """
        Note why the attempt failed at ``row``, and park the event where it was the last one.

        Nothing is changed where a person has skipped the event meanwhile, or has asked for it to
        be tried again, which resets its attempts.
        """
        name, details = _name_and_details(error)
        noted = self._as_counted(waiting).update(
            **_place_of(row),
            error=name,
            handler=handler_of(error),
            details=details,
            failed_at=UTCNow(),
            retry_at=self._later(waiting.attempts),
        )
        if not noted:
            return
        waiting.index, waiting.position, waiting.type = row.index, row.position, row.type
        waiting.error = name
        self._tell(EventFailed, waiting)
        trace = traceback_of(error)
        logger.warning(
            "Projection %s: the event at position %s of %s failed with %s, attempt %s of %s.%s",
            self._name,
            waiting.position,
            waiting.log_id,
            described(error),
            waiting.attempts,
            self._max_attempts,
            trace and f"\n{trace}",
        )
        if waiting.attempts >= self._max_attempts:
            self.park(waiting)

    def _as_counted(self, waiting: ParkedEvent) -> models.QuerySet[ParkedEvent]:
        """Return the row of an event, unless it was skipped or its attempts were reset."""
        return self.rows().filter(pk=waiting.pk, index=waiting.index, attempts=waiting.attempts)

    def park(self, waiting: ParkedEvent) -> None:
        """Park an event: it is not tried again before ``retry`` is called."""
        if not self._as_counted(waiting).update(retry_at=None):
            return
        waiting.retry_at = None
        self._tell(EventParked, waiting)
        logger.error(
            "Projection %s: the event at position %s of %s is parked after %s attempts; the later "
            "events of its log wait. Fix the cause, then run: manage.py eventlogs parked %s "
            "--retry %s",
            self._name,
            waiting.position,
            waiting.log_id,
            waiting.attempts,
            self._name,
            waiting.log_id,
        )

    def continue_with(self, following: StoredEvent | None, waiting: ParkedEvent) -> None:
        """
        Hold the log by its next event, due at once; None ends the hold.

        ``waiting`` is the event that was applied or skipped. It is not modified: the transaction
        may still be rolled back at its COMMIT, and the failure is noted with its attributes then.
        """
        held = ParkedEvent.objects.using(self._using).filter(pk=waiting.pk)
        if following is None:
            held.delete()
            return
        held.update(
            **_place_of(following),
            attempts=0,
            retry_at=UTCNow(),
            awaits="",
            error="",
            handler="",
            details="",
        )

    def skip(self, waiting: ParkedEvent, following: StoredEvent | None) -> None:
        """Skip the event permanently, and continue with the next one of its log."""
        SkippedEvent.objects.using(self._using).bulk_create(
            [skipped_event(waiting)], ignore_conflicts=True
        )
        logger.warning(
            "Projection %s: the event at position %s of %s is skipped permanently.",
            self._name,
            waiting.position,
            waiting.log_id,
        )
        self._tell(EventSkipped, waiting)
        self.continue_with(following, waiting)

    def retry(self, log_id: LogId | None = None, among: models.Q | None = None) -> int:
        """Make events due and reset their attempts; return how many there are."""
        found = self.rows() if among is None else self.rows().filter(among)
        if log_id is not None:
            found = found.filter(log_id=log_id)
        return found.update(attempts=0, retry_at=UTCNow(), awaits="")

    def make_due(self, waiting: ParkedEvent) -> None:
        """Make an event due now that waits for a retry; earlier attempts count."""
        self._as_counted(waiting).exclude(retry_at=None).update(retry_at=UTCNow())

    def skipped_positions(self, first: int, last: int) -> set[int]:
        """Return the positions from ``first`` to ``last`` that a person has said to skip."""
        found = SkippedEvent.objects.using(self._using).filter(
            projection=self._name, position__range=(first, last)
        )
        return set(found.values_list("position", flat=True))

    def _tell(self, kind: type[HeldEvent], waiting: ParkedEvent) -> None:
        if observers:
            tell_after_commit(
                kind(
                    projection=self._projection,
                    using=self._using,
                    log_id=waiting.log_id,
                    index=waiting.index,
                    position=waiting.position,
                    event_type=waiting.type,
                    error=waiting.error,
                )
            )

    def _later(self, attempts: int) -> Any:
        # By the database's clock, which decides what is due: this machine's may be ahead of it.
        return UTCNow() + self._delay(attempts)

    def _delay(self, attempts: int) -> timedelta:
        return timedelta(seconds=min(self._backoff * 2 ** min(attempts - 1, 30), LONGEST_WAIT))


def _name_and_details(error: BaseException | None) -> tuple[str, str]:
    if error is None:
        return "", ""
    return type(error).__qualname__[:MAX_ERROR], details_of(error)


def _place_of(row: StoredEvent) -> dict[str, Any]:
    """Return the fields of a ParkedEvent that say which event it is."""
    return {
        "index": row.index,
        "position": row.position,
        "type": row.type,
        "schema_version": row.schema_version,
    }


def uncount_lost_attempts(using: str) -> None:
    """
    Uncount the attempts in which connections to a database were lost.

    Raise the database's error where it does not answer; the next call tries again then.
    """
    for lost in [each for each in _lost_attempts if each.using == using]:
        # Another worker may have counted an attempt of its own meanwhile, or parked the event.
        counted = ParkedEvent.objects.using(using).filter(
            pk=lost.pk, index=lost.at, attempts__gte=lost.attempts
        )
        counted.update(
            attempts=models.F("attempts") - 1,
            retry_at=UTCNow() + lost.delay,
            error="",
            handler="",
        )
        with suppress(ValueError):  # another thread was faster: one attempt too many is uncounted
            _lost_attempts.remove(lost)


def skipped_event(waiting: ParkedEvent) -> SkippedEvent:
    """Return the row that says that a held event is skipped permanently."""
    return SkippedEvent(
        projection=waiting.projection,
        log_id=waiting.log_id,
        index=waiting.index,
        position=waiting.position,
        type=waiting.type,
        error=waiting.error,
        skipped_at=timezone.now(),
    )
