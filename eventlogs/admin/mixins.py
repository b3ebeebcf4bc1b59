"""For the admin of a project's own models: the way from a row to the history behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from django.contrib import admin
from django.contrib.admin.sites import all_sites
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from eventlogs.exceptions import InvalidLogId
from eventlogs.ids import LogId
from eventlogs.models import Event, EventLog

SHOWN: Final = 5  # events beside a row


class EventLogAdminMixin:
    """
    Put a link to the history on a ModelAdmin whose model has a log id, and its last events.

    ``log_id_field`` is the name of the field, a LogIdField or text. ``history_link`` may be named
    in ``list_display`` and ``readonly_fields``; the page of a row shows the last five events
    and a link, for who may view events.

    The link leads to the admin site of the row where that has the logs, or to another one of the
    project that has them. Where none has them, or none that the user may see, there is no link.
    """

    log_id_field = "log_id"
    change_form_template: Any = "admin/eventlogs/change_form_with_history.html"

    def get_log_id(self, obj: Any) -> LogId | None:
        """Return the log of a row, or None where it has none."""
        value = getattr(obj, self.log_id_field, None)
        if value is None or isinstance(value, LogId):
            return value
        try:
            return LogId.parse(str(value))
        except InvalidLogId:
            return None

    @admin.display(description=_("history"))
    def history_link(self, obj: Any) -> str:
        """Return a link to the history."""
        log_id = self.get_log_id(obj)
        address = None if log_id is None else self._history_address(log_id)
        if address is None or not getattr(obj, "_history_is_shown", True):
            return "—"
        return format_html('<a href="{}">{}</a>', address, _("History"))

    def get_list_display(self, request: HttpRequest) -> list[Any] | tuple[Any, ...]:
        """Leave out the links for who could not follow them."""
        shown: list[Any] = super().get_list_display(request)  # type: ignore[misc]
        if "history_link" not in shown or next(_sites_with_logs(self._site, request), None):
            return shown
        return [each for each in shown if each != "history_link"]

    def get_object(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Note whether the user could follow a link from a row to its history."""
        found = super().get_object(request, *args, **kwargs)  # type: ignore[misc]
        if found is not None:
            # history_link() is not told who asks.
            sites = _sites_with_logs(self._site, request)
            found._history_is_shown = next(sites, None) is not None
        return found

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add the last events to the page of a row."""
        log_id = self.get_log_id(kwargs.get("obj"))
        if log_id is not None and request.user.has_perm("eventlogs.view_event"):
            last = Event.objects.for_log(log_id).order_by("-index")[:SHOWN]
            context = {
                **context,
                "history_address": self._history_address(log_id, request),
                "last_events": list(last),
            }
        response: HttpResponse = super().render_change_form(  # type: ignore[misc]
            request, context, *args, **kwargs
        )
        return response

    @property
    def _site(self) -> admin.AdminSite:
        site: admin.AdminSite = self.admin_site  # type: ignore[attr-defined]
        return site

    def _history_address(self, log_id: LogId, request: HttpRequest | None = None) -> str | None:
        for site in _sites_with_logs(self._site, request):
            return reverse(_name(site), args=[log_id])
        return None


def _sites_with_logs(
    own: admin.AdminSite, request: HttpRequest | None = None
) -> Iterator[admin.AdminSite]:
    """
    Yield the admin sites with a page for logs, ``own`` first.

    With a request, these are the sites where the user may see logs.
    """
    # all_sites is a WeakSet: it has no order.
    for site in sorted(all_sites, key=lambda site: (site is not own, site.name)):
        if not site.is_registered(EventLog):
            continue
        if request is not None and not (
            site.has_permission(request)
            and site.get_model_admin(EventLog).has_view_permission(request)
        ):
            continue
        try:
            reverse(_name(site), args=["x"])
        except NoReverseMatch:
            continue  # it is in no URLconf, or another one's
        yield site


def _name(site: admin.AdminSite) -> str:
    return f"{site.name}:eventlogs_eventlog_change"
