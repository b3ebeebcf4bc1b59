"""Logs in the admin: the list of all logs, and the timeline of each."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.request import QueryDict
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from eventlogs import conf
from eventlogs.admin import archived, causation
from eventlogs.admin.downloads import Download
from eventlogs.admin.json_markup import (
    ELLIPSIS,
    LINE,
    LONGEST,
    WHOLE,
    Markup,
    line_markup,
    markup,
    path_markup,
    path_shape,
    visible,
    visible_fields,
)
from eventlogs.admin.keyset_paging import ByCreation, ByUUID, KeysetPage, keyset_page
from eventlogs.admin.log_search import event_in, search, search_archived
from eventlogs.admin.parameters import choices, days_from, number_from, parameters
from eventlogs.admin.personal_values import Payload, of_stored, opened
from eventlogs.admin.read_only import CHOSEN, ReadOnlyAdmin
from eventlogs.admin.seals import sealed
from eventlogs.admin.timelines import SIZE, Timeline, timeline
from eventlogs.admin.users import Actor, actor, users_of
from eventlogs.aggregates import Aggregate, aggregates, fold
from eventlogs.archives.reading import ArchivedStore
from eventlogs.conf import MAX_POSITION
from eventlogs.events.codec import EventReader
from eventlogs.events.metadata import actor_of
from eventlogs.exceptions import ArchiveUnavailable, LogNotFound
from eventlogs.feed import scans
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.models import ArchivedLog, ErasedLog, EventLog
from eventlogs.operations import jsonl, pasted_ids
from eventlogs.operations.pasted_ids import Named
from eventlogs.reductions.timeline import MISSING, Change, Step, Unavailable, plain_value, summarize
from eventlogs.values import EventRecord

LOGS: Final = 50  # logs of a page
NAMES: Final = ("q", "type", "from", "to", "archived")  # parameters of the list
SHORT: Final = 40  # events up to which the list shows the state of a log
LONG: Final = 60  # characters up to which a value of a state shares a line with its name


class Found(NamedTuple):
    """A log that was found, and its row among the archived logs if it is one of them."""

    log: EventLog
    using: str
    archived: ArchivedLog | None = None

    @property
    def store(self) -> ArchivedStore | None:
        """The store to read an archived log from."""
        row = self.archived
        return None if row is None else ArchivedStore(self.using, row)


class StateLine(NamedTuple):
    """A name and value of a state, as the page shows them."""

    name: str
    value: str | Markup
    is_long: bool
    is_changed: bool  # by the event that is selected


@admin.register(EventLog)
class LogAdmin(ReadOnlyAdmin):
    """The list of logs, newest first, and the page of each."""

    def state_line(self, log_id: LogId, aggregate: Aggregate) -> str:
        """Return the state of a log in one line for the list. Override it, or ``summary()``."""
        return summarize(aggregate)

    def get_urls(self) -> list[URLPattern]:
        """Serve the list, a log, and its export."""
        names = "eventlogs_eventlog"
        return [
            path("", self.wrap(self.list_view), name=f"{names}_changelist"),
            path("<path:log>/export/", self.wrap(self.export_view), name=f"{names}_export"),
            path("<path:log>/change/", self.wrap(self.log_view), name=f"{names}_change"),
        ]

    # The list

    def list_view(self, request: HttpRequest) -> HttpResponse:
        """Show a page of logs."""
        asked = request.GET
        using = self.reads(request)
        query = parameters(request, NAMES)
        for place in self.places(request) if "q" in query else ():
            if (event := event_in(query["q"], place)) is not None:
                return self.redirect_to_event(*event)
        if query.pop("archived", "") == "1":
            return self._archived_list(request, {**query, "archived": "1"}, using)
        rows = search(query["q"], using) if "q" in query else EventLog.objects.using(using)
        if "type" in query:
            rows = rows.filter(log_type=query["type"])
        problems: list[str] = []
        begin, end = days_from(query, problems)
        rows = rows if begin is None else rows.filter(created_at__gte=begin)
        rows = rows if end is None else rows.filter(created_at__lt=end)
        found = keyset_page(rows, order=ByCreation(), size=LOGS, asked=asked, query=query)
        also = ""
        if "q" in query and search_archived(query["q"], using).exists():
            also = "?" + urlencode({"q": query["q"], "archived": "1"})
            if not found.rows:
                return HttpResponseRedirect(also)
        if "q" in query and not found.rows:
            for place in self.places(request)[1:]:
                if search(query["q"], place).exists():
                    there = urlencode({CHOSEN: place, "q": query["q"]})
                    return HttpResponseRedirect(f"?{there}")
        states = self._states(request, found.rows, using)
        logs = [
            {"log": log, "log_id": log.log_id, "state": states.get(log.pk)} for log in found.rows
        ]
        nothing = "" if found.rows else nothing_found(query, asked)
        return self._list(request, found, logs, query, problems, nothing=nothing, also=also)

    def _archived_list(
        self, request: HttpRequest, query: dict[str, str], using: str
    ) -> HttpResponse:
        """Show a page of archived logs, in the order of their ids. No archive is read."""
        rows: Any = ArchivedLog.objects.using(using)
        if "q" in query:
            rows = search_archived(query["q"], using)
        if "type" in query:
            rows = rows.filter(log_type=query["type"])
        problems = []
        if query.pop("from", "") + query.pop("to", ""):
            problems.append(_("Archived logs are not searched by day."))
        found = keyset_page(
            rows.defer("frames"), order=ByUUID(), size=LOGS, asked=request.GET, query=query
        )
        logs = [{"log": row, "log_id": row.log_id, "archived": row} for row in found.rows]
        nothing = "" if found.rows else _("No archived log matches.")
        return self._list(request, found, logs, query, problems, nothing=nothing)

    def _list(
        self,
        request: HttpRequest,
        found: KeysetPage[Any],
        logs: list[dict[str, Any]],
        query: dict[str, str],
        problems: list[str],
        *,
        nothing: str,
        also: str = "",
    ) -> HttpResponse:
        context = {
            "title": _("Event logs"),
            "page": found,
            "logs": logs,
            "also": also,
            "has_archives": "archived" in query or conf.archive_storage() is not None,
            "log_types": choices((each.log_type for each in aggregates), query.get("type")),
            "query": {**dict.fromkeys(NAMES, ""), **query},
            "problems": problems,
            "nothing": nothing,
            "short": SHORT,
        }
        return self.page(request, "logs", context)

    def _states(self, request: HttpRequest, logs: list[EventLog], using: str) -> dict[UUID, str]:
        """Return the states of short logs, in one line each, with two or three queries."""
        if not self.sees_payload(request):
            return {}
        classes = {log.log_type: aggregates.of(log.log_type)[:1] for log in logs}
        short = [LogRow.of(log) for log in logs if log.version <= SHORT and classes[log.log_type]]
        states = {}
        for log, events in scans.logs_with_events(using, short):
            [cls] = classes[log.log_id.log_type]
            try:
                records = EventReader(cls.event_types).records(events)
                aggregate = fold(cls.without_events(log.log_id), records).aggregate
                states[log.log_id.uuid] = self.state_line(log.log_id, aggregate)
            except Exception as error:  # whatever the project's own classes raise
                states[log.log_id.uuid] = f"<{type(error).__name__}>"
        return states

    # A log

    def log_view(self, request: HttpRequest, log: str) -> HttpResponse:
        """Show a page of a log's events, and the state as of one of them."""
        try:
            place = self._find(request, log)
        except Http404:
            stone = self._tombstone(request, log)
            if stone is None:
                raise
            context = {"title": str(stone.log_id), "stone": stone}
            gone = self.page(request, "erased", context)
            gone.status_code = HTTPStatus.GONE
            return gone
        using, row = place.using, place.log
        log_id = row.log_id
        selected = index_from(request.GET.get("event"), row.version)
        cls = self._aggregate(request, log_id)
        try:
            found = timeline(
                cls,
                log_id,
                row.version,
                selected,
                using=using,
                fold_all=request.GET.get("fold") == "1",
                store=place.store,
            )
        except (ArchiveUnavailable, LogNotFound) as error:
            return self._unavailable(request, place, error)
        sees = self.sees_payload(request)
        payloads = opened([of_stored(each) for each in found.rows], sees=sees)
        metadata = [each.record.metadata for each in found.steps] if sees else []
        users = users_of(self.admin_site, request, metadata)
        chosen = {"aggregate": request.GET["aggregate"]} if "aggregate" in request.GET else {}
        context = {
            "title": str(log_id),
            "log": row,
            "log_id": log_id,
            "archived": place.archived,
            "sealed": sealed(row, using, archived=place.archived),
            "timeline": found,
            "events": [
                self._event(step, payload, found, sees, users)
                for step, payload in zip(reversed(found.steps), reversed(payloads), strict=True)
            ],
            "state": self._state(found, sees),
            # If rows were removed despite the triggers, the index may have no event.
            "is_selected_there": any(each.record.index == selected for each in found.steps),
            "unavailable": found.state if isinstance(found.state, Unavailable) else None,
            # Names, because a template would call a class.
            "aggregates": [each.__qualname__ for each in aggregates.of(log_id.log_type)],
            "aggregate": None if cls is None else cls.__qualname__,
            "chosen": chosen,
            "carried": f"{urlencode(chosen)}&" if chosen else "",
            "tree": self.address("event_tree", f"{log_id}:{selected}"),
            "links": self._links(found),
            "size": SIZE,
        }
        return self.page(request, "log", context)

    def _unavailable(
        self, request: HttpRequest, place: Found, error: ArchiveUnavailable | LogNotFound
    ) -> HttpResponse:
        """Show that an archive cannot be read, or that the log was moved just now."""
        context = {
            "title": str(place.log.log_id),
            "log": place.log,
            "log_id": place.log.log_id,
            "archived": place.archived,
            "reason": error.reason if isinstance(error, ArchiveUnavailable) else "",
        }
        response = self.page(request, "unavailable", context)
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return response

    def _links(self, found: Timeline) -> dict[str, int | None]:
        last = found.version - 1
        return {
            "first": 0 if found.selected > 0 else None,
            "previous": found.selected - 1 if found.selected > 0 else None,
            "next": found.selected + 1 if found.selected < last else None,
            "last": last if found.selected < last else None,
            "older_page": found.start - 1 if found.start > 0 else None,
            "newer_page": found.last + 1 if found.last < last else None,
        }

    def _event(
        self,
        step: Step,
        payload: Payload,
        found: Timeline,
        sees: bool,
        users: dict[str, Actor],
    ) -> dict[str, Any]:
        record = step.record
        by, rest = actor_of(payload.metadata)
        data = record.event
        today = None if step.event is None else plain_value(step.event)
        is_selected = record.index == found.selected
        longest = WHOLE if is_selected else LONGEST

        def shown(value: Any) -> Markup:
            return markup(visible_fields(value, sees), longest=longest)

        return {
            "record": record,
            "is_selected": is_selected,
            "actor": actor(by, record.metadata, users) if sees else None,
            "payload": shown(payload.data),
            # The event as today's code reads it, if that differs from the stored data.
            "today": shown(today) if sees and today not in (None, data) else None,
            "metadata": shown(rest) if rest else "",
            "links": self._related(record) if sees else [],
            "changes": [change_of(each, sees) for each in step.changes or ()],
            "has_changes": step.changes is not None,
        }

    def _related(self, record: EventRecord) -> list[tuple[str, str]]:
        events = self.address("event_changelist")
        return causation.links(events, record.id, record.position, record.metadata)

    def _state(self, found: Timeline, sees: bool) -> list[StateLine] | None:
        if not isinstance(found.state, dict):
            return None
        [*changes] = (
            change
            for step in found.steps
            if step.record.index == found.selected
            for change in step.changes or ()
        )
        changed = {change.path[0] for change in changes if change.path}
        left = WHOLE
        lines = []
        for name, value in found.state.items():
            text = text_of(visible(value, sees), longest=max(left, LINE))
            left -= len(str(text))
            is_long = isinstance(value, dict | list) or len(str(text)) > LONG
            lines.append(StateLine(name, text, is_long, name in changed))
        return lines

    def _find(self, request: HttpRequest, log: str) -> Found:
        """Return the log of an id in any spelling, also an archived one, or raise Http404."""
        names = pasted_ids.names_in(unquote(log))
        if len(names) == 1:
            for using in self.places(request):
                if (found := find(names[0], using)) is not None:
                    return found
        raise Http404(_("No log has this id."))

    def _tombstone(self, request: HttpRequest, log: str) -> ErasedLog | None:
        """Return the tombstone of an erased log's id, in any spelling."""
        names = pasted_ids.names_in(unquote(log))
        if len(names) != 1:
            return None
        [name] = names
        for using in self.places(request):
            found = ErasedLog.objects.using(using).filter(pk=name.uuid).first()
            if found is not None and name.log_type in (None, found.log_type):
                return found
        return None

    def _aggregate(self, request: HttpRequest, log_id: LogId) -> type[Aggregate] | None:
        classes = aggregates.of(log_id.log_type)
        name = request.GET.get("aggregate")
        for each in classes:
            if each.__qualname__ == name:
                return each
        return classes[0] if classes else None

    def export_view(self, request: HttpRequest, log: str) -> HttpResponseBase:
        """Send a log in the JSON lines of ``manage.py eventlogs export``."""
        if not self.sees_payload(request):
            raise PermissionDenied
        place = self._find(request, log)
        using = place.using
        log_id = place.log.log_id

        def parts() -> Iterator[str]:
            count = last = 0
            yield jsonl.header(after=0)
            for each in jsonl.export_pages(using, until=MAX_POSITION, logs=[log_id]):
                count += len(each.lines)
                last = each.position
                yield "".join(each.lines)
            erased = 0  # it may be erased while it is read
            for some in jsonl.tombstone_pages(using, logs=[log_id]):
                erased += len(some)
                yield "".join(some)
            yield jsonl.footer(events=count, until=last, erased=erased)

        lines = parts()
        if place.archived is not None:
            try:
                lines = archived.export_parts(place.archived, using)
            except (ArchiveUnavailable, LogNotFound) as error:
                return self._unavailable(request, place, error)
        response = Download(lines, content_type="application/jsonl")
        response["Content-Disposition"] = f'attachment; filename="{log_id}.jsonl"'
        return response


def find(name: Named, using: str) -> Found | None:
    """Return the log of an id in a database, also an archived one, or None."""
    log = EventLog.objects.using(using).filter(pk=name.uuid).first()
    if log is not None and name.log_type in (None, log.log_type):
        return Found(log, using)
    row = archived.named(name, using)
    return None if row is None else Found(archived.as_log(row), using, row)


def nothing_found(query: dict[str, str], asked: QueryDict) -> str:
    """Return the text of a page of the list that has no log."""
    order = ByCreation()
    if order.read(asked.get("before")) is not None:
        return _("There are no older logs.")
    if order.read(asked.get("after")) is not None:
        return _("There are no newer logs.")
    if "q" not in query:
        return _("No log matches these filters.") if query else _("There are no logs yet.")
    if len(query) > 1:
        text = _("No log with this id, part of an id or idempotency key matches these filters.")
    else:
        text = _("No log has this id, part of an id or idempotency key.")
    hint = _("Enter at least %(count)s characters of an id.") % {"count": pasted_ids.SHORTEST}
    return f"{text} {hint}" if len(query["q"]) < pasted_ids.SHORTEST else text


def change_of(change: Change, sees: bool) -> dict[str, Any]:
    """Return a change for a template: its path, and the old and the new value."""

    def shown(value: Any) -> Markup | None:
        if value is MISSING:
            return None
        return line_markup(visible(value, sees))

    return {
        "where": path_markup(change.path if sees else path_shape(change.path)),
        "old": shown(change.old),
        "new": shown(change.new),
    }


def text_of(value: Any, *, longest: int) -> str | Markup:
    """Return a value of a state: None as a dash, a text unchanged, anything else as JSON."""
    if value is None:
        return "—"
    if isinstance(value, str):
        return value if len(value) <= longest else value[:longest] + ELLIPSIS
    return markup(value, longest=longest)


def index_from(text: str | None, version: int) -> int:
    """Read the index of an event of a log; return the last one for any other text."""
    index = number_from(text)
    return version - 1 if index is None else min(index, version - 1)
