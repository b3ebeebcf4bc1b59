"""The Django app."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig


class OpenTelemetryConfig(AppConfig):
    """For OpenTelemetry: ``INSTALLED_APPS = [..., "eventlogs.contrib.opentelemetry"]``."""

    name = "eventlogs.contrib.opentelemetry"
    label = "eventlogs_opentelemetry"
    verbose_name = "Event logs: traces and metrics for OpenTelemetry"

    def ready(self) -> None:
        """Observe this process."""
        import_module("eventlogs.contrib.opentelemetry.installation").install()
