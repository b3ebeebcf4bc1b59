"""The Django app."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig


class PrometheusConfig(AppConfig):
    """Metrics for Prometheus: ``INSTALLED_APPS = [..., "eventlogs.contrib.prometheus"]``."""

    name = "eventlogs.contrib.prometheus"
    label = "eventlogs_prometheus"
    verbose_name = "Event logs: metrics for Prometheus"

    def ready(self) -> None:
        """Register the metrics."""
        import_module("eventlogs.contrib.prometheus.metrics").install()
