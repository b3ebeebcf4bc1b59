"""The events of all logs in the admin, newest first."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.formats import number_format
from django.utils.translation import gettext as _

from eventlogs.admin import causation, causation_tree
from eventlogs.admin.filters import NAMES, Filters, read_filters
from eventlogs.admin.json_markup import Markup, line_markup, visible_fields
from eventlogs.admin.keyset_paging import KeysetPage
from eventlogs.admin.log_search import event_in
from eventlogs.admin.parameters import choices, number_from, parameters
from eventlogs.admin.personal_values import Payload, of_row, opened, without_hidden
from eventlogs.admin.read_only import ReadOnlyAdmin
from eventlogs.admin.sort_orders import ByTime, Key
from eventlogs.admin.users import Actor, actor, users_of
from eventlogs.admin.windowed_search import SearchResult, SearchStart, search_windows
from eventlogs.aggregates import aggregates
from eventlogs.events.metadata import TRACEPARENT, actor_of
from eventlogs.events.registry import registry
from eventlogs.ids import LogId
from eventlogs.models import Event
from eventlogs.operations.catalogue import catalogue
from eventlogs.utils.times import time_text

EVENTS: Final = 50  # events of a page
SPAN: Final = 100_000  # events that one statement searches, where a filter has no index
SECONDS: Final = 1.0  # time limit of such a search


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    """The list of all events, the causation tree of each, and redirects to single events."""

    def get_urls(self) -> list[URLPattern]:
        """Serve the list, and redirects from a position or an id to the event in its log."""
        names = "eventlogs_event"
        return [
            path("", self.wrap(self.list_view), name=f"{names}_changelist"),
            path("types/", self.wrap(self.types_view), name=f"{names}_types"),
            path("<int:position>/", self.wrap(self.event_view)),
            path("<int:position>/change/", self.wrap(self.event_view), name=f"{names}_change"),
            path("<str:record>/", self.wrap(self.record_view)),
            path("<str:record>/tree/", self.wrap(self.tree_view), name=f"{names}_tree"),
        ]

    def types_view(self, request: HttpRequest) -> HttpResponse:
        """Show the catalogue of event types."""
        found = catalogue(using=self.reads(request))
        context = {
            "title": _("Event types"),
            "entries": found.entries,
            "counted": found.counted,
            "is_exact": found.is_exact,
        }
        return self.page(request, "types", context)

    def event_view(self, request: HttpRequest, position: int) -> HttpResponse:
        """Redirect from a position to the event in its log."""
        events = Event.objects.using(self.reads(request))
        event = events.filter(position=position).first() if position < 2**63 else None
        if event is None:
            raise Http404(
                _("No event has this position, or its log is archived: search for the event's id.")
            )
        return self.redirect_to_event(log_id_of(event), event.index)

    def record_view(self, request: HttpRequest, record: str) -> HttpResponse:
        """Redirect from an event's id, ``<log id>:<index>``, to the event in its log."""
        places = (event_in(record, using) for using in self.places(request))
        found = next((each for each in places if each is not None), None)
        if found is None:
            raise Http404(_("No event has this id."))
        return self.redirect_to_event(*found)

    def list_view(self, request: HttpRequest) -> HttpResponse:
        """Show a page of events."""
        using, sees = self.reads(request), self.sees_payload(request)
        asked = read_filters(parameters(request, NAMES), using, sees_payload=sees)
        start = start_of(request, asked, using)
        found = search_windows(
            asked.every,
            asked.wanted,
            asked.order,
            start,
            size=EVENTS,
            span=SPAN,
            seconds=SECONDS,
        )
        query = asked.query
        payloads = opened([of_row(each) for each in found.events], sees=sees)
        metadata = [without_hidden(each.metadata) for each in payloads] if sees else []
        users = users_of(self.admin_site, request, metadata)
        context = {
            "title": _("Events"),
            "page": page_of(found, asked, start),
            "events": [
                self._event(event, payload, asked, sees, users)
                for event, payload in zip(found.events, payloads, strict=True)
            ],
            "report": report(found, asked, start, using),
            "search_on": search_on(found, asked),
            "is_by_time": isinstance(asked.order, ByTime),
            "types": choices((each.name for each in registry), query.get("type")),
            "log_types": choices((each.log_type for each in aggregates), query.get("log_type")),
            "query": {**dict.fromkeys(NAMES, ""), **query},
            "problems": asked.problems,
        }
        return self.page(request, "events", context)

    def tree_view(self, request: HttpRequest, record: str) -> HttpResponse:
        """Show the causes and effects of an event, and what else belongs to its flow."""
        if not self.sees_payload(request):
            raise PermissionDenied
        using, event = self.reads(request), None
        for using in self.places(request):
            event = causation.find_event(record, using)
            if event is not None:
                break
        if event is None:
            raise Http404(_("No event has this id, or its archive cannot be read."))
        causes = causation_tree.causes_of(event, using)
        flow = causation_tree.flow_of(event, causes)
        asked = causation_tree.flow(event, flow, using)
        start = start_of(request, asked, using)
        found = search_windows(
            asked.every,
            asked.wanted,
            asked.order,
            start,
            size=causation_tree.EVENTS,
            span=SPAN,
            seconds=SECONDS,
        )
        first = causation.find_event(flow, using)
        shown = [event, *causes, *found.events, *([] if first is None else [first])]
        users = users_of(self.admin_site, request, [each.metadata for each in shown])
        page = page_of(found, asked, start)
        is_stopped = found.stopped_newer or found.stopped_older
        context = {
            "title": _("Causation tree"),
            "event": event,
            "record_id": record,
            "log_id": log_id_of(event),
            "flow": flow,
            "requests": [
                {
                    "request_id": each.request_id,
                    "actor": self._actor(each.nodes[0].event, users),
                    "traceparent": each.nodes[0].event.metadata.get(TRACEPARENT),
                    "nodes": [self._node(node, event, users) for node in each.nodes],
                }
                for each in causation_tree.tree(shown)
            ],
            "page": page if page.newer or page.older else None,
            "report": report(found, asked, start, using) if is_stopped else "",
            "search_on": search_on(found, asked),
        }
        return self.page(request, "tree", context)

    def _node(self, node: causation_tree.Node, asked: Event, users: dict[str, Actor]) -> Any:
        return {
            "event": node.event,
            "log_id": node.log_id,
            "address": self.address("event_tree", node.record_id),
            "cause": node.cause,
            "is_asked_for": node.event.pk == asked.pk,
            "actor": self._actor(node.event, users),
            "effects": [self._node(each, asked, users) for each in node.effects],
        }

    def _actor(self, event: Event, users: dict[str, Actor]) -> Actor | None:
        by, _rest = actor_of(event.metadata)
        return actor(by, event.metadata, users)

    def _event(
        self, event: Event, payload: Payload, asked: Filters, sees: bool, users: dict[str, Actor]
    ) -> dict[str, Any]:
        by, rest = actor_of(payload.metadata)

        def shown(value: Any) -> Markup:
            return line_markup(visible_fields(value, sees))

        return {
            "event": event,
            "log_id": log_id_of(event),
            "is_asked_for": asked.index == event.index,
            "role": causation.role_of(event, *asked.metadata) if asked.metadata else "",
            "actor": actor(by, without_hidden(payload.metadata), users) if sees else None,
            "payload": shown(payload.data),
            "metadata": shown(rest) if rest else "",
        }


def log_id_of(event: Event) -> LogId:
    """Return the id of an event's log."""
    return LogId.stored(event.log_type, event.log_id)


def start_of(request: HttpRequest, asked: Filters, using: str) -> SearchStart:
    """Return the start that an address names, or that its filters suggest."""
    places = request.GET
    if places.get("end") == "1":
        return SearchStart(oldest=True)
    if (after := asked.order.read(places.get("after"))) is not None:
        return SearchStart(after=after)
    if (before := asked.order.read(places.get("before"))) is not None:
        return SearchStart(before=before)
    position = number_from(places.get("around"))
    if position is None or "log" in asked.query:
        return asked.start
    if not isinstance(asked.order, ByTime):
        return SearchStart(around=Key(position))
    event = Event.objects.using(using).filter(position=position).first()
    return asked.start if event is None else SearchStart(around=asked.order.key_of(event))


def page_of(found: SearchResult, asked: Filters, start: SearchStart) -> KeysetPage[Event]:
    """Return a page of the events that were found, with the addresses of the pages around it."""
    older, newer = address(asked, before=found.older), address(asked, after=found.newer)
    return KeysetPage(
        found.events,
        first=address(asked) if newer or start.oldest else None,
        newer=newer,
        older=older,
        last=address(asked, end="1") if older else None,
    )


def search_on(found: SearchResult, asked: Filters) -> list[tuple[str, str | None]]:
    """Return texts and addresses that continue a search which the time limit has ended."""
    links = []
    if found.stopped_older:
        text = _("Search older events") if found.stopped_newer else _("Continue the search")
        links.append((text, address(asked, before=found.older)))
    if found.stopped_newer:
        text = _("Search newer events") if found.stopped_older else _("Continue the search")
        links.append((text, address(asked, after=found.newer)))
    return links


def address(asked: Filters, *, end: str = "", **places: Key | None) -> str | None:
    """Return the address of a page with the same filters, or None if its key is None."""
    more = {name: asked.order.text(key) for name, key in places.items() if key is not None}
    if places and not more:
        return None
    return "?" + urlencode({**asked.query, **more, **({"end": end} if end else {})})


def report(found: SearchResult, asked: Filters, start: SearchStart, using: str) -> str:
    """Return which events were searched, or "" for a page that needed no windows or is full."""
    stopped = found.stopped_newer or found.stopped_older
    if found.events and not stopped:
        return ""
    if asked.problems and not found.events and "log" in asked.query and asked.log is None:
        return ""  # the problem is shown
    if asked.wanted is None:
        return _none_of_all(asked, start)
    low, high, among = _extent(found, asked, using)
    facts = {"low": low, "high": high, "among": among}
    if low is None or high is None:
        return _none_of_all(asked, start)
    if isinstance(asked.order, ByTime):
        searched = _("Searched the events recorded from %(low)s to %(high)s%(among)s")
    elif asked.log is not None:
        searched = _("Searched events %(low)s to %(high)s of the log%(among)s")
    else:
        searched = _("Searched positions %(low)s to %(high)s%(among)s")
    if found.events:
        result = _("these events match so far.")
    elif stopped:
        result = _("no event matches so far.")
    else:
        result = _("no event matches these filters.")
    return f"{searched % facts}: {result}"


def _none_of_all(asked: Filters, start: SearchStart) -> str:
    """Return the text of an empty page whose events an index leads to."""
    if start.before is not None:
        return _("There are no older events.")
    if start.after is not None:
        return _("There are no newer events.")
    if asked.query:
        return _("No event matches these filters. All events were searched.")
    return _("There are no events yet.")


def _extent(found: SearchResult, asked: Filters, using: str) -> tuple[str | None, str | None, str]:
    """Return as texts the first and the last event searched, and the range of all events."""
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
        # Two statements: SQLite would read the whole table for one with both.
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
