"""For the admin of a project's own models: the way from a row to the history behind it."""

from __future__ import annotations

from typing import Any, Final

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from eventlogs.exceptions import InvalidLogId
from eventlogs.ids import LogId
from eventlogs.models import Event

SHOWN: Final = 5  # events beside a row


class EventLogAdminMixin:
    """
    Put a link to the history on a ModelAdmin whose model has a log id, and its last events.

    ``log_id_field`` is the name of the field, a LogIdField or text. ``history_link`` may be named
    in ``list_display`` and ``readonly_fields``; the page of a row shows the last five events
    and a link, for who may view events.
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
        if log_id is None:
            return "—"
        return format_html('<a href="{}">{}</a>', self._history_address(log_id), _("History"))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add the last events to the page of a row."""
        log_id = self.get_log_id(kwargs.get("obj"))
        if log_id is not None and request.user.has_perm("eventlogs.view_event"):
            last = Event.objects.for_log(log_id).order_by("-index")[:SHOWN]
            context = {
                **context,
                "history_address": self._history_address(log_id),
                "last_events": list(last),
            }
        response: HttpResponse = super().render_change_form(  # type: ignore[misc]
            request, context, *args, **kwargs
        )
        return response

    def _history_address(self, log_id: LogId) -> str:
        site = self.admin_site.name  # type: ignore[attr-defined]
        return reverse(f"{site}:eventlogs_eventlog_change", args=[log_id])
