"""
Projections in the admin: how each stands, what it could not apply, and what to do about it.

Looking needs the permission to view projection states; retrying, skipping and rebuilding need
``eventlogs.operate_projections``, and each leaves an entry in the projection's history and in the
admin's. What was raised may show data, so it needs ``eventlogs.view_payload``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, connections, router
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST

from eventlogs.admin.keysets import page
from eventlogs.admin.orders import number_from
from eventlogs.admin.readonly import ReadOnlyAdmin
from eventlogs.admin.standings import number, progress, row
from eventlogs.conf import MAX_VERSION
from eventlogs.exceptions import EventLogError, InvalidLogId
from eventlogs.feed.reader import Feed
from eventlogs.feed.sources import BY_VENDOR as FEEDS
from eventlogs.ids import LogId
from eventlogs.models import Checkpoint, Event, ParkedEvent, ProjectionAction, ProjectionState
from eventlogs.operations.health import Finding, Health, health
from eventlogs.operations.health.look import Look, reading
from eventlogs.projections import actions
from eventlogs.projections.base import BaseProjection, RowProjection, projections
from eventlogs.projections.held_actions import retry, skip
from eventlogs.projections.held_causes import (
    PARKED,
    RELEASE,
    RETRYING,
    WORDS,
    HeldGroup,
    groups,
    within,
)
from eventlogs.projections.operations import RowOperations
from eventlogs.projections.status import standing, standings
from eventlogs.utils.times import duration

OPERATE = "eventlogs.operate_projections"
EVENTS: Final = 50  # held events, and entries of a history, of a page
FINDINGS: Final = 20  # of health that are shown
OF_CAUSES: Final = ("parked", "retrying", "awaiting-release")  # codes: shown as causes
GROUPS: Final = 20  # causes that are shown of one projection
FEW: Final = 5  # events of a cause, up to which they are shown beside it
LATEST: Final = 5  # entries of the history beside a projection
QUIET: Final = timedelta(seconds=1)  # for which an append under way is nothing to tell of

DONE: Final = {
    ProjectionAction.RETRIED: _lazy("retried"),
    ProjectionAction.SKIPPED: _lazy("skipped for good"),
    ProjectionAction.PASSED_OVER: _lazy("passed over all events until then"),
    ProjectionAction.REBUILD_REQUESTED: _lazy("asked for a rebuild"),
    ProjectionAction.REBUILT: _lazy("rebuilt"),
    ProjectionAction.REBUILD_FAILED: _lazy("a rebuild has failed"),
}


class Cause(NamedTuple):
    """What tells one group of held events from the others, of one projection."""

    state: str
    error: str
    handler: str
    type: str
    schema_version: int

    @property
    def text(self) -> str:
        """What holds the logs, for people."""
        what = f"{self.type} version {self.schema_version}"
        if not self.error:
            return what
        where = f" in {self.handler}()" if self.handler else ""
        return f"{self.error}{where}, {what}"


@admin.register(ProjectionState)
class ProjectionAdmin(ReadOnlyAdmin):
    """All projections that are declared, and one by one."""

    def get_urls(self) -> list[URLPattern]:
        """Serve a page for all, some for each, and what can be done."""
        names = "eventlogs_projectionstate"
        return [
            path("", self.wrap(self.all_view), name=f"{names}_changelist"),
            path("history/", self.wrap(self.actions_view), name=f"{names}_histories"),
            path(
                "<path:name>/retry/",
                self.wrap(require_POST(self.retry_view)),
                name=f"{names}_retry",
            ),
            path("<path:name>/skip/", self.wrap(self.skip_view), name=f"{names}_skip"),
            path("<path:name>/rebuild/", self.wrap(self.rebuild_view), name=f"{names}_rebuild"),
            path("<path:name>/held/", self.wrap(self.held_view), name=f"{names}_held"),
            path("<path:name>/history/", self.wrap(self.actions_view), name=f"{names}_history"),
            path("<path:name>/change/", self.wrap(self.one_view), name=f"{names}_change"),
        ]

    # Pages

    def all_view(self, request: HttpRequest) -> HttpResponse:
        """Show how all projections stand."""
        using = router.db_for_write(ProjectionState)  # a replica knows of no open transaction
        looked = health(using)
        rows: list[dict[str, Any]] | None = None  # where they cannot be looked at, health says why
        holders: list[dict[str, Any]] = []
        with suppress(DatabaseError), reading(Look(using, looked.looked_at, {})):
            found = standings(each for _name, each in sorted(projections.items()))
            rows = [row(each, alarms_of(looked, each.name)) for each in found]
            holders = self._holders(using, looked.looked_at)
        acts = told(looked, lambda each: each.must_act)
        context = {
            "title": _("Projections"),
            "health": looked,
            "acts": acts[:FINDINGS],
            "acting": len(acts),
            "more": max(0, len(acts) - FINDINGS),
            "infos": told(looked, lambda each: not each.must_act)[:FINDINGS],
            "rows": rows,
            "holders": holders,
            "is_alarm": any(each.code == "feed-held" and each.must_act for each in looked.findings),
        }
        return self.page(request, "projections/list", context)

    def one_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Show how a projection stands, and what it could not apply, by cause."""
        projection = self._find(name)
        using = projection.database_alias()
        try:
            with reading(Look(using, timezone.now(), {})):
                context = self._one(projection, using)
        except DatabaseError:
            text = _("%(name)s cannot be looked at: the database gave an error, or took too long.")
            messages.error(request, text % {"name": projection.name})
            return HttpResponseRedirect(
                reverse(f"{self.admin_site.name}:eventlogs_projectionstate_changelist")
            )
        looked = health(using)
        findings = told(
            looked, lambda each: each.subject == projection.name and each.code not in OF_CAUSES
        )
        context |= {
            "row": row(context["standing"], alarms_of(looked, projection.name)),
            "findings": findings,
            "must_act": any(each["finding"].must_act for each in findings),
            "may_operate": request.user.has_perm(OPERATE),
        }
        return self.page(request, "projections/detail", context)

    def _one(self, projection: type[BaseProjection], using: str) -> dict[str, Any]:
        """Read all that the page of a projection shows: nothing of it is asked for later."""
        places = Checkpoint.objects.using(using).filter(projection=projection.name)
        state = ProjectionState.objects.using(using).filter(name=projection.name).first()
        held = groups(using, [projection.name])
        return {
            "title": projection.name,
            "standing": standing(projection),
            "state": state,
            "keeps_rows": issubclass(projection, RowProjection),
            "doc": (projection.__doc__ or "").strip().splitlines()[:1],
            "held": number(sum(each.logs for each in held)),
            "causes": self._causes(projection, using, held),
            "other_causes": number(max(0, len(held) - GROUPS)),
            "has_other_causes": len(held) > GROUPS,
            "places": list(places.filter(is_rebuild=False).order_by("partition")),
            "progress": progress(projection, using, state),
            "latest": entries(actions.of(projection.name, using)[:LATEST]),
        }

    def held_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Show the events that hold logs, a page at a time: all, or those of one cause."""
        projection = self._find(name)
        using = projection.database_alias()
        cause = self._cause(request.GET)
        held = groups(using, [projection.name])
        if cause is not None:
            held = [each for each in held if cause == cause_of(each)]
        rows = self._held(projection, using, cause)
        asked = request.GET
        after = -1 if asked.get("end") == "1" else number_from(asked.get("after"))
        found = page(
            rows,
            field="position",
            before=number_from(asked.get("before")),
            after=after,
            size=EVENTS,
            query=cause._asdict() if cause is not None else {},
        )
        context = {
            "title": _("Held events of %(name)s") % {"name": projection.name},
            "name": projection.name,
            "cause": cause,
            "group": held[0] if cause is not None and held else None,
            "total": number(sum(each.logs for each in held)),
            "page": found,
            "may_operate": request.user.has_perm(OPERATE),
        }
        return self.page(request, "projections/held", context)

    def actions_view(self, request: HttpRequest, name: str | None = None) -> HttpResponse:
        """Show who did what with a projection, or with all, a page at a time."""
        if name is None:
            using = router.db_for_write(ProjectionState)
        else:
            name = unquote(name)
            using = router.db_for_write(ProjectionState)
            if name not in projections and not actions.of(name, using).exists():
                raise Http404(_("There is no such projection."))
        asked = request.GET
        found = page(
            actions.of(name, using).order_by(),
            field="id",
            before=number_from(asked.get("before")),
            after=-1 if asked.get("end") == "1" else number_from(asked.get("after")),
            size=EVENTS,
            query={},
        )
        context = {
            "title": _("History of %(name)s") % {"name": name} if name else _("History"),
            "name": name,
            "is_declared": name in projections,
            "entries": entries(found.rows),
            "page": found,
        }
        return self.page(request, "projections/history", context)

    # Deeds

    def retry_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Let an event, those of one cause, or all that wait, be tried again."""
        projection = self._operate(request, name)
        log_id = self._log_id(request) if request.POST.get("log_id") else None
        cause = self._cause(request.POST) if log_id is None else None
        what = "" if cause is None else cause.text
        count = retry(
            projection,
            log_id,
            among=None if cause is None else within(*cause),
            by=request.user.get_username(),
            note=what,
        )
        self._note(request, projection, f"Retried {log_id or what or 'all'} ({count}).")
        messages.success(
            request,
            ngettext(
                "%(count)s event is tried again, by whoever runs the projection.",
                "%(count)s events are tried again, by whoever runs the projection.",
                count,
            )
            % {"count": number(count)},
        )
        return self._back(projection)

    def skip_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask, and then pass over the event that a log is held by, for good."""
        projection = self._operate(request, name)
        log_id = self._log_id(request)
        waiting = ParkedEvent.objects.using(projection.database_alias()).filter(
            projection=projection.name, is_rebuild=False, log_id=log_id
        )
        event = waiting.first()
        if event is None:
            messages.warning(request, _("No event of this log waits any more."))
            return self._back(projection)
        if request.method != "POST" or request.POST.get("index") != str(event.index):
            context = {"title": _("Skip an event for good?"), "name": name, "event": event}
            return self.page(request, "projections/skip", context)
        if skip(projection, log_id, by=request.user.get_username()):
            self._note(
                request,
                projection,
                f"Skipped event {event.index} of {log_id} for good: {event.type}, {event.error}.",
            )
            messages.success(request, _("The event is skipped. The later ones are applied now."))
        return self._back(projection)

    def rebuild_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask, and then let a worker rebuild the rows."""
        projection = self._operate(request, name)
        if not issubclass(projection, RowOperations):
            raise Http404(_("A reactor keeps no rows."))
        if connections[projection.database_alias()].vendor not in FEEDS:
            text = _("No worker runs in this database. Run: manage.py eventlogs rebuild %(name)s")
            messages.error(request, text % {"name": projection.name})
            return self._back(projection)
        if request.method != "POST":
            context = {"title": _("Rebuild all rows?"), "name": name}
            return self.page(request, "projections/rebuild", context)
        projection.request_rebuild(by=request.user.get_username())
        self._note(request, projection, "Asked for a rebuild.")
        messages.success(request, _("A worker rebuilds the rows, beside its other work."))
        return self._back(projection)

    # Inside

    def _operate(self, request: HttpRequest, name: str) -> type[BaseProjection]:
        if not request.user.has_perm(OPERATE):
            raise PermissionDenied
        return self._find(name)

    def _find(self, name: str) -> type[BaseProjection]:
        try:
            return projections[unquote(name)]
        except KeyError:
            raise Http404(_("There is no such projection.")) from None

    def _log_id(self, request: HttpRequest) -> LogId:
        values = request.POST if request.method == "POST" else request.GET
        try:
            return LogId.parse(values.get("log_id", ""))
        except InvalidLogId:
            raise Http404(_("There is no such log.")) from None

    def _holders(self, using: str, now: datetime) -> list[dict[str, Any]]:
        """Return the transactions that have held the feed back for more than a moment."""
        try:
            found = Feed(using).holding_back()
        except EventLogError:
            return []
        shown = []
        for each in found:
            age = each.age
            if age is None:
                # It has ended since, or this role may not see its age: then by what waits for it.
                waiting = Event.objects.using(using).filter(position__gt=each.position)
                first = waiting.order_by("position").values_list("recorded_at", flat=True).first()
                age = timedelta() if first is None else now - first
            if age > QUIET:
                shown.append({"holder": each, "age": duration(age)})
        return shown

    def _held(
        self, projection: type[BaseProjection], using: str, cause: Cause | None
    ) -> QuerySet[ParkedEvent]:
        rows = ParkedEvent.objects.using(using).filter(projection=projection.name, is_rebuild=False)
        return rows if cause is None else rows.filter(within(*cause))

    def _causes(
        self, projection: type[BaseProjection], using: str, held: list[HeldGroup]
    ) -> list[dict[str, Any]]:
        """Return what holds logs, those that a person must act on first, and a few events."""
        first = sorted(held, key=lambda each: each.state != PARKED)[:GROUPS]
        small = [each for each in first if each.logs <= FEW]
        events: dict[Cause, list[ParkedEvent]] = {}
        if small:
            wanted = reduce(or_, (within(*cause_of(each)) for each in small))
            rows = self._held(projection, using, None).filter(wanted)
            for each in rows.order_by("position")[: FEW * GROUPS]:
                events.setdefault(cause_of_event(each), []).append(each)
        return [
            {
                "group": each,
                "cause": cause_of(each),
                "query": urlencode(cause_of(each)._asdict()),
                "events": events.get(cause_of(each), []),
                "is_urgent": each.state == PARKED,
            }
            for each in first
        ]

    def _cause(self, values: QueryDict) -> Cause | None:
        """Return the cause that is asked for, None for all; 404 for one that cannot be."""
        if not values.get("state"):
            return None
        state, error, handler, type_ = (
            values.get(name, "").replace("\0", "") for name in Cause._fields[:-1]
        )
        version = number_from(values.get("schema_version"))
        if state not in WORDS or version is None or version > MAX_VERSION:
            raise Http404(_("There is no such group of events."))
        return Cause(state, error, handler, type_, version)

    def _note(self, request: HttpRequest, projection: type[BaseProjection], text: str) -> None:
        """Leave an entry in the admin's history; a projection that never ran has a state now."""
        LogEntry.objects.create(
            user_id=str(request.user.pk),
            content_type_id=ContentType.objects.get_for_model(ProjectionState).pk,
            object_id=projection.name,
            object_repr=projection.name,
            action_flag=CHANGE,
            change_message=text,
        )

    def _back(self, projection: type[BaseProjection]) -> HttpResponse:
        site = self.admin_site.name
        where = reverse(f"{site}:eventlogs_projectionstate_change", args=[projection.name])
        return HttpResponseRedirect(where)


def cause_of(group: HeldGroup) -> Cause:
    """Return what tells a group from the others."""
    return Cause(group.state, group.error, group.handler, group.type, group.schema_version)


def cause_of_event(event: ParkedEvent) -> Cause:
    """Return the group that an event is in."""
    if event.awaits_release:
        return Cause(RELEASE, "", "", event.type, event.schema_version)
    state = PARKED if event.is_parked else RETRYING
    return Cause(state, event.error, event.handler, event.type, event.schema_version)


def told(looked: Health, is_wanted: Callable[[Finding], bool]) -> list[dict[str, Any]]:
    """Return findings as a page shows them."""
    return [
        {
            "finding": each,
            "is_projection": each.subject in projections,
            "ago": duration(looked.looked_at - each.since) if each.since else "",
        }
        for each in looked.findings
        if is_wanted(each)
    ]


def alarms_of(looked: Health, name: str) -> set[str]:
    """Return the codes of what somebody must act on in a projection."""
    return {each.code for each in looked.findings if each.must_act and each.subject == name}


def entries(rows: Iterable[ProjectionAction]) -> list[dict[str, Any]]:
    """Return entries of a history as a page shows them."""
    return [
        {
            "entry": each,
            "what": DONE.get(each.action, each.action),
            "is_declared": each.projection in projections,
            "count": "" if each.count is None else number(each.count),
            "took": "" if each.seconds is None else duration(each.seconds),
        }
        for each in rows
    ]
