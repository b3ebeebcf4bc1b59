"""
The history of a projection: retries, skips, events passed over and rebuilds, and by which person.

An entry is written in the transaction of its action: both are stored, or neither is. It holds no
payload. Of an error it holds the class alone, or a message of this package.
"""

from __future__ import annotations

from typing import Any, Final

from django.db import models

from eventlogs.exceptions import EventLogError
from eventlogs.ids import LogId
from eventlogs.models import ProjectionAction
from eventlogs.stores.clock import UTCNow

MAX_BY: Final = 200  # characters


def add(
    projection: str,
    action: str,
    *,
    using: str,
    by: str = "",
    **more: Any,
) -> None:
    """
    Record an action, in the caller's transaction.

    ``action`` is one of ProjectionAction's constants, ``by`` a name that people know. ``more``
    are further fields: ``log_id``, ``index``, ``count``, ``seconds``, ``note``.
    """
    # PostgreSQL stores neither a NUL nor half of a surrogate pair.
    name = by.replace("\0", "").encode(errors="backslashreplace").decode()[:MAX_BY]
    ProjectionAction(projection=projection, action=action, by=name, at=UTCNow(), **more).save(
        using=using, force_insert=True
    )


def of(projection: str | None, using: str) -> models.QuerySet[ProjectionAction]:
    """Return the actions on a projection, or on all, the newest first."""
    found = ProjectionAction.objects.using(using).order_by("-id")
    return found if projection is None else found.filter(projection=projection)


def requested_by(projection: str, using: str) -> str:
    """Return the name of the person who asked for the last rebuild, or ""."""
    asked = of(projection, using).filter(action=ProjectionAction.REBUILD_REQUESTED)
    return asked.values_list("by", flat=True).first() or ""


def forget(log_id: LogId, using: str) -> None:
    """Remove the id of a log that was erased; the action and its person stay."""
    rows = ProjectionAction.objects.using(using)
    rows.filter(log_id=log_id).update(log_id=None, index=None)
    rows.filter(note__contains=str(log_id)).update(note="")


def reason(error: BaseException) -> str:
    """Return an error's text without data: the text of another package may quote a row."""
    return str(error) if isinstance(error, EventLogError) else type(error).__qualname__
