"""What the list of events is filtered by: read from an address, and made into querysets."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from eventlogs.admin import relations
from eventlogs.admin.logs import day_of
from eventlogs.admin.looking import Start
from eventlogs.admin.orders import ByNumber, ByTime, Key, Order
from eventlogs.admin.search import search_ids
from eventlogs.aggregates import aggregates
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.operations import pasted_ids

NAMES: Final = ("type", "log_type", "from", "to", "key", "log", "metadata")


@dataclass(slots=True)
class Filters:
    """
    The events that are asked for.

    ``every`` are those that an index leads to, in ``order``; ``wanted`` are those of them that
    may be rare, None where all of them are wanted. ``start`` is where to begin where the address
    does not say. ``query`` are the filters that made sense, ``problems`` what did not.
    """

    query: dict[str, str]
    every: QuerySet[Any]
    wanted: QuerySet[Any] | None = None
    order: Order = field(default_factory=lambda: ByNumber("position"))
    start: Start = field(default_factory=Start)
    problems: list[str] = field(default_factory=list)
    log: EventLog | None = None
    index: int | None = None  # of the event that is asked for by its id
    metadata: tuple[str, str] | None = None  # name and value


def read_filters(query: dict[str, str], using: str, *, sees_payload: bool) -> Filters:
    """Return what an address asks for."""
    found = Filters(query, Event.objects.using(using))
    if "log" in query:
        _of_log(found, using)
    if "key" in query:
        found.every = found.every.filter(_of_key(query["key"], using))
    wanted: Any = _of_days(found)
    if "type" in query:
        wanted = wanted.of_type(query["type"])
    if "log_type" in query:
        wanted = wanted.filter(log_type=query["log_type"])
    if "metadata" in query:
        wanted = _of_metadata(found, wanted, using, sees_payload)
    if wanted is not found.every:
        # The events of a key are few.
        found.every, found.wanted = (wanted, None) if "key" in query else (found.every, wanted)
    return found


def _of_log(found: Filters, using: str) -> None:
    text = found.query["log"]
    logs = list(search_ids(text, using)[:2])
    found.order = ByNumber("index")
    if len(logs) != 1:
        found.every = found.every.none()
        found.problems.append(
            _("Several logs have such an id: give more of it.")
            if logs
            else _("There is no log with this id.")
        )
        return
    [log] = logs
    found.log = log
    # By the UUID alone: it is the log's, whatever the text said of its type.
    found.every = found.every.filter(log_id=log.pk)
    names = [each for each in pasted_ids.names_in(text) if each.index is not None]
    if len(names) == 1 and names[0].index is not None and names[0].index < log.version:
        found.index = names[0].index
        found.start = Start(around=Key(found.index))


def _of_key(key: str, using: str) -> Q:
    """Return what finds the events of the appends of a key."""
    found = Q(pk__in=[])
    if "\0" in key:
        return found
    log_types = {each.log_type for each in aggregates}
    for each in IdempotencyKey.objects.using(using).filter(log_type__in=log_types, key=key):
        last = each.first_index + each.count - 1
        found |= Q(log_id=each.log_id, index__range=(each.first_index, last))
    return found


def _of_days(found: Filters) -> QuerySet[Any]:
    """Bound all events by days, or return those of a log's events that are wanted."""
    bounds = {}
    for name, lookup, later in (("from", "recorded_at__gte", 0), ("to", "recorded_at__lt", 1)):
        if name not in found.query:
            continue
        day = day_of(found.query[name])
        if day is None:
            text = found.query.pop(name)[:40]
            found.problems.append(_("This is no date: %(text)s") % {"text": text})
        else:
            bounds[lookup] = day + timedelta(days=later)
    if len(bounds) == 2 and bounds["recorded_at__gte"] >= bounds["recorded_at__lt"]:
        found.problems.append(_("The first day is later than the last one."))
    if bounds and "log" in found.query:
        return found.every.filter(**bounds)  # looked for along the log's index
    if bounds:
        found.every, found.order = found.every.filter(**bounds), ByTime()
    return found.every


def _of_metadata(
    found: Filters, wanted: QuerySet[Any], using: str, sees_payload: bool
) -> QuerySet[Any]:
    name, equals, value = (each.strip() for each in found.query["metadata"].partition("="))
    if not (equals and relations.NAME.match(name) and sees_payload):
        found.problems.append(_("Metadata are asked for as name=value, by who may see them."))
        return wanted
    found.metadata = name, value
    if name in relations.ROLES and found.log is None:
        event = relations.find_event(value, using)
        if event is not None:
            found.start = Start(around=found.order.key_of(event))
    return relations.with_metadata(wanted, name, value)
