"""The filters of the list of events: read from an address, and turned into querysets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from eventlogs.admin import causation
from eventlogs.admin.log_search import search_ids
from eventlogs.admin.parameters import days_from
from eventlogs.admin.sort_orders import ByNumber, ByTime, Key, SortOrder
from eventlogs.admin.windowed_search import SearchStart
from eventlogs.aggregates import aggregates
from eventlogs.events.metadata import NAME
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.operations import pasted_ids

NAMES: Final = ("type", "log_type", "from", "to", "key", "log", "metadata")


@dataclass(slots=True)
class Filters:
    """
    The events that an address asks for.

    ``every`` are the events that an index leads to, in ``order``. ``wanted`` are those of them to
    find, which may be rare; None: all. ``start`` is used if the address names no start. ``query``
    has the filters that are applied, and ``problems`` a text for each that cannot be.
    """

    query: dict[str, str]
    every: QuerySet[Any]
    wanted: QuerySet[Any] | None = None
    order: SortOrder = field(default_factory=lambda: ByNumber("position"))
    start: SearchStart = field(default_factory=SearchStart)
    problems: list[str] = field(default_factory=list)
    log: EventLog | None = None
    index: int | None = None  # of the event that is asked for by its id
    metadata: tuple[str, str] | None = None  # name and value


def read_filters(query: dict[str, str], using: str, *, sees_payload: bool) -> Filters:
    """Return the filters of an address."""
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
        # The events of a key are few, so they need no windows.
        found.every, found.wanted = (wanted, None) if "key" in query else (found.every, wanted)
    return found


def _of_log(found: Filters, using: str) -> None:
    text = found.query["log"]
    logs = list(search_ids(text, using)[:2])
    found.order = ByNumber("index")
    if len(logs) != 1:
        found.every = found.every.none()
        found.problems.append(
            _("Several logs match this part of an id. Enter more characters of it.")
            if logs
            else _("No log has this id.")
        )
        return
    [log] = logs
    found.log = log
    # The UUID identifies the log, even if the text has another log type.
    found.every = found.every.filter(log_id=log.pk)
    names = [each for each in pasted_ids.names_in(text) if each.index is not None]
    if len(names) == 1 and names[0].index is not None and names[0].index < log.version:
        found.index = names[0].index
        found.start = SearchStart(around=Key(found.index))


def _of_key(key: str, using: str) -> Q:
    """Return the condition for the events that were appended with an idempotency key."""
    found = Q(pk__in=[])
    if "\0" in key:
        return found
    log_types = {each.log_type for each in aggregates}
    for each in IdempotencyKey.objects.using(using).filter(log_type__in=log_types, key=key):
        last = each.first_index + each.count - 1
        found |= Q(log_id=each.log_id, index__range=(each.first_index, last))
    return found


def _of_days(found: Filters) -> QuerySet[Any]:
    """Limit the events to some days; those of one log keep the order of its index."""
    begin, end = days_from(found.query, found.problems)
    if begin is None and end is None:
        return found.every
    rows = found.every
    rows = rows if begin is None else rows.filter(recorded_at__gte=begin)
    rows = rows if end is None else rows.filter(recorded_at__lt=end)
    if "log" not in found.query:  # the events of one log are searched in the order of its index
        found.every, found.order = rows, ByTime()
    return rows


def _of_metadata(
    found: Filters, wanted: QuerySet[Any], using: str, sees_payload: bool
) -> QuerySet[Any]:
    name, equals, value = (each.strip() for each in found.query["metadata"].partition("="))
    if not sees_payload:
        found.problems.append(_("You need the permission to view payloads to filter by metadata."))
        return wanted
    if not (equals and NAME.fullmatch(name)):
        found.problems.append(_("Write the metadata filter as name=value, for example till=7."))
        return wanted
    found.metadata = name, value
    if name in causation.ROLES and found.log is None:
        event = causation.find_event(value, using)
        if event is not None:
            found.start = SearchStart(around=found.order.key_of(event))
    return causation.with_metadata(wanted, name, value)
