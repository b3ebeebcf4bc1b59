"""Logs in the admin: a list of them, and one as a timeline in which one can travel."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.utils.translation import gettext as _

from eventlogs.admin import relations, shapes
from eventlogs.admin.downloads import Download
from eventlogs.admin.keysets import page
from eventlogs.admin.readonly import ReadOnlyAdmin, asked_for
from eventlogs.admin.search import event_in, search
from eventlogs.admin.timelines import SIZE, Timeline, timeline
from eventlogs.aggregates import Aggregate, aggregates, fold, nothing
from eventlogs.events.codec import EventReader
from eventlogs.events.metadata import actor_of
from eventlogs.events.registry import EventRecord
from eventlogs.feed import scans
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.operations import jsonl, pasted_ids
from eventlogs.reductions.timeline import MISSING, Change, Step, Unavailable, plain_value, summarize

LOGS: Final = 50  # of a page
SHORT: Final = 40  # events of a log up to which the list shows its state
LONG: Final = 60  # characters of a value of a state that takes the whole width


class StateLine(NamedTuple):
    """A value of a state as a page shows it."""

    name: str
    value: str | shapes.Markup
    is_long: bool
    is_changed: bool  # by the event that is selected


@admin.register(EventLog)
class LogAdmin(ReadOnlyAdmin):
    """Logs, the newest first."""

    def state_line(self, log_id: LogId, aggregate: Aggregate) -> str:
        """Return the state of a log in one line, for the list; override it, or ``summary()``."""
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
        using = EventLog.objects.db
        query = asked_for(request, ("q", "type", "from", "to"))
        if "q" in query and (event := event_in(query["q"], using)) is not None:
            log_id, index = event
            log = reverse(f"{self.admin_site.name}:eventlogs_eventlog_change", args=[log_id])
            return HttpResponseRedirect(f"{log}?event={index}#event-{index}")
        rows = search(query["q"], using) if "q" in query else EventLog.objects.using(using)
        if "type" in query:
            rows = rows.filter(log_type=query["type"])
        problems = []
        for name, lookup, later in (("from", "pk__gte", 0), ("to", "pk__lt", 1)):
            if name in query:
                day = day_of(query[name])
                if day is None:
                    problems.append(_("This is no date: %(text)s") % {"text": query.pop(name)[:40]})
                else:
                    rows = rows.filter(**{lookup: uuid_of(day + timedelta(days=later))})
        before, after = uuid_from(asked.get("before")), uuid_from(asked.get("after"))
        if asked.get("end") == "1":
            after = UUID(int=0)
        found = page(
            rows,
            field="id",
            before=before,
            after=after,
            size=LOGS,
            query=query,
            text=lambda key: key.hex,
        )
        states = self._states(request, found.rows, using)
        asked_types = {query["type"]} if "type" in query else set()
        context = {
            "title": _("Event logs"),
            "page": found,
            "logs": [
                {"log": log, "log_id": log.log_id, "state": states.get(log.pk)}
                for log in found.rows
            ],
            # A type that no class here has can be asked for as well, and stays chosen.
            "log_types": sorted({each.log_type for each in aggregates} | asked_types),
            "query": {**dict.fromkeys(("q", "type", "from", "to"), ""), **query},
            "problems": problems,
            "nothing": "" if found.rows else nothing_found(query, before, after),
            "short": SHORT,
        }
        return self.page(request, "logs", context)

    def _states(self, request: HttpRequest, logs: list[EventLog], using: str) -> dict[UUID, str]:
        """Return the states of short logs in one line each; two queries, or three."""
        if not self.sees_payload(request):
            return {}
        classes = {log.log_type: aggregates.of(log.log_type)[:1] for log in logs}
        short = [
            LogRow(log.log_id, log.version, log.created_at, log.updated_at)
            for log in logs
            if log.version <= SHORT and classes[log.log_type]
        ]
        states = {}
        for log, events in scans.logs_with_events(using, short):
            [cls] = classes[log.log_id.log_type]
            try:
                records = EventReader(cls.event_types).records(
                    log.log_id, [event[1:] for event in events]
                )
                aggregate = fold(nothing(cls, log.log_id), records).aggregate
                states[log.log_id.uuid] = self.state_line(log.log_id, aggregate)
            except Exception as error:  # the project's own classes
                states[log.log_id.uuid] = f"<{type(error).__name__}>"
        return states

    # A log

    def log_view(self, request: HttpRequest, log: str) -> HttpResponse:
        """Show a log: a page of its events, and the state as of one of them."""
        row = self._find(log)
        using = EventLog.objects.db
        log_id = row.log_id
        selected = index_from(request.GET.get("event"), row.version)
        cls = self._aggregate(request, log_id)
        found = timeline(
            cls, log_id, row.version, selected, using=using, fold_all=request.GET.get("fold") == "1"
        )
        address = reverse(f"{self.admin_site.name}:eventlogs_eventlog_change", args=[log_id])
        sees = self.sees_payload(request)
        chosen = {"aggregate": request.GET["aggregate"]} if "aggregate" in request.GET else {}
        context = {
            "title": str(log_id),
            "log": row,
            "log_id": log_id,
            "timeline": found,
            "events": [self._event(each, found, sees) for each in reversed(found.steps)],
            "state": self._state(found, sees),
            # Where rows were removed behind the database's back, there is a hole.
            "is_selected_there": any(each.record.index == selected for each in found.steps),
            "unavailable": found.state if isinstance(found.state, Unavailable) else None,
            # Names: a template would call a class.
            "aggregates": [each.__qualname__ for each in aggregates.of(log_id.log_type)],
            "aggregate": None if cls is None else cls.__qualname__,
            "chosen": chosen,
            "carried": f"{urlencode(chosen)}&" if chosen else "",
            "address": address,
            "links": self._links(found),
            "size": SIZE,
        }
        return self.page(request, "log", context)

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

    def _event(self, step: Step, found: Timeline, sees: bool) -> dict[str, Any]:
        record = step.record
        actor, rest = actor_of(record.metadata)
        data = record.event
        today = None if step.event is None else plain_value(step.event)
        is_selected = record.index == found.selected
        longest = shapes.WHOLE if is_selected else shapes.LONGEST

        def shown(value: Any) -> shapes.Markup:
            return shapes.markup(value if sees else shapes.shape_of_fields(value), longest=longest)

        return {
            "record": record,
            "is_selected": is_selected,
            "actor": actor if sees else None,
            "payload": shown(data),
            # What the code of today reads, where that is something else than what is stored.
            "today": shown(today) if sees and today not in (None, data) else None,
            "metadata": shown(rest) if rest else "",
            "links": self._related(record) if sees else [],
            "changes": [change_of(each, sees) for each in step.changes or ()],
            "has_changes": step.changes is not None,
        }

    def _related(self, record: EventRecord) -> list[tuple[str, str]]:
        events = reverse(f"{self.admin_site.name}:eventlogs_event_changelist")
        return relations.links(events, record.id, record.position, record.metadata)

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
        left = shapes.WHOLE
        lines = []
        for name, value in found.state.items():
            text = text_of(value if sees else shapes.shape(value), longest=max(left, shapes.LINE))
            left -= len(str(text))
            is_long = isinstance(value, dict | list) or len(str(text)) > LONG
            lines.append(StateLine(name, text, is_long, name in changed))
        return lines

    def _find(self, log: str) -> EventLog:
        """Return the log of an id in any writing; raise Http404."""
        logs = EventLog.objects.using(EventLog.objects.db)
        names = pasted_ids.names_in(unquote(log))
        found: EventLog | None = None
        if len(names) == 1:
            [name] = names
            found = logs.filter(pk=name.uuid).first()
            if found is not None and name.log_type not in (None, found.log_type):
                found = None
        if found is None:
            raise Http404(_("There is no such log."))
        return found

    def _aggregate(self, request: HttpRequest, log_id: LogId) -> type[Aggregate] | None:
        classes = aggregates.of(log_id.log_type)
        name = request.GET.get("aggregate")
        for each in classes:
            if each.__qualname__ == name:
                return each
        return classes[0] if classes else None

    def export_view(self, request: HttpRequest, log: str) -> HttpResponseBase:
        """Send a log as JSON lines, as ``manage.py eventlogs export`` writes them."""
        if not self.sees_payload(request):
            raise PermissionDenied
        row = self._find(log)
        log_id, using = row.log_id, EventLog.objects.db

        def parts() -> Iterator[str]:
            until, count = 2**63 - 1, 0
            yield jsonl.header(after=0)
            last = 0
            for each in jsonl.export_pages(using, until=until, logs=[log_id]):
                count += len(each.lines)
                last = each.position
                yield "".join(each.lines)
            yield jsonl.footer(events=count, until=last)

        response = Download(parts(), content_type="application/jsonl")
        response["Content-Disposition"] = f'attachment; filename="{log_id}.jsonl"'
        return response


def nothing_found(query: dict[str, str], before: UUID | None, after: UUID | None) -> str:
    """Say that a page of the list has no log, and what was looked for."""
    if before is not None:
        return _("No log is older.")
    if after is not None and after.int:
        return _("No log is newer.")
    if "q" not in query:
        return _("There is no log with these filters.") if query else _("There is no log yet.")
    if len(query) > 1:
        text = _("No log has this id, part of an id or idempotency key with these filters.")
    else:
        text = _("No log has this id, part of an id or idempotency key.")
    hint = _("Give at least %(count)s characters of an id.") % {"count": pasted_ids.SHORTEST}
    return f"{text} {hint}" if len(query["q"]) < pasted_ids.SHORTEST else text


def change_of(change: Change, sees: bool) -> dict[str, Any]:
    """Return a change for a template: where, what it was, what it is."""

    def shown(value: Any) -> shapes.Markup | None:
        if value is MISSING:
            return None
        return shapes.line_markup(value if sees else shapes.shape(value))

    return {
        "where": shapes.path_markup(change.path if sees else shapes.path_shape(change.path)),
        "old": shown(change.old),
        "new": shown(change.new),
    }


def text_of(value: Any, *, longest: int) -> str | shapes.Markup:
    """Return a value of a state as text: what is simple as it is, the rest as JSON."""
    if value is None:
        return "—"
    if isinstance(value, str):
        return value if len(value) <= longest else value[:longest] + shapes.ELLIPSIS
    return shapes.markup(value, longest=longest)


def day_of(text: str) -> datetime | None:
    """Return the beginning of a day in the project's time zone, or None for no date."""
    try:
        day = parse_date(text.strip())
    except ValueError:
        return None
    if day is None or not 1970 <= day.year <= 9000:
        return None
    return timezone.make_aware(datetime(day.year, day.month, day.day))


def uuid_of(moment: datetime) -> UUID:
    """Return the lowest UUIDv7 of a moment: ids are in the order of their times."""
    milliseconds = int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))
    return UUID(int=max(0, milliseconds) << 80)


def uuid_from(text: str | None) -> UUID | None:
    """Read a UUID, None for anything else."""
    try:
        return UUID(text) if text else None
    except ValueError:
        return None


def index_from(text: str | None, version: int) -> int:
    """Read the index of an event; what is none is the last one."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 10):
        return version - 1
    return min(int(text), version - 1)
