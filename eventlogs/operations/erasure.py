"""
Erasure: rebuild or remove the copies of a log's events after SQL has changed or deleted them.

Events are erased or redacted by the owner of the tables, see docs/storage.md. Copies of them are
in other places: rows of read models, shadow tables of rebuilds, texts of errors, caches. This
module reaches all of those that the project itself keeps.
"""

from __future__ import annotations

from typing import NamedTuple

from django.db import router, transaction

from eventlogs.caches import backends
from eventlogs.ids import LogId
from eventlogs.models import AppliedVersion, EventLog, ParkedEvent, SkippedEvent
from eventlogs.operations import unique_values
from eventlogs.projections import actions, rebuild
from eventlogs.projections.base import RowProjection, declared


class Forgotten(NamedTuple):
    """The copies of a log's events that were rebuilt or removed, and those that were not."""

    rows: tuple[str, ...]  # projections whose row was rebuilt or removed
    entries: int  # of caches that were deleted
    to_rebuild: tuple[str, ...]  # projections whose rows must all be rebuilt, with restart


def forget_copies(log_id: LogId | str, *, using: str | None = None) -> Forgotten:
    """
    Rebuild the copies of a log whose events were redacted; remove them if it was erased.

    Unique values that the log's events do not hold any more are released.

    Call it after the transaction that changed the events, and once more a minute later: a
    process may write a copy of an event that it read before the change. ``using`` is the log's
    database, by default the one that logs are written to.

    ``to_rebuild`` names the projections that this function cannot rebuild: rows that several
    logs share, and rebuilds in progress. For each, run
    ``manage.py eventlogs rebuild NAME --restart``. Read models without a declared projection
    are not known here.

    Raise ProjectionFailed if a projection cannot apply a redacted event, and
    eventlogs.caches.Unreachable if a cache does not answer. Calling it again is safe.
    """
    log = LogId.parse(log_id) if isinstance(log_id, str) else log_id
    alias = using or router.db_for_write(EventLog)
    logs = EventLog.objects.using(alias)
    is_there = logs.filter(pk=log.uuid, log_type=log.log_type).exists()
    entries = backends.forget(log)
    _forget_failures(log, alias, is_there=is_there)
    if is_there:
        unique_values.settle(alias, [log])
    else:
        unique_values.forget(alias, log)
    rows: list[str] = []
    to_rebuild: list[str] = []
    for each in declared(RowProjection, using=alias):
        log_types = each.log_types_read()
        if log_types is not None and log.log_type not in log_types:
            continue
        if not rebuild.discard_unfinished(each, alias) or each.has_shared_rows():
            to_rebuild.append(each.name)
        if each.has_shared_rows():
            continue
        if is_there:
            rebuild.rebuild_log(each, log, using=alias)
        else:
            rebuild.remove_row(each, log, alias)
        rows.append(each.name)
    return Forgotten(tuple(rows), entries, tuple(to_rebuild))


def _forget_failures(log: LogId, using: str, *, is_there: bool) -> None:
    """Remove the traces of failed events: the text of an error may contain their data."""
    failures = ParkedEvent.objects.using(using).filter(log_id=log)
    if is_there:
        failures.update(details="")
        return
    with transaction.atomic(using=using):
        failures.delete()
        SkippedEvent.objects.using(using).filter(log_id=log).delete()
        AppliedVersion.objects.using(using).filter(log_id=log).delete()
        actions.forget(log, using)
