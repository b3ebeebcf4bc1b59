"""The Django app."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig


class EventLogsConfig(AppConfig):
    """Event logs: ``INSTALLED_APPS = [..., "eventlogs"]``."""

    name = "eventlogs"
    label = "eventlogs"
    verbose_name = "Event logs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        import_module("eventlogs.checks")
