"""
Inline rows of many logs, changed in one transaction: after an import, and in a rebuild.

``inline.py`` says why a row may be changed only under the lock of its log. Here one transaction
holds the locks of many logs, beside appends: those lock one log each, and several, in any order,
inside a caller's transaction. Why there is no deadlock:

- The locks of the logs are taken by one statement with SKIP LOCKED. A log that another transaction
  has locked is left out, and not waited for; the caller does it afterwards, one by one. SQLite has
  one lock for all, which the transaction has anyway.
- After that, what is changed belongs to the logs that are locked: their rows, their applied
  versions. Every other transaction that changes those holds the lock of the log.
- What remains are waits that a read model adds of its own: a unique value that an open
  transaction has taken as well, a foreign key. On PostgreSQL these end after ``LONGEST_WAIT``, well
  before the server looks for deadlocks (``deadlock_timeout``, 1 s): then all of it is rolled back,
  and done one by one. InnoDB finds a deadlock at once; an append runs again then, or raises
  TransactionMustRetry inside a caller's transaction, as it does beside other transactions.

A log that cannot be applied does not affect the others. Where an event is to be held or cannot be
decoded, its log is left to the caller. Where a handler raises, nothing is stored, and the caller
goes through the logs one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from django.db import connections, transaction
from django.db.models import QuerySet

from eventlogs.exceptions import ProjectionUnavailable
from eventlogs.feed import scans
from eventlogs.feed.reader import Feed
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.models import AppliedVersion, EventLog, ProjectionState
from eventlogs.projections import inline, mysql, starting
from eventlogs.projections.base import RowProjection
from eventlogs.projections.held_logs import HeldLogs
from eventlogs.projections.releases import APPLY, HOLD, Reading, own_reading, reading_of_rows
from eventlogs.projections.replays import NONE, Replayer, skipped_of
from eventlogs.projections.rows import chunks, upsert
from eventlogs.stores.bulk_reads import Part, events_of_logs, whole_logs
from eventlogs.stores.retries import in_transaction
from eventlogs.values import EventRecord, StoredEvent

LONGEST_WAIT: Final = 100  # milliseconds, for a lock that a read model asks for


class Outcome(NamedTuple):
    """The result for some logs; logs in neither field have to be done one by one."""

    done: set[LogId]
    later: list[LogId]  # too many events for one transaction: ask for them again


def is_possible(using: str) -> bool:
    """Return whether a transaction can lock the logs that are free, and leave out the others."""
    features = connections[using].features
    if not features.has_select_for_update:
        return True  # one writer at a time
    if mysql.is_mysql(using) and in_transaction(connections[using]):
        return False  # the caller's snapshot may be older than the locks
    return bool(features.has_select_for_update_skip_locked)


def lock_free(log_ids: Collection[LogId], using: str) -> dict[LogId, int]:
    """Lock the logs that no other transaction has locked; return their versions."""
    features = connections[using].features
    logs: QuerySet[EventLog] = QuerySet(EventLog, using=using).filter(
        pk__in=[each.uuid for each in log_ids]
    )
    free = logs.order_by("pk").select_for_update(
        skip_locked=features.has_select_for_update_skip_locked,
        no_key=features.has_select_for_no_key_update,
    )
    found = free.values_list("log_type", "pk", "version")
    return {LogId.stored(log_type, pk): version for log_type, pk, version in found}


def limit_waits(using: str) -> None:
    """Set lock_timeout to LONGEST_WAIT for this transaction, in PostgreSQL."""
    if connections[using].vendor == "postgresql":
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [str(LONGEST_WAIT)])


def update_rows(
    projection: RowProjection,
    wanted: Mapping[LogId, int],
    using: str,
    *,
    most: int,
    is_own: bool,
) -> Outcome:
    """
    Bring the rows of many logs to a version at least, in the transaction that is open.

    At most about ``most`` events are applied. ``is_own`` says that no caller has opened the
    transaction. Raise Failed where a handler raises, and ProjectionUnavailable where a newer
    release has made the rows; the transaction has to be rolled back then.
    """
    if is_own:
        limit_waits(using)
    versions = lock_free(wanted, using)
    rebuilt_by = _rebuilt_by(projection, using)
    known = _known(projection, versions, using)
    outcome = Outcome(set(), [])
    parts: dict[LogId, Part] = {}
    left = most
    for log_id, version in versions.items():
        applied, made_by = known.get(log_id, (0, 0))
        if projection.version < made_by:
            continue  # a newer release has made the row
        start = 0 if log_id not in known or made_by < rebuilt_by else applied
        end = min(version, wanted[log_id])
        if start >= end:
            outcome.done.add(log_id)
        elif end - start > most:
            continue  # a page at a time
        elif parts and end - start > left:
            outcome.later.append(log_id)
        else:
            # All of it, where it is not too much: the feed comes to its later events anyway.
            end = version if version - start <= left else end
            parts[log_id] = Part(log_id, start, end)
            left -= end - start
    if not parts:
        return outcome
    records = _records(projection, parts, versions, using)
    makers = {each: known[each][1] for each in records if parts[each].start}
    unknown = [each for each in records if each not in makers]
    for some in chunks(unknown):  # rows that came from the feed before, or were made by hand
        projection.model._base_manager.using(using).filter(pk__in=some).delete()
    makers.update(dict.fromkeys(unknown, projection.version))
    projection.change([each for some in records.values() for each in some], using)
    note(projection, {each: parts[each].end for each in records}, using, made_by=makers)
    outcome.done.update(records)
    return outcome


def rebuild_rows(
    cls: type[RowProjection], logs: Sequence[LogRow], using: str, *, downgrade: bool
) -> dict[LogId, int]:
    """
    Rebuild the rows of many logs; return, by log, from how many events its row was made.

    Logs that another transaction has locked, that are gone, that are long, and that do not fit into
    memory are not in the answer. Raise what ``rebuild.rebuild_log`` does; nothing is stored
    then.
    """
    projection = cls()
    is_own = not in_transaction(connections[using])
    with transaction.atomic(using=using):
        if is_own:
            limit_waits(using)
        locked = lock_free([log.log_id for log in logs], using)
        versions = {each: count for each, count in locked.items() if count <= scans.PAGE}
        if not versions:
            return {}
        if not downgrade:
            _refuse_newer(projection, versions, using)
        events = whole_logs(using, versions)
        versions = {each: versions[each] for each in events}
        HeldLogs(cls, using).rows().filter(log_id__in=list(versions)).delete()
        replayer = Replayer(projection, reading_of_rows(cls, using), using)
        skipped = skipped_of(cls.name, versions, using)
        counts, rows, gone = {}, [], []
        for log_id in versions:
            row, counts[log_id] = replayer.row(log_id, events[log_id], skipped.get(log_id, NONE))
            if row is None:
                gone.append(log_id)
            else:
                rows.append(row)
        if gone:
            cls.model._base_manager.using(using).filter(pk__in=gone).delete()
        if rows:
            upsert(cls.model, rows, using)
        note(projection, versions, using, made_by=dict.fromkeys(versions, cls.version))
    return counts


def note(
    projection: RowProjection,
    versions: Mapping[LogId, int],
    using: str,
    *,
    made_by: Mapping[LogId, int],
) -> None:
    """Store the versions of logs and projection that rows were made from. The logs are locked."""
    AppliedVersion.objects.using(using).bulk_create(
        [
            AppliedVersion(
                projection=projection.name, log_id=each, version=version, made_by=made_by[each]
            )
            for each, version in versions.items()
        ],
        update_conflicts=True,
        unique_fields=None if mysql.is_mysql(using) else ["projection", "log_id"],
        update_fields=["version", "made_by"],
    )


def _rebuilt_by(projection: RowProjection, using: str) -> int:
    """Return which version of the projection has rebuilt all rows, once it is inline."""
    states = ProjectionState.objects.using(using).filter(
        name=projection.name, mode=projection.INLINE
    )
    version: int | None = states.values_list("version", flat=True).first()
    if version is None:
        starting.begin(type(projection), using)  # before its first row is changed
        return _rebuilt_by(projection, using)
    if projection.version < version:
        raise ProjectionUnavailable("newer", projection=projection.name)
    return version


def _known(
    projection: RowProjection, log_ids: Collection[LogId], using: str
) -> dict[LogId, tuple[int, int]]:
    """Return the versions of logs that are in their rows, and the versions that made the rows."""
    known: dict[LogId, tuple[int, int]] = {}
    applied = inline.applied_versions(projection.name, using)
    for some in chunks(log_ids):
        found = applied.filter(log_id__in=some).values_list("log_id", "version", "made_by")
        known.update((log_id, (version, made_by)) for log_id, version, made_by in found)
    return known


def _refuse_newer(projection: RowProjection, log_ids: Collection[LogId], using: str) -> None:
    _rebuilt_by(projection, using)
    known = _known(projection, log_ids, using)
    if any(made_by > projection.version for _, made_by in known.values()):
        raise ProjectionUnavailable("newer", projection=projection.name)


def _records(
    projection: RowProjection,
    parts: Mapping[LogId, Part],
    versions: Mapping[LogId, int],
    using: str,
) -> dict[LogId, list[EventRecord]]:
    """Return the records to apply, by log; without logs that have to be done one by one."""
    reading, feed = own_reading(type(projection)), Feed(using=using)
    # Of whole logs, databases other than PostgreSQL read more in one statement.
    events = events_of_logs(
        using,
        [
            Part(log_id) if part.start == 0 and part.end == versions[log_id] else part
            for log_id, part in parts.items()
        ],
    )
    skipped = skipped_of(projection.name, parts, using)
    found: dict[LogId, list[EventRecord]] = {}
    for log_id, part in parts.items():
        rows = events[log_id]
        kept = _kept(reading, rows, skipped.get(log_id, NONE))
        if kept is None or len(rows) != part.end - part.start:
            continue
        try:
            found[log_id] = list(feed.records(kept))
        except Exception:  # applying its events one by one finds which one it is
            continue
    return found


def _kept(
    reading: Reading, rows: Sequence[StoredEvent], skipped: Collection[int]
) -> list[StoredEvent] | None:
    """Return the events that this release applies, or None where it must not apply one."""
    kept: list[StoredEvent] = []
    for row in rows:
        if skipped and row.index in skipped:
            continue
        verdict = reading.verdict(row.log_type, row.type, row.schema_version)
        if verdict is HOLD:
            return None
        if verdict is APPLY:
            kept.append(row)
    return kept
