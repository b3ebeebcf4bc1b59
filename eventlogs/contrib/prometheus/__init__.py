"""
Metrics for Prometheus: add ``"eventlogs.contrib.prometheus"`` to INSTALLED_APPS.

It needs ``prometheus_client`` (``pip install "eventlogs[prometheus]"``). The metrics are
in its default registry, so that every way to export that has them: django-prometheus,
``start_http_server``, or ``eventlogs.contrib.prometheus.views.metrics``.
"""
