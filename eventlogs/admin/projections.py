"""
Projections in the admin: how each stands, what it could not apply, and what to do about it.

Looking needs the permission to view projection states; retrying, skipping and rebuilding need
``eventlogs.operate_projections``, and each leaves an entry in the admin's history. What was
raised may show data, so it needs ``eventlogs.view_payload``.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import connections, router
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST

from eventlogs.admin.readonly import ReadOnlyAdmin
from eventlogs.exceptions import EventLogError, InvalidLogId
from eventlogs.feed import Feed
from eventlogs.ids import LogId
from eventlogs.models import Checkpoint, ParkedEvent, ProjectionState
from eventlogs.projections.declarations import BaseProjection, RowProjection, projections
from eventlogs.projections.standing import standing, standings
from eventlogs.stores.feeds import BY_VENDOR as FEEDS

OPERATE = "eventlogs.operate_projections"
SHOWN = 100  # parked events of a page


@admin.register(ProjectionState)
class ProjectionAdmin(ReadOnlyAdmin):
    """All projections that are declared, and one by one."""

    def get_urls(self) -> list[URLPattern]:
        """Serve a page for all, one for each, and what can be done."""
        names = "eventlogs_projectionstate"
        return [
            path("", self.wrap(self.all_view), name=f"{names}_changelist"),
            path(
                "<path:name>/retry/",
                self.wrap(require_POST(self.retry_view)),
                name=f"{names}_retry",
            ),
            path("<path:name>/skip/", self.wrap(self.skip_view), name=f"{names}_skip"),
            path("<path:name>/rebuild/", self.wrap(self.rebuild_view), name=f"{names}_rebuild"),
            path("<path:name>/change/", self.wrap(self.one_view), name=f"{names}_change"),
        ]

    # Pages

    def all_view(self, request: HttpRequest) -> HttpResponse:
        """Show how all projections stand."""
        using = router.db_for_write(ProjectionState)  # a replica knows of no open transaction
        context = {
            "title": _("Projections"),
            "standings": standings(each for _name, each in sorted(projections.items())),
            "holders": self._holders(using),
        }
        return self.page(request, "projections/list", context)

    def one_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Show how a projection stands, and what waits in it."""
        projection = self._find(name)
        using = projection._using()
        waiting = ParkedEvent.objects.using(using).filter(
            projection=projection.name, is_rebuild=False
        )
        places = Checkpoint.objects.using(using).filter(projection=projection.name)
        state = ProjectionState.objects.using(using).filter(name=projection.name).first()
        context = {
            "title": projection.name,
            "standing": standing(projection),
            "state": state,
            "keeps_rows": issubclass(projection, RowProjection),
            "doc": (projection.__doc__ or "").strip().splitlines()[:1],
            "waiting": waiting.order_by("position")[:SHOWN],
            "places": places.filter(is_rebuild=False).order_by("partition"),
            "progress": self._progress(using, state, places),
            "may_operate": request.user.has_perm(OPERATE),
        }
        return self.page(request, "projections/detail", context)

    # Deeds

    def retry_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Let an event, or all that wait, be tried again."""
        projection = self._operate(request, name)
        log_id = self._log_id(request) if request.POST.get("log_id") else None
        count = projection.retry(log_id)
        self._note(request, projection, f"Retried {log_id or 'all'} ({count}).")
        messages.success(
            request,
            ngettext(
                "%(count)s event is tried again, by whoever runs the projection.",
                "%(count)s events are tried again, by whoever runs the projection.",
                count,
            )
            % {"count": count},
        )
        return self._back(projection)

    def skip_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask, and then pass over the event that a log is held by, for good."""
        projection = self._operate(request, name)
        log_id = self._log_id(request)
        waiting = ParkedEvent.objects.using(projection._using()).filter(
            projection=projection.name, is_rebuild=False, log_id=log_id
        )
        event = waiting.first()
        if event is None:
            messages.warning(request, _("No event of this log waits any more."))
            return self._back(projection)
        if request.method != "POST" or request.POST.get("index") != str(event.index):
            context = {"title": _("Skip an event for good?"), "name": name, "event": event}
            return self.page(request, "projections/skip", context)
        if projection.skip(log_id):
            self._note(
                request,
                projection,
                f"Skipped event {event.index} of {log_id} for good: {event.type}, {event.error}.",
            )
            messages.success(request, _("The event is skipped. The later ones are applied now."))
        return self._back(projection)

    def rebuild_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask, and then let a worker make the rows anew."""
        projection = self._operate(request, name)
        if not issubclass(projection, RowProjection):
            raise Http404(_("A reactor keeps no rows."))
        if connections[projection._using()].vendor not in FEEDS:
            text = _("No worker runs in this database. Run: manage.py eventlogs rebuild %(name)s")
            messages.error(request, text % {"name": projection.name})
            return self._back(projection)
        if request.method != "POST":
            context = {"title": _("Make all rows anew?"), "name": name}
            return self.page(request, "projections/rebuild", context)
        projection.request_rebuild()
        self._note(request, projection, "Asked for a rebuild.")
        messages.success(request, _("A worker makes the rows anew, beside its other work."))
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

    def _holders(self, using: str) -> list[Any]:
        try:
            return Feed(using).holding_back()
        except EventLogError:
            return []

    def _progress(
        self, using: str, state: ProjectionState | None, places: Any
    ) -> dict[str, int] | None:
        """Return how far a rebuild is, in hundredths."""
        if state is None or state.rebuild_version is None:
            return None
        shadow = [each.position for each in places if each.is_rebuild]
        if not shadow:
            return {"done": 0, "total": 0, "percent": 0}
        total = Feed(using).settled()
        return {
            "done": min(shadow),
            "total": total,
            "percent": min(100, 100 * min(shadow) // max(total, 1)),
        }

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
