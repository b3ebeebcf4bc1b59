"""Actions of a person on held logs: retry their events, or skip one permanently."""

from __future__ import annotations

from django.db import transaction
from django.db.models import Q

from eventlogs.ids import LogId
from eventlogs.models import ProjectionAction
from eventlogs.projections import actions, checkpoints, releases
from eventlogs.projections.base import BaseProjection
from eventlogs.projections.held_logs import HeldLogs
from eventlogs.projections.log_events import next_event
from eventlogs.projections.starting import begin


def retry(
    projection: type[BaseProjection],
    log_id: LogId | None = None,
    *,
    among: Q | None = None,
    by: str = "",
    note: str = "",
    using: str | None = None,
) -> int:
    """
    Make events that hold logs due; return how many.

    ``among`` chooses some by the fields of ParkedEvent; ``note`` is stored with the action.
    """
    using = projection.database_alias(using=using)
    with transaction.atomic(using=using):
        count = HeldLogs(projection, using).retry(log_id, among)
        if count:
            actions.add(
                projection.name,
                ProjectionAction.RETRIED,
                using=using,
                by=by,
                log_id=log_id,
                count=count,
                note=note,
            )
    return count


def skip(
    projection: type[BaseProjection], log_id: LogId, *, by: str = "", using: str | None = None
) -> bool:
    """Skip the event that holds a log, permanently; return whether there was one."""
    using = projection.database_alias(using=using)
    begin(projection, using)
    held_logs = HeldLogs(projection, using)
    with checkpoints.locked(projection.name, log_id, using=using) as checkpoint:
        waiting = held_logs.rows().filter(log_id=log_id, position__lte=checkpoint.position).first()
        if waiting is None:
            return False
        reading = releases.reading_of(projection, using)
        upto = checkpoint.position
        next_one = next_event(reading, projection.name, log_id, waiting.index, upto, using)
        held_logs.skip(waiting, next_one)
        actions.add(
            projection.name,
            ProjectionAction.SKIPPED,
            using=using,
            by=by,
            log_id=log_id,
            index=waiting.index,
            count=1,
            note=f"{waiting.type}: {waiting.error}" if waiting.error else waiting.type,
        )
    return True
