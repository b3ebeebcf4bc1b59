"""A view for Prometheus to scrape, also where several processes share their metrics."""

from __future__ import annotations

import os
from typing import Any

from django.http import HttpRequest, HttpResponse
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from eventlogs.contrib.prometheus.collector import HealthCollector

__all__ = ["metrics"]

_health = HealthCollector()


def metrics(request: HttpRequest) -> HttpResponse:
    """
    Return the metrics of this process, or of all that share PROMETHEUS_MULTIPROC_DIR.

    Django-prometheus' own view does the same, but leaves out the gauges of the database where
    processes share a directory. Let only your monitoring reach it: it names projections.
    """
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        add_processes: Any = MultiProcessCollector  # it has no types
        add_processes(registry)
        registry.register(_health)
    encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encoder(registry), content_type=content_type)
