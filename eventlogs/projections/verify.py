"""
Verification: rows are compared with a replay of their logs.

Logs are looked at in chunks that fit into memory. All that concerns a chunk is read in one
snapshot: checkpoints, declared releases, what waits, what was skipped, applied versions, rows and
events. Then the events are replayed and compared, with no transaction open. Long logs are looked at
one by one, a page at a time, as are archived logs and repaired rows: first without a lock, with the
row and the checkpoint of one snapshot, and where the row differs, again under the lock of its
writers.

Why no right row is reported, beside workers and appends. Each transaction that changes a row also
stores how far the row is: a worker moves its checkpoint, an append and an inline rebuild
store the applied version, and both store what is held. A snapshot shows all of a transaction or
nothing of it. So each row is compared with the events that its own transaction says are in it.
The same holds for a release beside this one: it declares itself before it changes its first row. A
rebuild lets another table take the place of the rows; on PostgreSQL the table is locked
(ACCESS SHARE, as each SELECT does) before the snapshot is taken, so that this does not come
between.

Why no wrong row is passed over. A row that is reported as right is equal to the replay of its log
at the moment of its chunk's snapshot. Each log that was there at the beginning is in a chunk, is
counted in ``held``, or is listed in ``failed``. A row that goes wrong after its chunk is found by
the next verification.

Inside a caller's transaction the snapshot is the caller's. Under READ COMMITTED it is another one
for each statement, so there a difference is looked at again under the lock before it is reported.
A row that changes in that moment may be compared with what it was before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import (
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    connections,
    transaction,
)
from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast

from eventlogs.archives import listing
from eventlogs.exceptions import (
    KeyUnavailable,
    ProjectionFailed,
    ProjectionUnavailable,
    TransactionMustRetry,
)
from eventlogs.feed import scans
from eventlogs.feed.reader import Feed
from eventlogs.feed.scans import LogRow
from eventlogs.feed.sources import partition_of
from eventlogs.ids import LogId
from eventlogs.models import Checkpoint, Event, EventLog, ProjectionState
from eventlogs.projections import checkpoints, inline, mysql, replays, starting
from eventlogs.projections.base import Failed, RowProjection
from eventlogs.projections.constraints import failure
from eventlogs.projections.held_logs import HeldLogs
from eventlogs.projections.log_events import pages_of
from eventlogs.projections.releases import Reading, reading_of_rows
from eventlogs.projections.replays import NONE, Replayer
from eventlogs.projections.rows import differences, upsert
from eventlogs.stores.bulk_reads import whole_logs
from eventlogs.stores.retries import in_transaction
from eventlogs.values import EventRecord, StoredEvent

NEAR, DRAWN = 200, 10  # draw at most 10 logs from those of 200 consecutive events
TRIES: Final = 4  # times as many draws as needed: some logs are drawn twice
EVERYTHING: Final = 2**63 - 1  # the highest position
LOGS_AT_ONCE: Final = 500  # of one snapshot
EVENTS_AT_ONCE: Final = 5_000  # of all of them
ARCHIVED_AT_ONCE: Final = 200  # archived logs that are looked at together

# Errors of the database, which no event causes.
TROUBLES: Final = (OperationalError, InterfaceError, InternalError, TransactionMustRetry)


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that differs from its log; ``fields`` are the names, never the values."""

    log_id: LogId
    fields: tuple[str, ...]
    is_repaired: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """
    A log whose row could not be compared: an event of it cannot be replayed.

    ``error`` is the name of the error's class, ``position`` that of the event, or None where it
    is not known which one it is.
    """

    log_id: LogId
    error: str
    position: int | None


@dataclass(frozen=True, slots=True)
class Verification:
    """
    The number of logs that were compared, and the differences.

    ``held`` is how many of them were compared only up to an event that is parked or waits, without
    the events after it. ``failed`` are those that could not be compared.
    """

    checked: int
    differences: tuple[Difference, ...]
    held: int = 0
    failed: tuple[Failure, ...] = ()

    def __bool__(self) -> bool:
        """Whether all was compared, and nothing differs that is not repaired."""
        return not self.failed and all(each.is_repaired for each in self.differences)


def verify_rows(
    projection: type[RowProjection], *, sample: int | None, repair: bool, using: str | None = None
) -> Verification:
    """See ``RowOperations.verify``."""
    run = Run(projection, sample=sample, repair=repair, using=using)
    found = list(run.findings())
    return Verification(
        run.checked,
        tuple(each for each in found if isinstance(each, Difference)),
        run.held,
        tuple(each for each in found if isinstance(each, Failure)),
    )


def sum_of(found: Iterable[Verification]) -> Verification:
    """Return the verification of several databases."""
    each = tuple(found)
    return Verification(
        sum(one.checked for one in each),
        tuple(difference for one in each for difference in one.differences),
        sum(one.held for one in each),
        tuple(failure for one in each for failure in one.failed),
    )


class Moment(NamedTuple):
    """One snapshot of some logs, and of their rows."""

    reading: Reading
    events: Mapping[LogId, Sequence[StoredEvent]]
    rows: Mapping[LogId, Any]
    skipped: Mapping[LogId, set[int]]
    waiting: Mapping[LogId, tuple[int, int]]  # index and position of the event that holds a log
    applied: Mapping[LogId, tuple[int, int]]  # version and made_by, of inline rows
    positions: Mapping[int, int]  # of the checkpoints, by partition
    partitions: int

    def in_row(self, log_id: LogId) -> tuple[Sequence[StoredEvent], bool]:
        """Return the events that are in the row of a log, and whether others are held back."""
        events, waiting = self.events[log_id], self.waiting.get(log_id)
        known = self.applied.get(log_id)
        if known is not None:
            version = known[0]
            is_held = waiting is not None and version <= waiting[0]
            return events[:version] if version <= len(events) else (), is_held
        upto = self.positions.get(partition_of(log_id.uuid, self.partitions), 0)
        if events and events[-1].position > upto:
            events = [row for row in events if row.position <= upto]
        if waiting is None or waiting[1] > upto:
            return events, False
        return [row for row in events if row.index < waiting[0]], True


class Run:
    """
    One verification of the rows of ``projection``.

    ``checked`` and ``held`` are numbers of logs as in Verification, ``failed`` and ``differences``
    of the findings so far.
    """

    def __init__(
        self,
        projection: type[RowProjection],
        *,
        sample: int | None = None,
        repair: bool = False,
        after: LogId | None = None,
        log_types: Collection[str] = (),
        using: str | None = None,
    ) -> None:
        """
        Compare ``sample`` random logs (None: all logs, and look for rows without a log).

        ``after`` leaves out the logs up to that one, ``log_types`` keeps some (empty: all). With
        either of them, rows without a log are not looked for.

        Raise ProjectionUnavailable where several logs share a row, or a newer release has made
        the rows.
        """
        self.projection = projection
        self.checked = self.held = self.failed = self.differences = 0
        self._using = projection.database_alias(using=using)
        self._sample = sample
        self._repair = repair
        self._after = after
        self._is_limited = bool(log_types) or after is not None
        self._log_types = projection.log_types_read()
        if log_types and self._log_types is not None:
            self._log_types = [each for each in self._log_types if each in log_types]
        elif log_types:
            self._log_types = list(log_types)
        if projection.has_shared_rows():
            raise ProjectionUnavailable("shared rows", projection=projection.name)
        starting.begin(projection, self._using)

    def total(self) -> int:
        """Return about how many logs there are to look at."""
        if self._sample is not None:
            return self._sample
        archived = listing.archived_logs(self._using, log_types=self._log_types)
        if self._after is not None:
            archived = archived.filter(pk__gt=self._after.uuid)
        return int(self._wanted().count() + archived.count())

    def findings(
        self, tell: Callable[[int], object] = lambda count: None
    ) -> Iterator[Difference | Failure]:
        """
        Yield what differs, and what cannot be compared, as it is found.

        ``tell`` is called with how many logs were looked at since the last call. Raise
        ProjectionUnavailable as ``RowOperations.verify`` does.
        """
        for found in self._found(tell):
            self.failed += isinstance(found, Failure)
            self.differences += isinstance(found, Difference)
            yield found

    def _found(self, tell: Callable[[int], object]) -> Iterator[Difference | Failure]:
        for some in in_chunks(self._logs(), LOGS_AT_ONCE, EVENTS_AT_ONCE):
            if some[0].version > scans.PAGE:
                yield from self._one(some[0].log_id)
            else:
                yield from self._many(some)
            self.checked += len(some)
            tell(len(some))
        if self._sample is None:
            yield from self._archived(tell)
        if self._is_limited:
            return
        if self._sample is None or self.checked < self._sample:  # then all logs were looked at
            for log_id in _strays(self.projection, self._using):
                yield from self._again(log_id)

    def _archived(self, tell: Callable[[int], object]) -> Iterator[Difference | Failure]:
        """
        Look at archived logs, many at a time.

        Their events do not change, so a row that is equal to their replay is right at the moment
        at which it was read. Every other log is looked at alone.
        """
        cls, using = self.projection, self._using
        after = None if self._after is None else self._after.uuid
        ids = listing.ids_in_order(using, after=after, log_types=self._log_types)
        while some := list(islice(ids, ARCHIVED_AT_ONCE)):
            projection = cls()
            replayer = Replayer(projection, reading_of_rows(cls, using), using)
            skipped = replays.skipped_of(cls.name, some, using)
            short = listing.events_of(using, some)
            rows = cls.model._base_manager.using(using).in_bulk(some)
            for log_id in some:
                try:
                    events = short[log_id]
                    wanted, _ = replayer.row(log_id, events, skipped.get(log_id, NONE))
                    is_right = not _compared(projection, rows.get(log_id), wanted, events, using)
                except (KeyError, Failed, KeyUnavailable):
                    is_right = False
                if not is_right:
                    yield from self._again(log_id)
            self.checked += len(some)
            tell(len(some))

    def _logs(self) -> Iterator[LogRow]:
        if self._log_types == []:
            return
        if self._sample is not None:
            yield from map(LogRow.of, _some(self._wanted(), self._sample, self._using))
            return
        after = None if self._after is None else self._after.uuid
        for page in scans.logs_by_id(self._using, after=after, log_types=self._log_types or ()):
            yield from page

    def _wanted(self) -> QuerySet[EventLog]:
        logs: QuerySet[EventLog] = EventLog.objects.using(self._using)
        if self._log_types is not None:
            logs = logs.filter(log_type__in=self._log_types)
        return logs if self._after is None else logs.filter(pk__gt=self._after.uuid)

    def _many(self, logs: Sequence[LogRow]) -> Iterator[Difference | Failure]:
        """Look at logs many at a time: as many as fit into memory."""
        rest = {log.log_id: log.version for log in logs}
        while rest:
            moment = self._moment(rest)
            if not moment.events:
                log_id = next(iter(rest))
                del rest[log_id]
                yield from self._one(log_id)
                continue
            for log_id in moment.events:
                del rest[log_id]
            yield from self._compare(moment)

    def _compare(self, moment: Moment) -> Iterator[Difference | Failure]:
        """Look at the logs of one snapshot."""
        projection, using = self.projection(), self._using
        connection = connections[using]
        is_certain = not in_transaction(connection) or connection.vendor == "sqlite"
        replayer = Replayer(projection, moment.reading, using)
        for log_id in moment.events:
            if not moment.events[log_id]:  # it was archived or erased since its row was read
                yield from self._again(log_id)
                continue
            events, is_held = moment.in_row(log_id)
            self.held += is_held
            try:
                wanted, _ = replayer.row(log_id, events, moment.skipped.get(log_id, NONE))
                fields = _compared(projection, moment.rows.get(log_id), wanted, events, using)
            except Failed as failed:
                yield _failure(log_id, failed.error, failed.position)
                continue
            except KeyUnavailable as error:
                yield _failure(log_id, error, None)
                continue
            if not fields:
                continue
            if is_certain and not self._repair:
                yield Difference(log_id, tuple(fields))
            else:
                yield from self._again(log_id)

    def _moment(self, versions: Mapping[LogId, int]) -> Moment:
        while (moment := self._seen(versions)) is None:
            # The projection has changed meanwhile. Raise the error that says so, or look again.
            starting.begin(self.projection, self._using)
        return moment

    def _seen(self, versions: Mapping[LogId, int]) -> Moment | None:
        cls, using = self.projection, self._using
        rows = cls.model._base_manager.using(using)
        with snapshot(cls, using):
            states = ProjectionState.objects.using(using).filter(name=cls.name)
            state = states.first()
            if state is None or state.mode != cls.mode or state.version > cls.version:
                return None
            found = Checkpoint.objects.using(using).filter(projection=cls.name, is_rebuild=False)
            positions = dict(found.values_list("partition", "position"))
            events = whole_logs(using, versions)
            log_ids = list(events)
            applied = self._applied_versions(log_ids) if cls.mode == cls.INLINE else {}
            waiting = HeldLogs(cls, using).rows().filter(log_id__in=log_ids)
            moment = Moment(
                reading=reading_of_rows(cls, using),
                events=events,
                rows={row.pk: row for row in rows.filter(pk__in=log_ids)},
                skipped=replays.skipped_of(cls.name, log_ids, using),
                waiting={
                    log_id: (index, position)
                    for log_id, index, position in waiting.values_list(
                        "log_id", "index", "position"
                    )
                },
                applied=applied,
                positions=positions,
                partitions=len(positions) or 1,
            )
        if any(made_by > cls.version for _, made_by in applied.values()):
            raise ProjectionUnavailable("newer", projection=cls.name)
        return moment

    def _applied_versions(self, log_ids: Sequence[LogId]) -> dict[LogId, tuple[int, int]]:
        by_text = {str(each): each for each in log_ids}
        as_text = Cast("log_id", TextField())  # parsing the ids would take longer than reading them
        found = inline.applied_versions(self.projection.name, self._using).filter(
            log_id__in=log_ids
        )
        return {
            by_text[text]: (version, made_by)
            for text, version, made_by in found.values_list(as_text, "version", "made_by")
        }

    def _one(self, log_id: LogId) -> Iterator[Difference | Failure]:
        """Look at a long log, a page at a time."""
        waiting = HeldLogs(self.projection, self._using).rows().filter(log_id=log_id)
        self.held += waiting.exists()
        yield from self._again(log_id)

    def _again(self, log_id: LogId) -> Iterator[Difference | Failure]:
        try:
            difference = _look(self.projection, log_id, self._using, repair=self._repair)
        except ProjectionFailed as failed:
            yield _failure(log_id, failed.__cause__ or failed, failed.position or None)
        except (Exception, SystemExit) as error:
            yield _failure(log_id, error, None)
        else:
            if difference is not None:
                yield difference


def _failure(log_id: LogId, error: BaseException, position: int | None) -> Failure:
    """Return the Failure of a log that cannot be replayed; raise errors that no event causes."""
    if isinstance(error, (ProjectionUnavailable, *TROUBLES)):
        raise error
    return Failure(log_id, type(error).__qualname__, position)


def _compared(
    projection: RowProjection, stored: Any, wanted: Any, events: Sequence[StoredEvent], using: str
) -> list[str]:
    try:
        return differences(projection.model, stored, wanted, using)
    except Exception as error:  # a handler has set a value that the column does not take
        raise Failed(events[-1].position if events else None, error) from error


@contextmanager
def snapshot(projection: type[RowProjection], using: str) -> Iterator[None]:
    """Read as of one moment, in which no rebuild lets another table take the rows' place."""
    connection = connections[using]
    is_ours = not in_transaction(connection)
    with scans.a_moment(using):
        if is_ours and connection.vendor == "postgresql":
            table = connection.ops.quote_name(projection.model._meta.db_table)
            with connection.cursor() as cursor:
                # It takes no snapshot: https://www.postgresql.org/docs/current/sql-lock.html
                cursor.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
        yield


def in_chunks(logs: Iterable[LogRow], most: int, events: int) -> Iterator[list[LogRow]]:
    """Yield logs many at a time, with about ``events`` events; each long one alone."""
    some: list[LogRow] = []
    count = 0
    for log in logs:
        if log.version > scans.PAGE:
            yield [log]
            continue
        if some and (len(some) == most or count + log.version > events):
            yield some
            some, count = [], 0
        some.append(log)
        count += log.version
    if some:
        yield some


def replay(projection: RowProjection, log_id: LogId, using: str, *, upto: int) -> tuple[Any, int]:
    """
    Return the row that a log should have at a position, and the number of events it is made of.

    Raise ProjectionFailed where an event cannot be applied, and UnknownEventType,
    UndecodableEvent or ProjectionUnavailable where another release has to apply it.
    """
    count = 0

    def counted() -> Iterator[EventRecord]:
        nonlocal count
        for record in records(projection, log_id, using, upto=upto):
            count += 1
            yield record

    try:
        return projection.row_of(log_id, counted(), using), count
    except Failed as failed:
        raise ProjectionFailed(projection.name, log_id, failed.position or 0) from failed.error


def records(
    projection: RowProjection, log_id: LogId, using: str, *, upto: int
) -> Iterator[EventRecord]:
    """Yield the records of a log that are in its row, if the row is at a position."""
    reading, feed = reading_of_rows(type(projection), using), Feed(using=using)
    waiting = HeldLogs(projection, using).rows().filter(log_id=log_id).first()
    versions = inline.applied_versions(projection.name, using).filter(log_id=log_id)
    if projection.is_inline and versions.exists():
        waiting = None  # the version decides which events are in the row
    skipped = replays.skipped_of(projection.name, [log_id], using).get(log_id, NONE)
    for page in pages_of(log_id, 0, using):
        for row in page:
            if row.position > upto or (waiting is not None and row.index >= waiting.index):
                return
            # An event that is held is not to be compared: another release may have applied it.
            if row.index not in skipped and reading.takes(row):
                yield from feed.records([row])


def upto_of(log_id: LogId, upto: int, using: str) -> int:
    """
    Return the position up to which a log's events are in its row, if the projection is at one.

    All events of an archived log are: it was archived after all projections had read them, and the
    feed may end before them since. Up to its last event, and no further: the log may come back,
    and get another event, before its events are read.
    """
    archived = listing.archived_logs(using, log_types=[log_id.log_type]).filter(pk=log_id.uuid)
    last: int | None = archived.values_list("last_position", flat=True).first()
    return upto if last is None else max(upto, last)


def put_right(projection: RowProjection, log_id: LogId, row: Any, using: str) -> None:
    """
    Store the row that a log should have, or that it has none.

    Raise ProjectionFailed where the database refuses the row.
    """
    if row is None:
        projection.model._base_manager.using(using).filter(pk=log_id).delete()
        return
    last = Event.objects.using(using).for_log(log_id).order_by("-index")
    try:
        with transaction.atomic(using=using):
            upsert(projection.model, [row], using)
    except (IntegrityError, DataError) as error:
        position = last.values_list("position", flat=True).first() or 0
        raise failure(projection, log_id, position, error, using) from error


def put_all_right(projection: RowProjection, rows: Mapping[LogId, Any], using: str) -> None:
    """Do what ``put_right`` does, for the rows of many logs, in the transaction that is open."""
    gone = [log_id for log_id, row in rows.items() if row is None]
    if gone:
        projection.model._base_manager.using(using).filter(pk__in=gone).delete()
    try:
        with transaction.atomic(using=using):
            upsert(projection.model, [row for row in rows.values() if row is not None], using)
    except (IntegrityError, DataError):
        for log_id, row in rows.items():  # one of them is refused: which one?
            put_right(projection, log_id, row, using)


def at_rest(stack: ExitStack, projection: RowProjection, log_id: LogId, using: str) -> int:
    """Keep a log's row from changing, until the stack ends; return the position that it is at."""
    if projection.is_inline:
        stack.enter_context(transaction.atomic(using=using))
        version = inline.lock_log(log_id, using)
        mysql.refuse_old_snapshot(log_id, version, using)
        return EVERYTHING
    starting.begin(type(projection), using)
    checkpoint = stack.enter_context(checkpoints.locked(projection.name, log_id, using=using))
    return checkpoint.position


def _look(
    cls: type[RowProjection], log_id: LogId, using: str, *, repair: bool
) -> Difference | None:
    projection = cls()
    manager = projection.model._base_manager.using(using)
    # Compare without a lock first: most rows are right, and nothing has to wait.
    if not projection.is_inline:
        starting.begin(cls, using)
        with snapshot(cls, using):
            positions = checkpoints.positions(projection.name, using)
            stored = manager.filter(pk=log_id).first()
        upto = positions.get(partition_of(log_id.uuid, len(positions) or 1), 0)
        upto = upto_of(log_id, upto, using)
        wanted, _ = replay(projection, log_id, using, upto=upto)
        if not differences(projection.model, stored, wanted, using):
            return None
    with ExitStack() as stack:
        upto = at_rest(stack, projection, log_id, using)
        if projection.is_inline:
            inline.refuse_newer(projection, log_id, using)
        stored = mysql.latest(manager.filter(pk=log_id), using).first()
        upto = upto_of(log_id, _applied(projection, log_id, upto, using), using)
        wanted, _ = replay(projection, log_id, using, upto=upto)
        fields = differences(projection.model, stored, wanted, using)
        if not fields:
            return None
        if repair:
            put_right(projection, log_id, wanted, using)
            if projection.is_inline:
                made_by = inline.applied_versions(projection.name, using).filter(log_id=log_id)
                made_by.update(made_by=projection.version)
        return Difference(log_id, tuple(fields), repair)


def _applied(projection: RowProjection, log_id: LogId, upto: int, using: str) -> int:
    """Return the position of an inline row: events after it are no difference."""
    if not projection.is_inline:
        return upto
    versions = inline.applied_versions(projection.name, using).filter(log_id=log_id)
    known = mysql.latest(versions, using).first()
    if known is None:  # a worker applied it from the feed, up to there
        return checkpoints.position(projection.name, using)
    page = next(pages_of(log_id, known.version - 1, using), None)
    return page[0].position if page else 0


def _some(logs: QuerySet[EventLog], count: int, using: str) -> Iterator[EventLog]:
    """
    Yield ``count`` random logs, or all if there are no more.

    Those with many events come more often: they are drawn by a position, not by an id, because
    positions are dense, and ids come in clumps.
    """
    few = list(logs.order_by("pk")[: count + 1])
    if len(few) <= count:
        yield from few
        return
    events = Event.objects.using(using).order_by("position")
    last = events.values_list("position", flat=True).last() or 0
    seen: set[UUID] = set()
    for _ in range(TRIES * count // DRAWN + TRIES):
        near = events.filter(position__gte=random.randint(1, last))[:NEAR]
        met = list(logs.filter(pk__in={*near.values_list("log_id", flat=True)} - seen))
        for log in random.sample(met, min(DRAWN, len(met))):
            if len(seen) == count:
                return
            seen.add(log.pk)
            yield log


def _strays(projection: type[RowProjection], using: str) -> Iterator[LogId]:
    """Yield the log ids of rows whose log does not exist, and is not archived."""
    rows = projection.model._base_manager.using(using).order_by("pk")
    after, logs = "", EventLog.objects.using(using)
    while keys := list(rows.filter(pk__gt=after).values_list("pk", flat=True)[:500]):
        after = keys[-1]
        known = set(logs.filter(pk__in=[key.uuid for key in keys]).values_list("pk", flat=True))
        known.update(each.uuid for each in listing.archived_among(using, keys))
        yield from (key for key in keys if key.uuid not in known)
