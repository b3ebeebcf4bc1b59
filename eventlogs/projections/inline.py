"""
Projections that are inline: their rows change in the append's own transaction.

For each log it is kept which version of it is in the row (AppliedVersion). An append goes on
from there, and not from its own first event: so what was appended without the projection (by a
process with older code, by an import) is made up for by the next append to that log, or by a
worker that goes through the feed, whichever is first. A row whose version is not known, e.g.
because the projection was not inline before, is made anew from the log's start.

Why it is right: whoever changes a row holds the lock on the log's row in eventlogs_eventlog
until the end of the transaction. An append has it anyway. So for one log all of this happens
one after the other, and a version only grows. A worker takes one log in each transaction: it
never waits for a lock of one log while it holds another's, and so is part of no deadlock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

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
from django.db.models import QuerySet

from eventlogs.aggregates import LogState
from eventlogs.codec import FeedRow
from eventlogs.events import EventRecord
from eventlogs.exceptions import EventLogError, ProjectionFailed
from eventlogs.feed import Feed
from eventlogs.ids import LogId
from eventlogs.models import AppliedVersion, Event, EventLog, SkippedEvent
from eventlogs.projections import catching_up, leases, mysql
from eventlogs.projections.advancing import Failed, history
from eventlogs.projections.parking import INDEX, POSITION, TYPE, log_id_of
from eventlogs.projections.rows import chunks
from eventlogs.stores.base import AppendRequest
from eventlogs.stores.transactions import must_retry

if TYPE_CHECKING:
    from eventlogs.projections.declarations import RowProjection

_begun: set[tuple[str, str]] = set()  # projections that are known to be inline, and where


def follow(
    projection: type[RowProjection], using: str, state: LogState, request: AppendRequest
) -> None:
    """
    Take part in an append; raise ProjectionFailed where its events cannot be applied.

    The append's transaction holds the lock of the log's row.
    """
    if using != projection._using():
        return  # the rows are of another database's feed
    types = projection._types()
    if types is not None and not any(event.type in types for event in request.events):
        return
    _begin(projection, using)
    first = state.version - len(request.events)
    mysql.refuse_old_snapshot(state.log_id, first, using)
    try:
        _apply(projection(), state.log_id, using, upto=state.version, since=first)
    except Failed as failed:
        if isinstance(failed.error, Error) and must_retry(failed.error):
            raise failed.error  # noqa: B904 (its cause is what it is known by)
        raise ProjectionFailed(
            projection.name, state.log_id, failed.position or state.position
        ) from failed.error
    except (OperationalError, InternalError, InterfaceError, EventLogError):
        raise  # the database's or ours, and no event's
    except (ProgrammingError, NotSupportedError):
        raise  # a table that is not migrated, a statement that this database does not know
    except Exception as error:  # a value that a column does not take
        raise ProjectionFailed(projection.name, state.log_id, state.position) from error


def catch_up(projection: RowProjection, log_id: LogId, using: str, *, upto: int) -> None:
    """
    Bring the row of one log to a version at least.

    Raise Failed where an event cannot be applied; nothing is stored then.
    """
    with transaction.atomic(using=using):
        version = lock_log(log_id, using)
        _apply(projection, log_id, using, upto=min(upto, version))


def lock_log(log_id: LogId, using: str) -> int:
    """Lock a log against appends until the transaction ends; return its version, 0 for none."""
    logs: QuerySet[EventLog] = QuerySet(EventLog, using=using).filter(
        pk=log_id.uuid, log_type=log_id.log_type
    )
    no_key = connections[using].features.has_select_for_no_key_update
    found = logs.select_for_update(no_key=no_key).values_list("version", flat=True).first()
    return found or 0


def missing(projection: RowProjection, rows: Sequence[FeedRow], using: str) -> list[FeedRow]:
    """Return the last row of each log that has rows which are not applied."""
    last = {log_id_of(row): row for row in rows}
    known: dict[LogId, int] = {}
    for some in chunks(last):
        found = applied_versions(projection.name, using).filter(log_id__in=some)
        known.update(found.values_list("log_id", "version"))
    return [row for log_id, row in last.items() if known.get(log_id, 0) <= row[INDEX]]


def is_applied(projection: type[RowProjection], position: int, using: str) -> bool:
    """Return whether the event at a position is in the row of its log."""
    event = Event.objects.using(using).select_related("log").filter(position=position).first()
    if event is None:
        return False
    versions = applied_versions(projection.name, using).filter(log_id=event.log.log_id)
    return versions.filter(version__gt=event.index).exists()


def applied_versions(name: str, using: str) -> QuerySet[AppliedVersion]:
    """Return which version of each log is in the rows of a projection."""
    return AppliedVersion.objects.using(using).filter(projection=name)


def _begin(projection: type[RowProjection], using: str) -> None:
    """See to it that the projection is known to be inline, before its first row is changed."""
    if (projection.name, using) in _begun:
        return
    state = leases.state_of(projection.name, using)
    catching_up.begin(projection, using)
    if state is not None and state.mode == projection.INLINE:
        # Read, not written: a caller's transaction cannot take it back.
        _begun.add((projection.name, using))


def _apply(
    projection: RowProjection, log_id: LogId, using: str, *, upto: int, since: int | None = None
) -> None:
    """
    Apply what is missing of a log, up to a version. The log is locked.

    ``since`` is the version before the caller's own append, where it is one: a row that is
    that far lacks nothing else, and a log that had no events has no row.
    """
    versions = applied_versions(projection.name, using).filter(log_id=log_id)
    if since != 0:  # a log that is new has none
        versions = mysql.latest(versions, using)
    known = versions.values_list("version", flat=True).first()
    start, anew = (0, True) if known is None else (known, False)
    if start >= upto:
        return
    skipped: set[int] = set()
    if start != since:
        skips = SkippedEvent.objects.using(using).filter(projection=projection.name, log_id=log_id)
        skipped = set(skips.values_list("index", flat=True))
        if anew:  # it was kept otherwise before, or made by hand
            projection.model._base_manager.using(using).filter(pk=log_id).delete()
    for records in _pages(projection, log_id, start, upto, skipped, using):
        projection.change(records, using, anew=anew)
        anew = False
    note(projection, log_id, upto, using)


def note(projection: RowProjection, log_id: LogId, version: int, using: str) -> None:
    """Keep that a row is at a version of its log. The log is locked."""
    AppliedVersion.objects.using(using).bulk_create(
        [AppliedVersion(projection=projection.name, log_id=log_id, version=version)],
        update_conflicts=True,
        unique_fields=None if mysql.is_mysql(using) else ["projection", "log_id"],
        update_fields=["version"],
    )


def _pages(
    projection: RowProjection, log_id: LogId, start: int, upto: int, skipped: set[int], using: str
) -> Iterator[list[EventRecord]]:
    types, feed = projection._types(), Feed(using)
    while start < upto and (page := history(log_id, start, using)):
        start = page[-1][INDEX] + 1
        records: list[EventRecord] = []
        for row in page:
            if row[INDEX] >= upto or row[INDEX] in skipped:
                continue
            if types is not None and row[TYPE] not in types:
                continue
            try:
                records += feed.records([row])
            except Exception as error:
                raise Failed(row[POSITION], error) from error
        if records:
            yield records
