"""All events in the admin, the newest first."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from django.contrib import admin
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.formats import number_format
from django.utils.translation import gettext as _

from eventlogs.admin import relations, shapes
from eventlogs.admin.filters import NAMES, Filters, read_filters
from eventlogs.admin.keysets import Page
from eventlogs.admin.looking import Found, Start, look
from eventlogs.admin.orders import ByTime, Key, number_from
from eventlogs.admin.readonly import ReadOnlyAdmin, asked_for
from eventlogs.admin.search import event_in
from eventlogs.aggregates import aggregates
from eventlogs.events.metadata import actor_of
from eventlogs.events.registry import registry
from eventlogs.ids import LogId
from eventlogs.models import Event
from eventlogs.utils.times import time_text

EVENTS: Final = 50  # of a page
SPAN: Final = 100_000  # events that one statement looks through, where filters are on
SECONDS: Final = 1.0  # after which a page looks through no further ones


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
        events = Event.objects.using(Event.objects.db)
        event = events.filter(position=position).first() if position < 2**63 else None
        if event is None:
            raise Http404(_("There is no event at this position."))
        return self._redirect(log_id_of(event), event.index)

    def record_view(self, request: HttpRequest, record: str) -> HttpResponse:
        """Go to the place of the event with the id ``<log id>:<index>``, which never changes."""
        found = event_in(record, Event.objects.db)
        if found is None:
            raise Http404(_("There is no such event."))
        return self._redirect(*found)

    def _redirect(self, log_id: LogId, index: int) -> HttpResponse:
        log = reverse(f"{self.admin_site.name}:eventlogs_eventlog_change", args=[log_id])
        return HttpResponseRedirect(f"{log}?event={index}#event-{index}")

    def list_view(self, request: HttpRequest) -> HttpResponse:
        """Show a page of events."""
        using, sees = Event.objects.db, self.sees_payload(request)
        asked = read_filters(asked_for(request, NAMES), using, sees_payload=sees)
        start = start_of(request, asked, using)
        found = look(
            asked.every,
            asked.wanted,
            asked.order,
            start,
            size=EVENTS,
            span=SPAN,
            seconds=SECONDS,
        )
        query = asked.query
        context = {
            "title": _("Events"),
            "page": page_of(found, asked, start),
            "events": [self._event(each, asked, sees) for each in found.events],
            "report": report(found, asked, start, using),
            "look_on": look_on(found, asked),
            "is_by_time": isinstance(asked.order, ByTime),
            "types": choices({each.name for each in registry}, query.get("type")),
            "log_types": choices({each.log_type for each in aggregates}, query.get("log_type")),
            "query": {**dict.fromkeys(NAMES, ""), **query},
            "problems": asked.problems,
        }
        return self.page(request, "events", context)

    def _event(self, event: Event, asked: Filters, sees: bool) -> dict[str, Any]:
        actor, rest = actor_of(event.metadata)

        def shown(value: Any) -> shapes.Markup:
            return shapes.line_markup(value if sees else shapes.shape_of_fields(value))

        return {
            "event": event,
            "log_id": log_id_of(event),
            "is_asked_for": asked.index == event.index,
            "role": relations.role_of(event, *asked.metadata) if asked.metadata else "",
            "actor": actor if sees else None,
            "payload": shown(event.data),
            "metadata": shown(rest) if rest else "",
        }


def log_id_of(event: Event) -> LogId:
    """Return the id of an event's log."""
    return LogId.stored(event.log_type, event.log_id)


def start_of(request: HttpRequest, asked: Filters, using: str) -> Start:
    """Return where a page begins: where the address says, or where its filters suggest."""
    places = request.GET
    if places.get("end") == "1":
        return Start(oldest=True)
    if (after := asked.order.read(places.get("after"))) is not None:
        return Start(after=after)
    if (before := asked.order.read(places.get("before"))) is not None:
        return Start(before=before)
    position = number_from(places.get("around"))
    if position is None or "log" in asked.query:
        return asked.start
    if not isinstance(asked.order, ByTime):
        return Start(around=Key(position))
    event = Event.objects.using(using).filter(position=position).first()
    return asked.start if event is None else Start(around=asked.order.key_of(event))


def choices(known: set[str], asked: str | None) -> list[str]:
    """Return what a filter offers: what is known here, and what is asked for all the same."""
    return sorted(known if asked is None else known | {asked})


def page_of(found: Found, asked: Filters, start: Start) -> Page[Event]:
    """Return the ways to the pages around a page."""
    older, newer = address(asked, before=found.older), address(asked, after=found.newer)
    return Page(
        found.events,
        first=address(asked) if newer or start.oldest else None,
        newer=newer,
        older=older,
        last=address(asked, end="1") if older else None,
    )


def look_on(found: Found, asked: Filters) -> list[tuple[str, str | None]]:
    """Return where to look on, if a page was given up before it was full: texts and addresses."""
    ways = []
    if found.stopped_older:
        text = _("Look on among older events") if found.stopped_newer else _("Look on")
        ways.append((text, address(asked, before=found.older)))
    if found.stopped_newer:
        text = _("Look on among newer events") if found.stopped_older else _("Look on")
        ways.append((text, address(asked, after=found.newer)))
    return ways


def address(asked: Filters, *, end: str = "", **places: Key | None) -> str | None:
    """Return the address of a page with the same filters, None for one at no place."""
    more = {name: asked.order.text(key) for name, key in places.items() if key is not None}
    if places and not more:
        return None
    return "?" + urlencode({**asked.query, **more, **({"end": end} if end else {})})


def report(found: Found, asked: Filters, start: Start, using: str) -> str:
    """Say how far events were looked for, "" where a page is full or was complete at once."""
    stopped = found.stopped_newer or found.stopped_older
    if found.events and not stopped:
        return ""
    if asked.problems and not found.events and "log" in asked.query and asked.log is None:
        return ""  # the problem has been told
    if asked.wanted is None:
        return _none_of_all(asked, start)
    low, high, among = _extent(found, asked, using)
    facts = {"low": low, "high": high, "among": among}
    if low is None or high is None:
        return _none_of_all(asked, start)
    if isinstance(asked.order, ByTime):
        through = _("Looked through the events recorded from %(low)s to %(high)s%(among)s")
    elif asked.log is not None:
        through = _("Looked through events %(low)s to %(high)s of the log%(among)s")
    else:
        through = _("Looked through positions %(low)s to %(high)s%(among)s")
    if found.events:
        what = _("these so far.")
    elif stopped:
        what = _("none so far.")
    else:
        what = _("none has these filters.")
    return f"{through % facts}: {what}"


def _none_of_all(asked: Filters, start: Start) -> str:
    """Say that nothing was found where an index leads to all there is."""
    if start.before is not None:
        return _("No event is older.")
    if start.after is not None:
        return _("No event is newer.")
    if asked.query:
        return _("There is no event with these filters. All events were considered.")
    return _("There is no event yet.")


def _extent(found: Found, asked: Filters, using: str) -> tuple[str | None, str | None, str]:
    """Return the ends of what was looked through, as text, and of what there is."""
    if isinstance(asked.order, ByTime):
        times = [
            asked.order.sorted(asked.every, up=up).values_list("recorded_at", flat=True).first()
            for up in (True, False)
        ]
        if None in times:
            return None, None, ""
        seen = [found.low and found.low.time, found.high and found.high.time]
        low, high = (time_text(time or end) for time, end in zip(seen, times, strict=True))
        return low, high, _among(*map(time_text, times))
    if asked.log is not None:
        first, last = 0, asked.log.version - 1
    else:
        # Two statements: for both at once, SQLite reads the whole table.
        numbers = Event.objects.using(using).values_list("pk", flat=True)
        first, last = numbers.order_by("pk").first() or 0, numbers.order_by("-pk").first() or -1
    if last < first:
        return None, None, ""
    lowest = first if found.low is None else max(first, found.low.number)
    highest = last if found.high is None else min(last, found.high.number)
    return _number(lowest), _number(highest), _among(_number(first), _number(last))


def _among(first: str, last: str) -> str:
    return _(", of %(first)s to %(last)s") % {"first": first, "last": last}


def _number(value: int) -> str:
    return number_format(value, force_grouping=True)
