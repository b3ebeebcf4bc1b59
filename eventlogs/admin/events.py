"""All events in the admin, the newest first."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from django.contrib import admin
from django.db import connections
from django.db.models import Max, Q
from django.db.models.fields.json import KeyTransform
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _

from eventlogs.admin import shapes
from eventlogs.admin.keysets import page
from eventlogs.admin.logs import day_of
from eventlogs.admin.readonly import ReadOnlyAdmin, asked_for
from eventlogs.aggregates import aggregates
from eventlogs.conf import MAX_VERSION
from eventlogs.events import registry
from eventlogs.exceptions import InvalidLogId
from eventlogs.ids import LogId
from eventlogs.managers import EventQuerySet
from eventlogs.metadata import actor_of
from eventlogs.models import Event, EventLog, IdempotencyKey

EVENTS: Final = 50  # of a page
SPAN: Final = 100_000  # events that are looked through for one page, where filters are on
NAMES: Final = ("type", "log_type", "from", "to", "key", "log", "metadata")
NAME: Final = re.compile(r"[\w.:-]{1,100}\Z")
SLACK: Final = timedelta(minutes=5)  # how far positions and times may be out of step

# The first position whose event was recorded at a moment or later, found by halving: positions
# and times grow together, but for transactions that were long open (see SLACK).
AT: Final = """(SELECT recorded_at FROM eventlogs_event
             WHERE position >= (low + high) / 2 ORDER BY position LIMIT 1) >= %s"""
PLACE: Final = f"""
WITH RECURSIVE bounds (low, high) AS (
    SELECT CAST(0 AS bigint), coalesce((SELECT max(position) FROM eventlogs_event), 0) + 1
    UNION ALL
    SELECT CASE WHEN {AT} THEN low ELSE (low + high) / 2 + 1 END,
           CASE WHEN {AT} THEN (low + high) / 2 ELSE high END
    FROM bounds WHERE low < high
)
SELECT max(low) FROM bounds
"""
# MySQL and MariaDB divide integers by DIV, and have another name for their type.
PLACE_ON_MYSQL: Final = PLACE.replace("/ 2", "DIV 2").replace("AS bigint", "AS SIGNED")


class Window(NamedTuple):
    """
    What one page looks through, and what to ask for behind it, if there is anything.

    ``low`` and ``high`` are positions; where the events of one log are asked for, indexes.
    """

    low: int
    high: int
    more: dict[str, int] | None


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    """Events of all logs."""

    def get_urls(self) -> list[URLPattern]:
        """Serve the list, and the way from a position to its event, which is shown in its log."""
        names = "eventlogs_event"
        return [
            path("", self.wrap(self.list_view), name=f"{names}_changelist"),
            path("<int:position>/", self.wrap(self.event_view)),
            path("<int:position>/change/", self.wrap(self.event_view), name=f"{names}_change"),
            path("<str:record>/", self.wrap(self.record_view)),
        ]

    def event_view(self, request: HttpRequest, position: int) -> HttpResponse:
        """Go to an event's place in its log."""
        events = Event.objects.using(Event.objects.db).select_related("log")
        event = events.filter(position=position).first() if position < 2**63 else None
        if event is None:
            raise Http404(_("There is no event at this position."))
        return self._redirect(event.log.log_id, event.index)

    def record_view(self, request: HttpRequest, record: str) -> HttpResponse:
        """Go to the place of the event with the id ``<log id>:<index>``, which never changes."""
        log, _colon, index = record.rpartition(":")
        try:
            log_id = LogId.parse(log)
        except InvalidLogId:
            raise Http404(_("There is no such event.")) from None
        events = Event.objects.using(Event.objects.db).for_log(log_id)
        is_index = index.isascii() and index.isdigit() and len(index) <= len(str(MAX_VERSION))
        if not is_index or not events.filter(index=int(index)).exists():
            raise Http404(_("There is no such event."))
        return self._redirect(log_id, int(index))

    def _redirect(self, log_id: LogId, index: int) -> HttpResponse:
        log = reverse(f"{self.admin_site.name}:eventlogs_eventlog_change", args=[log_id])
        return HttpResponseRedirect(f"{log}?event={index}#event-{index}")

    def list_view(self, request: HttpRequest) -> HttpResponse:
        """Show a page of events."""
        asked, using = request.GET, Event.objects.db
        query = asked_for(request, NAMES)
        problems: list[str] = []
        everything = Event.objects.using(using).select_related("log")
        # The events of one log are found by its index, and all others by theirs.
        field = "index" if "log" in query else "position"
        rows, is_sparse, bounds = self._filtered(request, everything, query, problems, using)
        before, after = number_from(asked.get("before")), number_from(asked.get("after"))
        if asked.get("end") == "1":
            after = -1
        window = None
        if is_sparse:
            window = self._window(bounds, before, after)
            rows = rows.filter(**{f"{field}__range": (window.low, window.high)})
        found = page(rows, field=field, before=before, after=after, size=EVENTS, query=query)
        # A page that ends with its window, and not with its size, is not the last one.
        more = window.more if window is not None and len(found.rows) < EVENTS else None
        context = {
            "title": _("Events"),
            "page": found,
            "window": window if more else None,
            "look_on": "?" + urlencode({**query, **more}) if more else None,
            "events": [self._event(each, self.sees_payload(request)) for each in found.rows],
            "types": sorted(each.name for each in registry),
            "log_types": sorted({each.log_type for each in aggregates}),
            "query": {**dict.fromkeys(NAMES, ""), **query},
            "problems": problems,
        }
        return self.page(request, "events", context)

    def _filtered(
        self,
        request: HttpRequest,
        rows: EventQuerySet[Any],
        query: dict[str, str],
        problems: list[str],
        using: str,
    ) -> tuple[EventQuerySet[Any], bool, tuple[int, int]]:
        """
        Return the events that are asked for, whether they may be rare, and their bounds.

        Bounds are the first and the last position that they can be at; in a log, the first and
        the last index.
        """
        is_of_log, is_sparse = "log" in query, False
        if is_of_log:
            rows, first, last = self._of_log(query["log"], rows, problems, using)
        else:
            newest = rows.order_by().aggregate(last=Max("position"))["last"]
            first, last = 1, newest or 0
        if "key" in query:
            rows = rows.filter(self._of_key(query["key"], using))
        if "type" in query:
            rows, is_sparse = rows.of_type(query["type"]), True
        if "log_type" in query:
            rows, is_sparse = rows.filter(log__log_type=query["log_type"]), True
        for name, later in (("from", 0), ("to", 1)):
            if name not in query:
                continue
            day = day_of(query[name])
            if day is None:
                problems.append(_("This is no date: %(text)s") % {"text": query.pop(name)[:40]})
                continue
            moment = day + timedelta(days=later)
            rows = rows.filter(**{"recorded_at__lt" if later else "recorded_at__gte": moment})
            if is_of_log:
                is_sparse = True
            elif later:
                last = min(last, place_of(moment + SLACK, using) - 1)
            else:
                first = max(first, place_of(moment - SLACK, using))
        if "metadata" in query:
            name, equals, value = query["metadata"].partition("=")
            if not (equals and NAME.match(name.strip()) and self.sees_payload(request)):
                problems.append(_("Metadata are asked for as name=value, by who may see them."))
            else:
                rows = rows.alias(asked_for=KeyTransform(name.strip(), "metadata"))
                wanted = Q(asked_for=value.strip())
                if re.fullmatch(r"-?[0-9]{1,15}", value.strip()):
                    wanted |= Q(asked_for=int(value))
                rows, is_sparse = rows.filter(wanted), True
        if not is_of_log:
            rows = rows.filter(position__range=(first, last))
        return rows, is_sparse and "key" not in query, (first, last)

    def _of_log(
        self, text: str, rows: EventQuerySet[Any], problems: list[str], using: str
    ) -> tuple[EventQuerySet[Any], int, int]:
        try:
            log_id = LogId.parse(text)
        except InvalidLogId:
            problems.append(_("This is no log id."))
            return rows.none(), 0, -1
        logs = EventLog.objects.using(using).filter(pk=log_id.uuid, log_type=log_id.log_type)
        version = logs.values_list("version", flat=True).first() or 0
        return (rows.filter(log_id=log_id.uuid) if version else rows.none()), 0, version - 1

    def _of_key(self, key: str, using: str) -> Q:
        """Return what finds the events of the appends of a key."""
        found = Q(pk__in=[])
        if "\0" in key:
            return found
        log_types = {each.log_type for each in aggregates}
        for each in IdempotencyKey.objects.using(using).filter(log_type__in=log_types, key=key):
            last = each.first_index + each.count - 1
            found |= Q(log_id=each.log_id, index__range=(each.first_index, last))
        return found

    def _window(self, bounds: tuple[int, int], before: int | None, after: int | None) -> Window:
        """Return which events to look through: so many, however few are found among them."""
        lowest, highest = bounds
        if after is not None:
            low = max(lowest, after + 1)
            high = min(highest, low + SPAN - 1)
            return Window(low, high, {"after": high} if high < highest else None)
        high = highest if before is None else min(highest, before - 1)
        low = max(lowest, high - SPAN + 1)
        return Window(low, high, {"before": low} if low > lowest else None)

    def _event(self, event: Event, sees: bool) -> dict[str, Any]:
        actor, rest = actor_of(event.metadata)
        return {
            "event": event,
            "log_id": event.log.log_id,
            "actor": actor if sees else None,
            "payload": shapes.line(event.data if sees else shapes.shape(event.data)),
            "metadata": shapes.line(rest if sees else shapes.shape(rest)) if rest else "",
        }


def place_of(moment: datetime, using: str) -> int:
    """Return the first position of which the event was recorded at a moment or later."""
    connection = connections[using]
    value = connection.ops.adapt_datetimefield_value(moment)
    with connection.cursor() as cursor:
        cursor.execute(PLACE_ON_MYSQL if connection.vendor == "mysql" else PLACE, [value, value])
        return int(cursor.fetchone()[0])


def number_from(text: str | None) -> int | None:
    """Read a position or an index, None for anything else."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 18):
        return None
    return int(text)
