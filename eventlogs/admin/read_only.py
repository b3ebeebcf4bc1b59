"""The base of all pages of the admin: they are read-only, and built by views of this package."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.routing import databases_of

PAYLOAD = "eventlogs.view_payload"
CHOSEN: Final = "database"  # the parameter that chooses among several databases
SESSION: Final = "eventlogs_database"

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Any]
else:
    Base = admin.ModelAdmin


class ReadOnlyAdmin(Base):
    """A ModelAdmin that cannot add, change or delete."""

    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False

    def wrap(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Return a view that only users with the permission to view the model reach."""

        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            if not self.has_view_permission(request):
                raise PermissionDenied
            if CHOSEN in request.GET and request.method == "GET" and self.databases():
                return self._choose(request)
            return view(request, *args, **kwargs)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self.admin_site.admin_view(guarded)(*args, **kwargs)

        return update_wrapper(wrapper, view)

    def databases(self) -> tuple[str, ...]:
        """Return the aliases among which a router spreads logs, none if it does not."""
        found = databases_of()
        return found if len(found) > 1 else ()

    def chosen(self, request: HttpRequest) -> str | None:
        """Return the database that the user has chosen among several; None: there is only one."""
        databases = self.databases()
        if not databases:
            return None
        alias = request.session.get(SESSION)
        return alias if alias in databases else databases[0]

    def reads(self, request: HttpRequest) -> str:
        """Return the alias of the database to read logs and events from."""
        return self.chosen(request) or EventLog.objects.db

    def places(self, request: HttpRequest) -> list[str]:
        """Return the aliases of all databases to look for a log in, the chosen one first."""
        first = self.reads(request)
        return [first, *(each for each in self.databases() if each != first)]

    def _choose(self, request: HttpRequest) -> HttpResponse:
        """Keep the chosen database for this session, and show the page of it."""
        query = request.GET.copy()
        [*_, alias] = query.pop(CHOSEN)
        if alias in self.databases():
            request.session[SESSION] = alias
        for each in ("before", "after"):  # places in the pages of another database
            query.pop(each, None)
        rest = query.urlencode()
        return HttpResponseRedirect(f"{request.path}?{rest}" if rest else request.path)

    def sees_payload(self, request: HttpRequest) -> bool:
        """Return whether the user may see payloads, metadata and states, not only their shape."""
        return bool(request.user.has_perm(PAYLOAD))

    def address(self, name: str, *args: Any) -> str:
        """Return the address of a page of eventlogs on this admin site."""
        return reverse(f"{self.admin_site.name}:eventlogs_{name}", args=args)

    def redirect_to_event(self, log_id: LogId, index: int) -> HttpResponse:
        """Redirect to the page of a log, with one of its events selected."""
        log = self.address("eventlog_change", log_id)
        return HttpResponseRedirect(f"{log}?event={index}#event-{index}")

    def page(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        """Return a page made from a template of this package."""
        return TemplateResponse(
            request,
            f"admin/eventlogs/{template}.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.model._meta,
                "media": self.media,
                "sees_payload": self.sees_payload(request),
                "databases": self.databases(),
                "database": self.chosen(request),
                **context,
            },
        )
