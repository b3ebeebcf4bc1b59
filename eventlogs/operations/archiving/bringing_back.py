"""Bringing an archived log back into the tables."""

from __future__ import annotations

from functools import partial

from django.db import transaction

from eventlogs.archives.reading import archived_log, exported_pages
from eventlogs.exceptions import NotArchived
from eventlogs.ids import LogId
from eventlogs.models import ArchivedLog, EventLog
from eventlogs.operations.archiving import tables
from eventlogs.operations.archiving.choosing import refuse_to_bring_back
from eventlogs.operations.archiving.tidying import tidy
from eventlogs.projections import checkpoints, rebuild
from eventlogs.projections.base import RowProjection, declared
from eventlogs.routing import write_alias
from eventlogs.stores import erasing


def restore(log_id: LogId | str, *, using: str | None = None) -> int:
    """
    Bring an archived log back, and return the number of its events.

    Events get the positions that they had: projections and readers that have seen them do not see
    them again. Then the archive is written anew without the log, or deleted if it was the last one.
    ``using`` is the log's database, by default the one that logs are written to. In PostgreSQL the
    database role must own the table of events.

    Raise InvalidLogId, NotArchived if the log is in no archive, CannotErase if this database role
    does not own the table, ArchiveUnavailable if the archive cannot be read or is not what was
    written, ProjectionUnavailable if a projection has not come to the log's last event or is being
    rebuilt inline, ProjectionFailed if a new projection cannot make the log's row, and RuntimeError
    inside of a transaction: then the log is archived as before. If the archive cannot be written
    anew, ArchiveUnavailable is raised as well, and the log is back: ``tidy``
    does the rest.
    """
    log = log_id if isinstance(log_id, LogId) else LogId.parse(log_id)
    alias = using or write_alias(log)
    erasing.check_owner(alias)
    row = archived_log(alias, log)
    if row is None:
        raise NotArchived(log)
    with transaction.atomic(using=alias, durable=True):  # before rows are made, and once more later
        refuse_to_bring_back(alias, log.log_type, row.last_position)
    _make_rows(alias, row)
    if not tables.put_back(alias, row, partial(exported_pages, row, using=alias)):
        raise NotArchived(log)
    tidy(using=alias)
    return row.version


def _make_rows(using: str, row: ArchivedLog) -> None:
    """
    Make the rows that read models lack of an archived log, before it comes back.

    A projection that is newer than the archive has passed the log's events, which were not in the
    feed. It would apply the next event to a row without them.
    """
    for each in declared(RowProjection, using=using):
        types = each.log_types_read()
        if each.has_shared_rows() or (types is not None and row.log_type not in types):
            continue
        if not checkpoints.position(each.name, using) and each.mode != each.INLINE:
            continue  # it has still to run, and reads the log when it is back
        if not each.model._base_manager.using(using).filter(pk=row.log_id).exists():
            rebuild.rebuild_log(each, row.log_id, using=using)


def is_back(log_id: LogId, *, using: str) -> bool:
    """Return whether a log is in the tables."""
    logs = EventLog.objects.using(using)
    found: bool = logs.filter(pk=log_id.uuid, log_type=log_id.log_type).exists()
    return found
