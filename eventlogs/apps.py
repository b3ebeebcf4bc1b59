"""The Django app."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig

from eventlogs import conf


class EventLogsConfig(AppConfig):
    """Event logs: ``INSTALLED_APPS = [..., "eventlogs"]``."""

    name = "eventlogs"
    label = "eventlogs"
    verbose_name = "Event logs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, and have the setting there."""
        conf.prepare()
        import_module("eventlogs.checks")
