"""The Django app."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules

from eventlogs import conf


class EventLogsConfig(AppConfig):
    """Event logs: ``INSTALLED_APPS = [..., "eventlogs"]``."""

    name = "eventlogs"
    label = "eventlogs"
    verbose_name = "Event logs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, have the setting there, and find the projections."""
        conf.prepare()
        import_module("eventlogs.checks")
        import_module("eventlogs.mysql_checks")
        # As the admin finds admin.py: those that are inline take part in every append, so each
        # process has to know them.
        autodiscover_modules("projections")
