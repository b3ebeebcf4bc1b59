"""
Events that belong together by their metadata: causes, effects, and events of one correlation.

``causation_id`` is the id of the event that caused this one. ``correlation_id`` is the id of the
whole flow, often that of its first event. An event's id is its ``record.id``, or the ``event_id``
in its metadata that another system has given to it. A search for one of these two ids also finds
the event that has the id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from django.db.models import Q, QuerySet
from django.db.models.fields.json import KeyTransform
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from eventlogs.admin import archived
from eventlogs.archives.reading import archived_log
from eventlogs.events.metadata import CAUSATION, CORRELATION, EVENT_ID
from eventlogs.ids import LogId
from eventlogs.models import Event, EventLog
from eventlogs.operations import pasted_ids

# For each kind of id: the role of the event that has it, for the events that name it.
ROLES: Final = {CAUSATION: gettext_noop("cause"), CORRELATION: gettext_noop("first event")}


def with_metadata(rows: QuerySet[Any], name: str, value: str) -> QuerySet[Any]:
    """Keep the events whose metadata have a value, and the event whose id the value is."""
    rows = rows.alias(asked_for=KeyTransform(name, "metadata"))
    wanted = Q(asked_for=value)
    if re.fullmatch(r"-?[0-9]{1,15}", value):
        wanted |= Q(asked_for=int(value))
    if name in ROLES:
        rows = rows.alias(own_id=KeyTransform(EVENT_ID, "metadata"))
        wanted |= Q(own_id=value)
        if re.fullmatch(r"[0-9]{1,15}", value):
            wanted |= Q(own_id=int(value))
        if (named := named_event(value)) is not None:
            wanted |= Q(log_id=named[0].uuid, index=named[1])
    return rows.filter(wanted)


def named_event(value: str) -> tuple[LogId, int] | None:
    """Return the log id and index of a text in the form of ``record.id``, or None."""
    names = pasted_ids.names_in(value)
    if len(names) != 1 or names[0].index is None or names[0].log_type is None:
        return None
    log_id = LogId.stored(names[0].log_type, names[0].uuid)
    return (log_id, names[0].index) if value == f"{log_id}:{names[0].index}" else None


def find_event(value: str, using: str) -> Event | None:
    """Return the event whose ``record.id`` is ``value``, also of an archived log, or None."""
    named = named_event(value)
    if named is None:
        return None
    log_id, index = named
    logs = EventLog.objects.using(using).filter(pk=log_id.uuid, log_type=log_id.log_type)
    if not logs.exists():
        row = archived_log(using, log_id)
        return None if row is None else archived.event_of(row, index, using)
    return Event.objects.using(using).filter(log_id=log_id.uuid, index=index).first()


def role_of(event: Event, name: str, value: str) -> str:
    """Return the role of an event for the events that name it, "" for an event that names it."""
    if name not in ROLES or str(event.metadata.get(name)) == value:
        return ""
    return _(ROLES[name])


def links(
    events: str, own_id: str, position: int, metadata: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """
    Return links from an event to those that belong to it, as texts and addresses.

    ``events`` is the address of the list of events, ``own_id`` the event's ``record.id``. Each
    search begins at the event's position.
    """
    found = [(_("causation tree"), tree(events, own_id))]
    if _is_id(metadata.get(CORRELATION)):
        found.append((CORRELATION, _search(events, CORRELATION, metadata[CORRELATION], position)))
    if _is_id(cause := metadata.get(CAUSATION)):
        search = _search(events, CAUSATION, cause, position)
        if named_event(str(cause)) is None:
            found.append((CAUSATION, search))
        else:
            found += [
                (CAUSATION, f"{events}{quote(str(cause), safe=':')}/"),
                (_("other effects of this cause"), search),
            ]
    own = metadata.get(EVENT_ID)
    found.append(
        (_("effects"), _search(events, CAUSATION, own if _is_id(own) else own_id, position))
    )
    return found


def tree(events: str, own_id: str) -> str:
    """Return the address of the causation tree of an event."""
    return f"{events}{quote(own_id, safe=':')}/tree/"


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _search(events: str, name: str, value: Any, position: int) -> str:
    return f"{events}?" + urlencode({"metadata": f"{name}={value}", "around": position})
