"""
Counters and histograms of what this process does, by an observer.

Labels have few values: declared log types, declared projections, outcomes, aliases of databases.
Never ids. docs/observability.md has the table of all metrics.
"""

from __future__ import annotations

from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from eventlogs.contrib.prometheus.collector import HealthCollector
from eventlogs.observers import (
    APPENDED,
    CONFLICT,
    FAILED,
    REFUSED,
    REPLAYED,
    Append,
    Batch,
    CacheUse,
    EventFailed,
    EventParked,
    EventSkipped,
    Fact,
    Observer,
    Operation,
    Reaction,
    Reduce,
    RefreshRun,
    register,
)

# Seconds. An append takes about a millisecond, the handler of a reactor may take many seconds.
SHORT: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
LONG: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
FOLDED: Final = ("hit", "miss", "uncached")
OUTCOMES: Final = (APPENDED, REPLAYED, CONFLICT, REFUSED, FAILED)


class Metrics(Observer):
    """The metrics of a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._known: set[tuple[str, ...]] = set()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"eventlogs_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: Any = SHORT) -> Histogram:
            return Histogram(f"eventlogs_{name}", text, labels, registry=registry, buckets=buckets)

        self.appends = counter(
            "appends",
            "Calls of append and create, and attempts of execute; appended: after the commit.",
            *("log_type", "outcome", "database"),
        )
        self.appended_events = counter(
            "appended_events", "Events appended and committed.", "log_type", "database"
        )
        self.append_seconds = histogram(
            "append_seconds", "Duration of appends, without a later commit.", "log_type"
        )
        self.reduces = counter(
            "reduces", "Reductions to the current state.", "log_type", "outcome", "reason"
        )
        self.reduced_events = counter("reduced_events", "Events folded by reductions.", "log_type")
        self.reduce_seconds = histogram(
            "reduce_seconds", "Duration of reductions.", "log_type", "outcome"
        )
        self.cache_writes = counter("cache_writes", "Entries written to the cache.", "log_type")
        self.cache_errors = counter(
            "cache_errors", "Failures that left the cache unused or older.", "log_type", "reason"
        )
        self.refreshes = counter("refreshes", "Refreshes that read a log.", "log_type", "outcome")
        self.refresh_seconds = histogram(
            "refresh_seconds", "Duration of refreshes that read a log.", "log_type"
        )
        self.batches = counter(
            "batches", "Batches and retries of projections and reactors.", "projection", "outcome"
        )
        self.applied_events = counter(
            "applied_events", "Events applied by projections and reactors.", "projection"
        )
        self.batch_seconds = histogram(
            "batch_seconds", "Duration of batches and retries.", "projection", buckets=LONG
        )
        self.reaction_seconds = histogram(
            "reaction_seconds",
            "Duration of calls of a reactor's handlers.",
            *("projection", "outcome"),
            buckets=LONG,
        )
        self.failed_events = counter(
            "failed_events", "Failed attempts to apply an event.", "projection"
        )
        self.parked_events = counter(
            "parked_events", "Events parked after their last attempt.", "projection"
        )
        self.skipped_events = counter("skipped_events", "Events skipped by people.", "projection")

    def end(self, operation: Operation, token: Any) -> None:
        """Count an operation that has ended."""
        seconds = operation.seconds
        match operation:
            case Append(log_id=log_id, outcome=outcome, using=using):
                self._begin_at_zero(log_id.log_type, using or "")
                self.append_seconds.labels(log_id.log_type).observe(seconds)
                if outcome != APPENDED:
                    self.appends.labels(log_id.log_type, outcome, using or "").inc()
            case Reduce(log_id=log_id, outcome=outcome, reason=reason, events=events):
                self.reduces.labels(log_id.log_type, outcome, reason).inc()
                if outcome in FOLDED:
                    self.reduced_events.labels(log_id.log_type).inc(events)
                    self.reduce_seconds.labels(log_id.log_type, outcome).observe(seconds)
            case RefreshRun(log_id=log_id, outcome=outcome):
                self.refreshes.labels(log_id.log_type, outcome).inc()
                self.refresh_seconds.labels(log_id.log_type).observe(seconds)
            case Batch(projection=projection, outcome=outcome, events=events):
                self._begin_at_zero(projection.name)
                self.batches.labels(projection.name, outcome).inc()
                self.applied_events.labels(projection.name).inc(events)
                self.batch_seconds.labels(projection.name).observe(seconds)
            case Reaction(projection=projection, error=error):
                outcome = "applied" if error is None else "failed"
                self.reaction_seconds.labels(projection.name, outcome).observe(seconds)

    def _begin_at_zero(self, *labels: str) -> None:
        # Prometheus' rate() does not see the step from an absent series to 1: the first failure.
        if labels in self._known:
            return
        self._known.add(labels)
        if len(labels) == 1:
            for counter in (self.failed_events, self.parked_events, self.skipped_events):
                counter.labels(*labels)
            return
        log_type, using = labels
        for outcome in OUTCOMES:
            self.appends.labels(log_type, outcome, using)

    def committed(self, append: Append) -> None:
        """Count an append that is committed."""
        log_type, using = append.log_id.log_type, append.using or ""
        self.appends.labels(log_type, APPENDED, using).inc()
        self.appended_events.labels(log_type, using).inc(append.events)

    def happened(self, fact: Fact) -> None:
        """Count a fact."""
        match fact:
            case CacheUse(aggregate=aggregate, outcome="refresh"):
                self.cache_writes.labels(aggregate.log_type).inc()
            case CacheUse(aggregate=aggregate, outcome="error", reason=reason):
                self.cache_errors.labels(aggregate.log_type, reason).inc()
            case EventFailed(projection=projection):
                self.failed_events.labels(projection.name).inc()
            case EventParked(projection=projection):
                self.parked_events.labels(projection.name).inc()
            case EventSkipped(projection=projection):
                self.skipped_events.labels(projection.name).inc()


_installed: list[Metrics] = []


def install() -> None:
    """Register the metrics of this process, and those of the database, in the default registry."""
    if not _installed:
        _installed.append(Metrics(REGISTRY))
        REGISTRY.register(HealthCollector())
    register(_installed[0])
