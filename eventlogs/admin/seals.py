"""
The seal of a log, for its page: which one stands over its events, and over how many of them.

It shows seals of the log of seals (``eventlogs seal --append``). It checks the signature of the
seal, not the history: that is what ``manage.py eventlogs attest`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec

from eventlogs.exceptions import SealUnavailable
from eventlogs.models import ArchivedLog, Event, EventLog
from eventlogs.seals import lookups
from eventlogs.seals.documents import Seal
from eventlogs.seals.keys import Trusted


@dataclass(frozen=True, slots=True)
class Sealed:
    """A seal over the first ``events`` events of a log."""

    moment: datetime
    events: int
    is_sure: bool  # False where the log may have had no chain when the seal was made
    problem: str  # why the seal is not to be trusted, or ""


def sealed(log: EventLog, using: str, *, archived: ArchivedLog | None = None) -> Sealed | None:
    """
    Return the first seal over all events of a log, or the newest over a part of them.

    None: no seal stands over any of them, or of an ``archived`` log over all of them. Without a
    chain, no query is made.
    """
    if log.head is None:
        return None
    events = Event.objects.using(using).filter(log_id=log.pk)
    last: int | None = None if archived is None else archived.last_position
    if archived is None:
        last = events.filter(index=log.version - 1).values_list("position", flat=True).first()
    if last is None:
        return None
    members = lookups.covering(using, last)
    count: int | None = log.version
    if members is None and archived is None:
        members = lookups.newest(using)
        count = None
    if members is None:
        return None
    try:
        seal = msgspec.convert(members, Seal)
        moment = seal.moment
    except (msgspec.ValidationError, ValueError):  # not written by this release
        return None
    if count is None:
        under = events.filter(position__lte=seal.position).order_by("-index")
        index = under.values_list("index", flat=True).first()
        if index is None:
            return None
        count = index + 1
    return Sealed(moment, count, not seal.unchained, _problem(seal))


def _problem(seal: Seal) -> str:
    try:
        return Trusted().why_not(seal) or ""
    except SealUnavailable:  # this process has no keys
        return ""
