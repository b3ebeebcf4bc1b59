"""
Events that could not be applied: tried again, then parked, with their log's later events held.

While an event of a log waits here, the log is *held*: its later events are passed over, and
taken up from the log itself when the event has been applied or skipped. Other logs go on.

An event that this release does not know, or not in its version, is *left* to other code: its log
is held, without an attempt, until a process can apply it (see ``releases.py``).

An attempt is counted before it is made, in a transaction of its own. So the events that kill
their worker are counted as well, and do not kill one worker after the other for ever.

A worker that outlives the loss of its connection (a failover, a restart of the server) gives the
attempt back: the loss says nothing about the event in hand. Where the database does not answer
yet, it does so later, see ``pay_back``. It does so MAX_LOSSES times for one event: an event that
always ends its connection, e.g. by a statement that kills its server process, is parked as well.
"""

from __future__ import annotations

import logging
import sysconfig
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NamedTuple

from django.db import Error, connections, models
from django.db.models.functions import Now
from django.utils import timezone

from eventlogs.ids import LogId
from eventlogs.models import ParkedEvent, SkippedEvent
from eventlogs.projections.error_text import described, traceback_of
from eventlogs.projections.releases import HOLD, Reading
from eventlogs.projections.rows import chunks
from eventlogs.values import StoredEvent

logger = logging.getLogger("eventlogs.projections")

LONGEST_WAIT: Final = 300.0  # seconds until the next attempt
MAX_DETAILS: Final = 10_000  # characters
MANY: Final = 500  # held logs, up to which all of them are read
IN_FLIGHT: Final = "a crash"  # what is there to be read while, and if, an attempt does not end

MAX_LOSSES: Final = 25  # attempts at one event that are given back, in one process
REST: Final = timedelta(seconds=1)  # before the next one: a worker that waited has other work

NOT_A_HANDLER: Final = frozenset({"eventlogs", "django"})  # packages
LIBRARIES: Final = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


class Debt(NamedTuple):
    """An attempt that is to be given back: of which event, and which attempt it was."""

    using: str
    pk: int
    at: int  # the event's index
    attempts: int
    delay: timedelta  # until the event is tried again


_debts: list[Debt] = []
_losses: Counter[tuple[str, int, int]] = Counter()  # by database, key and index of an event


class Parking:
    """The events that wait of one projection (or of its rebuild)."""

    def __init__(
        self, name: str, using: str, *, is_rebuild: bool, max_attempts: int, backoff: float
    ) -> None:
        self._name = name
        self._using = using
        self._is_rebuild = is_rebuild
        self._max_attempts = max_attempts
        self._backoff = backoff

    def rows(self) -> models.QuerySet[ParkedEvent]:
        """Return all that wait, parked or not."""
        return ParkedEvent.objects.using(self._using).filter(
            projection=self._name, is_rebuild=self._is_rebuild
        )

    def held(self, among: Iterable[LogId] | None = None) -> set[LogId]:
        """Return the logs that are held; of many, those among some logs."""
        held = self.rows().values_list("log_id", flat=True)
        few = set(held if among is None else held[: MANY + 1])
        if among is None or len(few) <= MANY:
            return few
        return {log_id for some in chunks(among, MANY) for log_id in held.filter(log_id__in=some)}

    def due(self, upto: int) -> list[tuple[int, LogId]]:
        """Return the keys and logs of the events up to a position that it is time to try again."""
        due = self.rows().filter(retry_at__lte=Now(), position__lte=upto)
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

    def leave(self, row: StoredEvent, mark: str, error: BaseException | None = None) -> None:
        """Hold a log from this event on until there is code that can apply it; no attempt."""
        name, details = _left(error)
        self._add(row, attempts=0, retry_at=None, error=name, details=details, awaits=mark)

    def leave_again(
        self, waiting: ParkedEvent, row: StoredEvent, mark: str, error: BaseException | None = None
    ) -> None:
        """
        Let an event that is held wait for other code; the attempt that found it out is none.

        It may be another one of its log than before. Nothing, where somebody has skipped it or
        asked for it to be tried again meanwhile.
        """
        name, details = _left(error)
        self._as_counted(waiting).update(
            index=row.index,
            position=row.position,
            type=row.type,
            schema_version=row.schema_version,
            attempts=0,
            retry_at=None,
            awaits=mark,
            error=name,
            handler="",
            details=details,
            failed_at=Now(),
        )

    def take_up(self, reading: Reading) -> int:
        """
        Make the events due that were left to other code, and that this code may apply.

        Those are looked at that another process has left, or this one when it ran beside other
        releases. Return how many became due.
        """
        left = self.rows().exclude(awaits="").exclude(awaits=reading.mark)
        found = left.values_list("pk", "log_id", "type", "schema_version")
        ours = [
            pk
            for pk, log_id, name, version in found.iterator()
            if reading.verdict(log_id.log_type, name, version) is not HOLD
        ]
        due = {"attempts": 0, "retry_at": Now(), "awaits": ""}
        return sum(left.filter(pk__in=some).update(**due) for some in chunks(ours, MANY))

    def set_aside(self, row: StoredEvent) -> None:
        """Hold a log from this event on, whose first attempt is due at once."""
        self._add(row, attempts=0, retry_at=Now(), error="")

    def _add(self, row: StoredEvent, **state: Any) -> ParkedEvent:
        waiting = ParkedEvent(
            projection=self._name,
            is_rebuild=self._is_rebuild,
            log_id=row.log_id,
            index=row.index,
            position=row.position,
            type=row.type,
            schema_version=row.schema_version,
            first_failed_at=Now(),
            failed_at=Now(),
            **state,
        )
        waiting.save(using=self._using, force_insert=True)
        return waiting

    def begin(self, waiting: ParkedEvent) -> bool:
        """
        Count an attempt that is about to be made; return False where there were enough.

        The event is parked then. So it is with one whose last attempt ended in a crash. It is
        not, where somebody has asked at this moment for it to be tried again.
        """
        if waiting.attempts >= self._max_attempts:
            self._park(waiting)
            return False
        return self.count(waiting)

    def count(self, waiting: ParkedEvent) -> bool:
        """
        Count an attempt that is about to be made, on top of what is counted by now.

        Return False where somebody has skipped the event meanwhile.
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

    def give_back(self, waiting: ParkedEvent) -> bool:
        """
        Take an attempt back in which the connection was lost; the event is due again soon.

        Not at once: other projections go on in between where the event ends each connection.
        Return False where that was done too often for this event: the attempt counts. Nothing is
        raised where the database does not answer yet. The event is not given its
        attempt back where it was skipped, or somebody has asked for it to be tried again.
        """
        event = (self._using, waiting.pk, waiting.index)
        if _losses[event] >= MAX_LOSSES:
            return False
        _losses[event] += 1
        _debts.append(Debt(*event, waiting.attempts, max(self._delay(1), REST)))
        if not connections[self._using].in_atomic_block:
            with suppress(Error):
                pay_back(self._using)
        return True

    def failed(self, waiting: ParkedEvent, error: BaseException, row: StoredEvent) -> None:
        """
        Note why the attempt failed at ``row``, and park the event where it was the last one.

        Nothing, where somebody has skipped it meanwhile; and where somebody has asked for it to
        be tried again, it is, with all of its attempts before it.
        """
        name = type(error).__qualname__[:200]
        noted = self._as_counted(waiting).update(
            index=row.index,
            position=row.position,
            type=row.type,
            schema_version=row.schema_version,
            error=name,
            handler=handler_of(error),
            details=_details(error),
            failed_at=Now(),
            retry_at=self._later(waiting.attempts),
        )
        if not noted:
            return
        waiting.index, waiting.position, waiting.type = row.index, row.position, row.type
        waiting.error = name
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
            self._park(waiting)

    def _as_counted(self, waiting: ParkedEvent) -> models.QuerySet[ParkedEvent]:
        """Return the row of an event, unless it was skipped, or its attempts are counted anew."""
        return self.rows().filter(pk=waiting.pk, index=waiting.index, attempts=waiting.attempts)

    def _park(self, waiting: ParkedEvent) -> None:
        if not self._as_counted(waiting).update(retry_at=None):
            return
        waiting.retry_at = None
        logger.error(
            "Projection %s: the event at position %s of %s is parked after %s attempts; the later "
            "events of its log wait. Mend the cause, then run: manage.py eventlogs parked %s "
            "--retry %s",
            self._name,
            waiting.position,
            waiting.log_id,
            waiting.attempts,
            self._name,
            waiting.log_id,
        )

    def release(self, waiting: ParkedEvent, following: StoredEvent | None) -> None:
        """
        The event is applied: go on with the one that waits behind it, or let the log go.

        ``waiting`` stays as it is: the transaction may still be taken back at its COMMIT, and
        then the failure is noted by what is in ``waiting``.
        """
        held = ParkedEvent.objects.using(self._using).filter(pk=waiting.pk)
        if following is None:
            held.delete()
            return
        held.update(
            index=following.index,
            position=following.position,
            type=following.type,
            schema_version=following.schema_version,
            attempts=0,
            retry_at=Now(),
            awaits="",
            error="",
            handler="",
            details="",
        )

    def skip(self, waiting: ParkedEvent, following: StoredEvent | None) -> None:
        """Pass over the event for good."""
        SkippedEvent.objects.using(self._using).bulk_create(
            [skipped_event(waiting)], ignore_conflicts=True
        )
        logger.warning(
            "Projection %s: the event at position %s of %s is skipped for good.",
            self._name,
            waiting.position,
            waiting.log_id,
        )
        self.release(waiting, following)

    def try_again(self, log_id: LogId | None = None, among: models.Q | None = None) -> int:
        """Make events due, with all of their attempts before them; return how many."""
        found = self.rows() if among is None else self.rows().filter(among)
        if log_id is not None:
            found = found.filter(log_id=log_id)
        return found.update(attempts=0, retry_at=Now(), awaits="")

    def hurry(self, waiting: ParkedEvent) -> None:
        """Make an event due now that waits for another attempt; the attempts before it count."""
        self._as_counted(waiting).exclude(retry_at=None).update(retry_at=Now())

    def skipped(self, first: int, last: int) -> set[int]:
        """Return the positions, of those between two, that a person has said to skip."""
        found = SkippedEvent.objects.using(self._using).filter(
            projection=self._name, position__range=(first, last)
        )
        return set(found.values_list("position", flat=True))

    def _later(self, attempts: int) -> Any:
        # By the clock that says what is due: another one may be ahead of it.
        return Now() + self._delay(attempts)

    def _delay(self, attempts: int) -> timedelta:
        return timedelta(seconds=min(self._backoff * 2 ** min(attempts - 1, 30), LONGEST_WAIT))


def _left(error: BaseException | None) -> tuple[str, str]:
    if error is None:
        return "", ""
    return type(error).__qualname__[:200], _details(error)


def pay_back(using: str) -> None:
    """
    Give back the attempts that are owed to events of a database.

    Raise the database's error where it does not answer; they stay owed then.
    """
    for debt in [each for each in _debts if each.using == using]:
        # Another worker may have counted its own on top, or parked the event for it.
        owed = ParkedEvent.objects.using(using).filter(
            pk=debt.pk, index=debt.at, attempts__gte=debt.attempts
        )
        owed.update(
            attempts=models.F("attempts") - 1,
            retry_at=Now() + debt.delay,
            error="",
            handler="",
        )
        with suppress(ValueError):  # another thread was faster: one attempt too many, no more
            _debts.remove(debt)


def skipped_event(waiting: ParkedEvent) -> SkippedEvent:
    """Return the row that says that a held event is passed over for good."""
    return SkippedEvent(
        projection=waiting.projection,
        log_id=waiting.log_id,
        index=waiting.index,
        position=waiting.position,
        type=waiting.type,
        error=waiting.error,
        skipped_at=timezone.now(),
    )


def handler_of(error: BaseException) -> str:
    """
    Return the name of the function of the project's own code that raised an error, or "".

    It is the innermost frame that is neither of this package nor of an installed library. Where
    the project is an installed library itself, it is the function that this package called.
    """
    frames = [
        frame
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in NOT_A_HANDLER
    ]
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith(LIBRARIES)]
    if not frames:
        return ""
    code = (own[-1] if own else frames[0]).f_code
    # Without what has no name of its own: "captured.<locals>.<lambda>" is captured.
    named = [part for part in code.co_qualname.split(".") if not part.startswith("<")]
    return named[-1][:200] if named else ""


def _details(error: BaseException) -> str:
    # Neither a nul nor half of a surrogate pair is in any text of a database's.
    lines: Iterator[str] = traceback.TracebackException.from_exception(error).format()
    text = "".join(lines).replace("\0", "�")
    return text.encode(errors="backslashreplace").decode()[-MAX_DETAILS:]
