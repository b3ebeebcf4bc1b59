"""The base of all pages of the admin: they are read-only, and built by views of this package."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from eventlogs.ids import LogId

PAYLOAD = "eventlogs.view_payload"

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
            return view(request, *args, **kwargs)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self.admin_site.admin_view(guarded)(*args, **kwargs)

        return update_wrapper(wrapper, view)

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
                **context,
            },
        )
