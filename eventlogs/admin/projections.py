"""
Projections in the admin: their status, held events and actions; retry, skip and rebuild.

The pages need the permission to view projection states. Retrying, skipping and rebuilding need
``eventlogs.operate_projections``, and each is recorded as a ProjectionAction and in the admin's
log. Error messages and tracebacks can contain payload, so they need ``eventlogs.view_payload``.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, router
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST

from eventlogs.admin.held_events import (
    GROUPS,
    cause_of,
    first_causes,
    held_events,
    read_cause,
)
from eventlogs.admin.keyset_paging import ByNumber, keyset_page
from eventlogs.admin.projection_status import (
    alarms_of,
    number,
    progress,
    row,
    shown_actions,
    shown_findings,
)
from eventlogs.admin.read_only import ReadOnlyAdmin
from eventlogs.exceptions import EventLogError, InvalidLogId, ProjectionUnavailable
from eventlogs.feed.reader import Feed
from eventlogs.feed.sources import has_feed
from eventlogs.ids import LogId
from eventlogs.models import Checkpoint, Event, ProjectionState
from eventlogs.operations.health import health
from eventlogs.operations.health.look import Look, reading
from eventlogs.projections import actions
from eventlogs.projections.base import BaseProjection, RowProjection, declared, projections
from eventlogs.projections.held_actions import retry, skip
from eventlogs.projections.held_causes import groups, within
from eventlogs.projections.operations import RowOperations
from eventlogs.projections.status import status_of, statuses
from eventlogs.utils.times import duration

OPERATE = "eventlogs.operate_projections"
ROWS: Final = 50  # held events, or actions, of a page
FINDINGS: Final = 20  # findings of the health check that are shown
OF_CAUSES: Final = ("parked", "retrying", "awaiting-release")  # findings that are shown as causes
LATEST: Final = 5  # actions on the page of a projection
QUIET: Final = timedelta(seconds=1)  # an append that holds the feed back for less is not shown


@admin.register(ProjectionState)
class ProjectionAdmin(ReadOnlyAdmin):
    """The list of declared projections, the page of each, and what can be done with it."""

    def get_urls(self) -> list[URLPattern]:
        """Serve the list, the pages of a projection, and its forms."""
        names = "eventlogs_projectionstate"
        return [
            path("", self.wrap(self.all_view), name=f"{names}_changelist"),
            path("history/", self.wrap(self.actions_view), name=f"{names}_all_actions"),
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
        """Show the findings of the health check, and the status of all projections."""
        using = self._using(request)
        checked = health(using=using)
        rows: list[dict[str, Any]] | None = None  # None: they cannot be read; a finding says why
        holders: list[dict[str, Any]] = []
        with suppress(DatabaseError), reading(Look(using, checked.looked_at, {})):
            alias = self.chosen(request)
            found = statuses(declared(BaseProjection, using=alias), using=alias)
            rows = [row(each, alarms_of(checked, each.name)) for each in found]
            holders = self._holders(using, checked.looked_at)
        acts = shown_findings(checked, lambda each: each.must_act)
        context = {
            "title": _("Projections"),
            "health": checked,
            "acts": acts[:FINDINGS],
            "acting": len(acts),
            "more": max(0, len(acts) - FINDINGS),
            "infos": shown_findings(checked, lambda each: not each.must_act)[:FINDINGS],
            "rows": rows,
            "holders": holders,
            "is_alarm": any(each["finding"].code == "feed-held" for each in acts),
        }
        return self.page(request, "projections/list", context)

    def one_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Show the status of a projection, and its held events by cause."""
        projection = self._find(name)
        using = self._alias(request, projection)
        try:
            with reading(Look(using, timezone.now(), {})):
                context = self._one(projection, using)
        except DatabaseError:
            text = _(
                "The status of %(name)s cannot be read: the database reported an error, or did "
                "not answer in time."
            )
            messages.error(request, text % {"name": projection.name})
            return HttpResponseRedirect(self.address("projectionstate_changelist"))
        checked = health(using=using)
        findings = shown_findings(
            checked, lambda each: each.subject == projection.name and each.code not in OF_CAUSES
        )
        context |= {
            "row": row(context["standing"], alarms_of(checked, projection.name)),
            "findings": findings,
            "must_act": any(each["finding"].must_act for each in findings),
            "may_operate": request.user.has_perm(OPERATE),
        }
        return self.page(request, "projections/detail", context)

    def _one(self, projection: type[BaseProjection], using: str) -> dict[str, Any]:
        """Read everything that the page of a projection shows, before it is rendered."""
        places = Checkpoint.objects.using(using).filter(projection=projection.name)
        state = ProjectionState.objects.using(using).filter(name=projection.name).first()
        held = groups(using, [projection.name])
        return {
            "title": projection.name,
            "standing": status_of(projection, using=using),
            "state": state,
            "keeps_rows": issubclass(projection, RowProjection),
            "doc": (projection.__doc__ or "").strip().splitlines()[:1],
            "held": number(sum(each.logs for each in held)),
            "causes": first_causes(projection.name, using, held),
            "other_causes": number(max(0, len(held) - GROUPS)),
            "has_other_causes": len(held) > GROUPS,
            "places": list(places.filter(is_rebuild=False).order_by("partition")),
            "progress": progress(projection, using, state),
            "latest": shown_actions(actions.of(projection.name, using)[:LATEST]),
        }

    def held_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Show a page of the events that hold logs, of all causes or of one."""
        projection = self._find(name)
        using = self._alias(request, projection)
        cause = read_cause(request.GET)
        held = groups(using, [projection.name])
        if cause is not None:
            held = [each for each in held if cause == cause_of(each)]
        found = keyset_page(
            held_events(projection.name, using, cause),
            order=ByNumber("position"),
            size=ROWS,
            asked=request.GET,
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
        """Show a page of the actions on a projection, or on all."""
        using = self._using(request)
        if name is not None:
            name = unquote(name)
            if name not in projections and not actions.of(name, using).exists():
                raise Http404(_("There is no projection of this name."))
        found = keyset_page(
            actions.of(name, using).order_by(),
            order=ByNumber("id"),
            size=ROWS,
            asked=request.GET,
            query={},
        )
        context = {
            "title": _("Actions on %(name)s") % {"name": name}
            if name
            else _("Actions on projections"),
            "name": name,
            "is_declared": name in projections,
            "entries": shown_actions(found.rows),
            "page": found,
        }
        return self.page(request, "projections/actions", context)

    # Actions

    def retry_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Retry one event, the events of one cause, or all held events."""
        projection = self._operate(request, name)
        log_id = self._log_id(request) if request.POST.get("log_id") else None
        cause = read_cause(request.POST) if log_id is None else None
        what = "" if cause is None else cause.text
        count = retry(
            projection,
            log_id,
            among=None if cause is None else within(*cause),
            by=request.user.get_username(),
            note=what,
            using=self.chosen(request),
        )
        self._note(request, projection, f"Retried {log_id or what or 'all'} ({count}).")
        messages.success(
            request,
            ngettext(
                "A worker will retry %(count)s event.",
                "A worker will retry %(count)s events.",
                count,
            )
            % {"count": number(count)},
        )
        return self._back(projection)

    def skip_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask for confirmation, then skip the event that holds a log, permanently."""
        projection = self._operate(request, name)
        log_id = self._log_id(request)
        using = self._alias(request, projection)
        event = held_events(projection.name, using).filter(log_id=log_id).first()
        if event is None:
            messages.warning(request, _("No event holds this log any more."))
            return self._back(projection)
        if request.method != "POST" or request.POST.get("index") != str(event.index):
            context = {"title": _("Skip this event permanently?"), "name": name, "event": event}
            return self.page(request, "projections/skip", context)
        if skip(projection, log_id, by=request.user.get_username(), using=using):
            self._note(
                request,
                projection,
                f"Skipped event {event.index} of {log_id} permanently: {event.type}, "
                f"{event.error}.",
            )
            text = _("The event is skipped. A worker will apply the later events of its log.")
            messages.success(request, text)
        return self._back(projection)

    def rebuild_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask for confirmation, then request that a worker rebuilds the rows."""
        projection = self._operate(request, name)
        if not issubclass(projection, RowOperations):
            raise Http404(_("A reactor has no rows to rebuild."))
        using = self._alias(request, projection)
        if not has_feed(using):
            text = _("This database has no workers. Run: manage.py eventlogs rebuild %(name)s")
            messages.error(request, text % {"name": projection.name})
            return self._back(projection)
        if request.method != "POST":
            context = {"title": _("Rebuild all rows?"), "name": name}
            return self.page(request, "projections/rebuild", context)
        projection.request_rebuild(by=request.user.get_username(), using=using)
        self._note(request, projection, "Requested a rebuild.")
        messages.success(request, _("A worker will rebuild the rows, beside its other work."))
        return self._back(projection)

    # Helpers

    def _using(self, request: HttpRequest) -> str:
        """Return the database to look at; not a replica, which lacks open transactions' locks."""
        return self.chosen(request) or router.db_for_write(ProjectionState)

    def _alias(self, request: HttpRequest, projection: type[BaseProjection]) -> str:
        """Return the database of a projection to look at; raise Http404 where it does not run."""
        try:
            return projection.database_alias(using=self.chosen(request))
        except ProjectionUnavailable as error:
            raise Http404(str(error)) from None

    def _operate(self, request: HttpRequest, name: str) -> type[BaseProjection]:
        if not request.user.has_perm(OPERATE):
            raise PermissionDenied
        return self._find(name)

    def _find(self, name: str) -> type[BaseProjection]:
        try:
            return projections[unquote(name)]
        except KeyError:
            raise Http404(_("There is no projection of this name.")) from None

    def _log_id(self, request: HttpRequest) -> LogId:
        values = request.POST if request.method == "POST" else request.GET
        try:
            return LogId.parse(values.get("log_id", ""))
        except InvalidLogId:
            raise Http404(_("This is not the id of a log.")) from None

    def _holders(self, using: str, now: datetime) -> list[dict[str, Any]]:
        """Return the transactions that have held the feed back for more than QUIET."""
        try:
            found = Feed(using=using).holding_back()
        except EventLogError:
            return []
        shown = []
        for each in found:
            age = each.age
            if age is None:
                # The transaction has ended, or this role may not see its age. Then its age is
                # that of the first event that waits for it.
                waiting = Event.objects.using(using).filter(position__gt=each.position)
                first = waiting.order_by("position").values_list("recorded_at", flat=True).first()
                age = timedelta() if first is None else now - first
            if age > QUIET:
                shown.append({"holder": each, "age": duration(age)})
        return shown

    def _note(self, request: HttpRequest, projection: type[BaseProjection], text: str) -> None:
        """Record an action in the admin's log."""
        LogEntry.objects.create(
            user_id=str(request.user.pk),
            content_type_id=ContentType.objects.get_for_model(ProjectionState).pk,
            object_id=projection.name,
            object_repr=projection.name,
            action_flag=CHANGE,
            change_message=text,
        )

    def _back(self, projection: type[BaseProjection]) -> HttpResponse:
        return HttpResponseRedirect(self.address("projectionstate_change", projection.name))
