"""The SDK, with what it exports kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from eventlogs.contrib.opentelemetry.metering import Metering
from eventlogs.contrib.opentelemetry.tracing import Tracing
from tests.watching import watched


class Spans:
    """The spans of a provider of its own."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("tests")

    @property
    def all(self) -> list[ReadableSpan]:
        """The spans that have ended, in the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        """Return the only span of a name."""
        [found] = [each for each in self.all if each.name == name]
        return found

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.all]


@contextmanager
def traced(**options: Any) -> Iterator[Spans]:
    """Make spans in a block."""
    spans = Spans(**options)
    with watched(Tracing(tracer_provider=spans.provider)):
        yield spans


class Metrics:
    """The metrics of a provider of its own."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    @property
    def points(self) -> dict[str, list[Any]]:
        """The data points by the name of the metric, collected now."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, name: str) -> dict[frozenset[Any], Any]:
        """Return the values (of a histogram, the counts) of a metric, by their attributes."""
        return {
            frozenset((point.attributes or {}).items()): getattr(
                point, "value", getattr(point, "count", None)
            )
            for point in self.points.get(name, [])
        }


@contextmanager
def metered(**options: Any) -> Iterator[Metrics]:
    """Record metrics in a block."""
    metrics = Metrics()
    with watched(Metering(meter_provider=metrics.provider, **options)):
        yield metrics
