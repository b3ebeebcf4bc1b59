"""The mixin for a project's own ModelAdmins: it links a row to the events of its log."""

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

SHOWN: Final = 5  # events on the page of a row


class EventLogAdminMixin:
    """
    Show the last events of a row's log on its page, and link to the log.

    Use it with a ModelAdmin whose model has a log id. ``log_id_field`` is the name of that field,
    a LogIdField or a text field. Name ``history_link`` in ``list_display`` or ``readonly_fields``
    for a column with the link. Users who may view events see the last five on the page of a row.

    The link leads to the admin site of the row if event logs are registered there, otherwise to
    another admin site of the project that has them. If no site has them, or the user may not view
    logs on any, there is no link.
    """

    log_id_field = "log_id"
    change_form_template: Any = "admin/eventlogs/change_form_with_events.html"

    def get_log_id(self, obj: Any) -> LogId | None:
        """Return the log id of a row, or None if it has none."""
        value = getattr(obj, self.log_id_field, None)
        if value is None or isinstance(value, LogId):
            return value
        try:
            return LogId.parse(str(value))
        except InvalidLogId:
            return None

    @admin.display(description=_("event log"))
    def history_link(self, obj: Any) -> str:
        """Return a link to the log of a row."""
        log_id = self.get_log_id(obj)
        address = None if log_id is None else self._log_address(log_id)
        if address is None or not getattr(obj, "_shows_log_link", True):
            return "—"
        return format_html('<a href="{}">{}</a>', address, _("Show events"))

    def get_list_display(self, request: HttpRequest) -> list[Any] | tuple[Any, ...]:
        """Remove the column of links for users who may not view logs."""
        shown: list[Any] = super().get_list_display(request)  # type: ignore[misc]
        if "history_link" not in shown or next(_sites_with_logs(self._site, request), None):
            return shown
        return [each for each in shown if each != "history_link"]

    def get_object(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Mark the row with whether the user may follow a link to its log."""
        found = super().get_object(request, *args, **kwargs)  # type: ignore[misc]
        if found is not None:
            # Django calls history_link() without the request.
            sites = _sites_with_logs(self._site, request)
            found._shows_log_link = next(sites, None) is not None
        return found

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add the last events, and the link to the log, to the page of a row."""
        log_id = self.get_log_id(kwargs.get("obj"))
        if log_id is not None and request.user.has_perm("eventlogs.view_event"):
            last = Event.objects.for_log(log_id).order_by("-index")[:SHOWN]
            context = {
                **context,
                "log_address": self._log_address(log_id, request),
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

    def _log_address(self, log_id: LogId, request: HttpRequest | None = None) -> str | None:
        for site in _sites_with_logs(self._site, request):
            return reverse(_name(site), args=[log_id])
        return None


def _sites_with_logs(
    own: admin.AdminSite, request: HttpRequest | None = None
) -> Iterator[admin.AdminSite]:
    """
    Yield the admin sites on which logs are registered, ``own`` first.

    With a request, yield only those on which its user may view logs.
    """
    # Django documents no way to list the admin sites of a project. This one is a WeakSet, which has
    # no order.
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
            continue  # the URLconf of this request does not include the site
        yield site


def _name(site: admin.AdminSite) -> str:
    return f"{site.name}:eventlogs_eventlog_change"
