"""The read model of payments in the admin: read-only, with a link to each payment's log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

from eventlogs.admin import EventLogAdminMixin
from example_project.payments.models import PaymentSummary

if TYPE_CHECKING:
    Base = admin.ModelAdmin[PaymentSummary]
else:
    Base = admin.ModelAdmin


@admin.register(PaymentSummary)
class PaymentSummaryAdmin(EventLogAdminMixin, Base):
    """Rows that the projection writes, so they cannot be edited."""

    list_display = ("log_id", "status", "outstanding", "changed_at", "history_link")
    list_filter = ("status",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False
