"""
Traces and metrics for OpenTelemetry: add ``"eventlogs.contrib.opentelemetry"`` to INSTALLED_APPS.

It needs ``opentelemetry-api`` (``pip install "eventlogs[opentelemetry]"``), and uses the global
providers of traces and metrics, whether the project sets them before or after Django starts.
Without an SDK, no span is made.
"""
