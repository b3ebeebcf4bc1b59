"""
Projections that are inline: their rows change in the append's own transaction.

For each log, the version of it that is in the row is stored (AppliedVersion). An append continues
from there, and not from its own first event: so events that were appended without the projection
(by a process with older code, by an import) are applied by the next append to that log, or by a
worker that goes through the feed, whichever is first. A row whose version is not known, e.g.
because the projection was not inline before, is rebuilt from the log's start.

The version of the *projection* that has made the row is stored, too. Code of an older version does
not touch it: its append fails, and says that a deployment is under way. This is checked in
each append, under the lock of the log: a rebuild, too, makes each row under that lock. A row that
is older than the last rebuild (an old process made it at the rebuild's end) is rebuilt.

Why it is right: each transaction that changes a row holds the lock on the log's row in
eventlogs_eventlog until its end. An append has it anyway. So for one log all of this happens
one after the other, and a version only grows. A worker never waits for the lock of one log while
it holds another's, and so is part of no deadlock: it takes one log in each transaction, or many
that no other transaction has locked (see ``inline_bulk.py``). The stored state of a projection, for
which transactions may wait as well, is made before an append locks its log (``prepare``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple
from uuid import UUID

from django.db import (
    Error,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.models import Max, Min, QuerySet, Subquery, TextField
from django.db.models.functions import Cast

from eventlogs.exceptions import (
    EventLogError,
    KeyUnavailable,
    ProjectionFailed,
    ProjectionUnavailable,
)
from eventlogs.feed.reader import Feed
from eventlogs.ids import LogId
from eventlogs.models import (
    AppliedVersion,
    Checkpoint,
    Event,
    EventLog,
    ProjectionState,
    SkippedEvent,
)
from eventlogs.projections import constraints, mysql, starting
from eventlogs.projections.base import Failed, RowProjection
from eventlogs.projections.log_events import page_of
from eventlogs.projections.releases import HOLD, PASS, is_unread, own_reading
from eventlogs.projections.rows import chunks
from eventlogs.stores.base import AppendRequest
from eventlogs.stores.participants import Participant, Refused
from eventlogs.stores.retries import must_retry, undivided
from eventlogs.values import EventRecord, LogState, StoredEvent


def participant(projection: type[RowProjection]) -> Participant:
    """Return how an inline projection takes part in appends."""
    return Participant(
        projection.log_types_read(), partial(follow, projection), partial(prepare, projection)
    )


_begun: set[tuple[str, str]] = set()  # projections, with a database, that were found inline here


def prepare(projection: type[RowProjection], using: str, request: AppendRequest) -> None:
    """
    Create the projection's state, if there is none, before the append locks its log.

    Transactions that create the same state wait for one another. If one waited while it held the
    lock of its log, and the one ahead then appended to that log, they would deadlock.

    ``_begun`` is a hint: if the transaction that created the state is rolled back, the next append
    creates it under the lock of its log, and a deadlock is retried.
    """
    found, connection = (projection.name, using), connections[using]
    if found in _begun or not _follows(projection, using, request):
        return
    states = ProjectionState.objects.using(using).filter(
        name=projection.name, mode=projection.INLINE
    )
    if states.exists():
        _begun.add(found)
        return
    starting.begin(projection, using)
    if connection.in_atomic_block or connection.get_autocommit():  # else on_commit() is refused
        transaction.on_commit(lambda: _begun.add(found), using=using)


def _follows(projection: type[RowProjection], using: str, request: AppendRequest) -> bool:
    """Return whether the append may change rows of the projection."""
    if not projection.keeps_rows_in(using):
        return False  # there is no table for them; a system check says so
    types = projection.event_types_read()
    return types is None or any(event.type in types for event in request.events)


def follow(
    projection: type[RowProjection], using: str, state: LogState, request: AppendRequest
) -> None:
    """
    Take part in an append; raise ProjectionFailed where its events cannot be applied.

    Where a constraint refuses the row, raise Refused, which becomes ConstraintViolated:
    the fields of the constraint can be read only after the append is rolled back.
    The append's transaction holds the lock of the log's row. Raise ProjectionUnavailable where
    the row was made by a newer release, or its log has events that only a newer one can read.
    """
    if not _follows(projection, using, request):
        return
    first = state.version - len(request.events)
    mysql.refuse_old_snapshot(state.log_id, first, using)
    try:
        _apply(projection(), state.log_id, using, upto=state.version, since=first)
    except Failed as failed:
        if isinstance(failed.error, Error) and must_retry(failed.error):
            raise failed.error  # noqa: B904 (must_retry() looks at its cause)
        if is_unread(failed.error):
            raise ProjectionUnavailable("unread", projection=projection.name) from failed.error
        position = failed.position or state.position
        raise _refused(projection, state.log_id, position, failed.error, using) from failed.error
    except (OperationalError, InternalError, InterfaceError, EventLogError):
        raise  # of the database or of eventlogs; no event has caused it
    except (ProgrammingError, NotSupportedError):
        raise  # a table that is not migrated, a statement that this database does not know
    except Exception as error:  # a constraint, or a value that a column does not take
        raise _refused(projection, state.log_id, state.position, error, using) from error


def _refused(
    projection: type[RowProjection], log_id: LogId, position: int, error: BaseException, using: str
) -> Exception:
    if not constraints.refuses(error):
        return ProjectionFailed(projection.name, log_id, position)
    return Refused(lambda: constraints.failure(projection, log_id, position, error, using))


def update_row(projection: RowProjection, log_id: LogId, using: str, *, upto: int) -> None:
    """
    Bring the row of one log to the version ``upto`` at least.

    Raise Failed where an event cannot be applied; nothing is stored then.
    """
    with undivided(using):
        version = lock_log(log_id, using)
        _apply(projection, log_id, using, upto=min(upto, version))


def lock_log(log_id: LogId, using: str) -> int:
    """
    Lock a log against appends until the transaction ends; return its version, 0 for none.

    The mark of an archived log is locked as well: it cannot be brought back meanwhile.
    """
    logs: QuerySet[EventLog] = QuerySet(EventLog, using=using).filter(pk=log_id.uuid)
    no_key = connections[using].features.has_select_for_no_key_update
    found = logs.select_for_update(no_key=no_key).values_list("log_type", "version").first()
    log_type, version = found or ("", 0)
    return version if log_type == log_id.log_type else 0


def missing(
    projection: RowProjection, rows: Sequence[StoredEvent], using: str
) -> list[StoredEvent]:
    """Return the last of the events of each log whose row lacks some of them."""
    last = {row.log_id: row for row in rows}
    known: dict[str, int] = {}
    as_text = Cast("log_id", TextField())  # parsing the ids would take most of the time
    rebuilt_by = _rebuilt_by(type(projection), using)
    for some in chunks(last):
        found = applied_versions(projection.name, using).filter(
            log_id__in=some, made_by__gte=rebuilt_by
        )
        known.update(found.values_list(as_text, "version"))
    return [row for log_id, row in last.items() if known.get(str(log_id), 0) <= row.index]


def unread(projection: type[RowProjection], log_ids: Collection[LogId], using: str) -> set[LogId]:
    """
    Return those of some hundred logs with events that the projection has not come to.

    Neither the appends have applied them, nor has a worker that went through the feed, and no
    person has skipped them.
    """
    types = projection.event_types_read()
    events: QuerySet[Event] = QuerySet(Event, using=using).filter(
        log_id__in=[each.uuid for each in log_ids]
    )
    if types is not None:
        events = events.filter(type__in=types)
    indexes: dict[UUID, int] = {}
    positions: dict[UUID, int] = {}
    ends = events.values("log_id").annotate(index_=Max("index"), position_=Max("position"))
    for log, index, position in ends.values_list("log_id", "index_", "position_"):
        indexes[log], positions[log] = index, position
    passed = Checkpoint.objects.using(using).filter(projection=projection.name, is_rebuild=False)
    reached = passed.aggregate(least=Min("position"))["least"] or 0
    behind = {each for each in log_ids if positions.get(each.uuid, 0) > reached}
    if not behind:
        return set()
    rebuilt_by = _rebuilt_by(projection, using)
    known = dict(
        applied_versions(projection.name, using)
        .filter(log_id__in=behind, made_by__gte=rebuilt_by)
        .values_list("log_id", "version")
    )
    behind = {each for each in behind if known.get(each, 0) <= indexes[each.uuid]}
    skips = SkippedEvent.objects.using(using).filter(projection=projection.name)
    skipped: dict[LogId, list[int]] = {}
    for log_id, index in skips.filter(log_id__in=behind).values_list("log_id", "index"):
        skipped.setdefault(log_id, []).append(index)
    return {
        each
        for each in behind
        if each not in skipped
        or events.filter(log_id=each.uuid, index__gte=known.get(each, 0))
        .exclude(index__in=skipped[each])
        .exists()
    }


def applied_versions(name: str, using: str) -> QuerySet[AppliedVersion]:
    """Return which version of each log is in the rows of a projection."""
    return AppliedVersion.objects.using(using).filter(projection=name)


def _rebuilt_by(projection: type[RowProjection], using: str) -> int:
    """Return the version of the projection that has rebuilt all rows; 0 if it has never run."""
    states = ProjectionState.objects.using(using).filter(name=projection.name)
    return states.values_list("version", flat=True).first() or 0


def applied_version(projection: RowProjection, log_id: LogId, using: str) -> int:
    """Return which version of a log is in its row; 0 for no row."""
    found = applied_versions(projection.name, using).filter(log_id=log_id)
    return found.values_list("version", flat=True).first() or 0


def refuse_newer(projection: RowProjection, log_id: LogId, using: str) -> None:
    """Raise ProjectionUnavailable where a newer release has made the row. The log is locked."""
    _known(projection, log_id, using, is_new=False)


class _Known(NamedTuple):
    """The stored facts about the row of a log."""

    rebuilt_by: int  # the version of the projection that has rebuilt all rows
    version: int | None  # of the log, that is in the row; None for a row that is not known
    made_by: int  # the version of the projection that has made the row


def _known(projection: RowProjection, log_id: LogId, using: str, *, is_new: bool) -> _Known:
    """
    Return the stored facts about the row of a log; make the projection inline, if it is not yet.

    A log that ``is_new`` has no row. Raise ProjectionUnavailable where a newer release has made
    the row, or all rows.
    """
    row = applied_versions(projection.name, using).filter(log_id=log_id)
    states = ProjectionState.objects.using(using).filter(
        name=projection.name, mode=projection.INLINE
    )
    found: tuple[int, int | None, int | None] | None
    if mysql.is_mysql(using):
        rebuilt_by = states.values_list("version", flat=True).first()
        rows = row.none() if is_new else mysql.latest(row, using)
        version, made_by = rows.values_list("version", "made_by").first() or (None, None)
        found = None if rebuilt_by is None else (rebuilt_by, version, made_by)
    else:
        found = states.values_list(
            "version", Subquery(row.values("version")[:1]), Subquery(row.values("made_by")[:1])
        ).first()
    if found is None:
        starting.begin(type(projection), using)  # before its first row is changed
        return _known(projection, log_id, using, is_new=is_new)
    known = _Known(found[0], found[1], found[2] or 0)
    if projection.version < max(known.rebuilt_by, known.made_by):
        raise ProjectionUnavailable("newer", projection=projection.name)
    return known


def _apply(
    projection: RowProjection, log_id: LogId, using: str, *, upto: int, since: int | None = None
) -> None:
    """
    Apply the missing events of a log, up to a version. The log is locked.

    ``since`` is the version before the caller's own append, or None without one: a row at that
    version lacks only the append's events, and a log at version 0 has no row.
    """
    known = _known(projection, log_id, using, is_new=since == 0)
    start, blank, made_by = known.version or 0, False, known.made_by
    if known.version is None or made_by < known.rebuilt_by:
        start, blank, made_by = 0, True, projection.version
    if start >= upto:
        return
    skipped: set[int] = set()
    if start != since:
        skips = SkippedEvent.objects.using(using).filter(projection=projection.name, log_id=log_id)
        skipped = set(skips.values_list("index", flat=True))
        if blank:  # its row came from the feed before, or was made by hand
            projection.model._base_manager.using(using).filter(pk=log_id).delete()
    for records in _pages(projection, log_id, start, upto, skipped, using):
        projection.change(records, using, blank=blank)
        blank = False
    note(projection, log_id, upto, using, made_by=made_by)


def note(
    projection: RowProjection, log_id: LogId, version: int, using: str, *, made_by: int
) -> None:
    """Store the versions of log and projection that a row was made from. The log is locked."""
    AppliedVersion.objects.using(using).bulk_create(
        [
            AppliedVersion(
                projection=projection.name, log_id=log_id, version=version, made_by=made_by
            )
        ],
        update_conflicts=True,
        unique_fields=None if mysql.is_mysql(using) else ["projection", "log_id"],
        update_fields=["version", "made_by"],
    )


def _pages(
    projection: RowProjection, log_id: LogId, start: int, upto: int, skipped: set[int], using: str
) -> Iterator[list[EventRecord]]:
    reading, feed = own_reading(type(projection)), Feed(using=using)
    while start < upto and (page := page_of(log_id, start, using)):
        start = page[-1].index + 1
        records: list[EventRecord] = []
        for row in page:
            if row.index >= upto or row.index in skipped:
                continue
            verdict = reading.verdict(row.log_type, row.type, row.schema_version)
            if verdict is PASS:
                continue
            try:
                if verdict is HOLD:
                    raise reading.why_held(log_id, row.index, row.type, row.schema_version)
                records += feed.records([row])
            except KeyUnavailable:  # of this process' settings: no event has caused it
                raise
            except Exception as error:
                raise Failed(row.position, error) from error
        if records:
            yield records
