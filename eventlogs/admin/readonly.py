"""What all pages of the admin share: they are for reading, and built by views of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

PAYLOAD = "eventlogs.view_payload"

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Any]
else:
    Base = admin.ModelAdmin


def asked_for(request: HttpRequest, names: Iterable[str]) -> dict[str, str]:
    """Return the parameters of an address that are there; no text has a NUL in PostgreSQL."""
    found = {name: request.GET.get(name, "").replace("\0", "").strip() for name in names}
    return {name: text for name, text in found.items() if text}


class ReadOnlyAdmin(Base):
    """An admin without any way to add, change or delete."""

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
        """Return a view for who is signed in to the admin, and may view."""

        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            if not self.has_view_permission(request):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self.admin_site.admin_view(guarded)(*args, **kwargs)

        return update_wrapper(wrapper, view)

    def sees_payload(self, request: HttpRequest) -> bool:
        """Return whether payloads, metadata and states are shown, and not their shape alone."""
        return bool(request.user.has_perm(PAYLOAD))

    def page(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        """Return a page made of a template of ours."""
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
