"""
Metrics of what this process does, and gauges of the database, which the reader asks for.

Attributes have few values: declared log types, declared projections, outcomes, aliases of
databases. Never ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from eventlogs.contrib.opentelemetry.conventions import (
    CONSUMER_GROUP,
    DATABASE,
    DESTINATION,
    ERROR_TYPE,
    EVENTLOGS,
    LOG_TYPE,
    OPERATION_NAME,
    OUTCOME,
    PROJECTION,
    REASON,
    SCOPE,
    VERSION,
)
from eventlogs.contrib.opentelemetry.tracing import error_type
from eventlogs.observers import (
    APPENDED,
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
)
from eventlogs.operations.recent_health import MAX_AGE, PATIENCE, RecentHealth, Seen

# Seconds, as the conventions ask for.
BUCKETS: Final = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]

Values = Iterable[tuple[float, dict[str, Any]]]


class Metering(Observer):
    """
    Records metrics with the meter of a provider, by default the global one.

    ``using`` is the database that the gauges are about, by default the one that logs are written
    to. An answer is kept for ``max_age`` seconds, and waited for ``patience`` seconds.
    """

    def __init__(
        self,
        *,
        meter_provider: MeterProvider | None = None,
        using: str | None = None,
        max_age: float = MAX_AGE,
        patience: float = PATIENCE,
    ) -> None:
        meter = get_meter(SCOPE, VERSION, meter_provider)

        def duration(name: str, text: str) -> Any:
            return meter.create_histogram(
                name, "s", text, explicit_bucket_boundaries_advisory=BUCKETS
            )

        self._client_duration = duration(
            "messaging.client.operation.duration", "Duration of appends, without a later commit."
        )
        self._process_duration = duration(
            "messaging.process.duration", "Duration of batches and of calls of reactors."
        )
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Events appended and committed."
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Events applied by projections."
        )
        self._appends = meter.create_counter(
            "eventlogs.appends", "{append}", "Calls by outcome; appended: after the commit."
        )
        self._reduce_duration = duration("eventlogs.reduce.duration", "Duration of reductions.")
        self._reduced = meter.create_counter(
            "eventlogs.reduced.events", "{event}", "Events folded by reductions."
        )
        self._refresh_duration = duration("eventlogs.refresh.duration", "Duration of refreshes.")
        self._cache_writes = meter.create_counter(
            "eventlogs.cache.writes", "{entry}", "Entries written to the cache."
        )
        self._cache_errors = meter.create_counter(
            "eventlogs.cache.errors", "{error}", "Failures that left the cache unused or older."
        )
        self._held = meter.create_counter(
            "eventlogs.held.events", "{event}", "Events that failed, were parked or were skipped."
        )
        self._health = RecentHealth(using=using, max_age=max_age, patience=patience)
        for name, unit, text, values in (
            ("up", "1", "Whether the database has answered in time.", _up),
            ("findings", "{finding}", "Findings of `manage.py eventlogs health`.", _findings),
            ("projection.lag", "s", "Age of the oldest event that is not applied.", _lags),
            ("projection.behind", "{event}", "Events that are not applied, at least.", _behind),
            ("projection.held", "{log}", "Logs held, by reason.", _held),
        ):
            gauge = f"eventlogs.{name}"
            meter.create_observable_gauge(gauge, [self._asking(values)], unit, text)

    def end(self, operation: Operation, token: Any) -> None:
        """Record an operation that has ended."""
        seconds = operation.seconds
        match operation:
            case Append(log_id=log_id, outcome=outcome):
                name = "create" if operation.is_create else "append"
                facts = {**EVENTLOGS, OPERATION_NAME: name, DESTINATION: log_id.log_type}
                if operation.error is not None:
                    facts[ERROR_TYPE] = error_type(operation)
                self._client_duration.record(seconds, facts)
                if outcome != APPENDED:
                    self._appends.add(1, {LOG_TYPE: log_id.log_type, OUTCOME: outcome})
            case Reduce(log_id=log_id, outcome=outcome, reason=reason, events=events):
                facts = {LOG_TYPE: log_id.log_type, OUTCOME: outcome, REASON: reason}
                self._reduce_duration.record(seconds, facts)
                self._reduced.add(events, {LOG_TYPE: log_id.log_type})
            case RefreshRun(log_id=log_id, outcome=outcome):
                facts = {LOG_TYPE: log_id.log_type, OUTCOME: outcome}
                self._refresh_duration.record(seconds, facts)
            case Batch(projection=projection):
                self._end_batch(operation, projection)
            case Reaction(projection=projection):
                facts = {**EVENTLOGS, OPERATION_NAME: "react", CONSUMER_GROUP: projection.name}
                if operation.error is not None:
                    facts[ERROR_TYPE] = error_type(operation)
                self._process_duration.record(seconds, facts)

    def _end_batch(self, batch: Batch, projection: type[Any]) -> None:
        name = "react" if not projection.is_transactional else "apply"
        if projection.publishes:
            name = "publish"
        facts = {**EVENTLOGS, OPERATION_NAME: name, CONSUMER_GROUP: projection.name}
        self._consumed.add(batch.events, facts)
        # A reactor's time is that of its reactions; a publisher has none.
        if projection.is_transactional or projection.publishes:
            if batch.error is not None:
                facts[ERROR_TYPE] = error_type(batch)
            self._process_duration.record(batch.seconds, facts)

    def committed(self, append: Append) -> None:
        """Count an append that is committed."""
        log_type = append.log_id.log_type
        name = "create" if append.is_create else "append"
        self._appends.add(1, {LOG_TYPE: log_type, OUTCOME: APPENDED})
        facts = {**EVENTLOGS, OPERATION_NAME: name, DESTINATION: log_type}
        self._sent.add(append.events, facts)

    def happened(self, fact: Fact) -> None:
        """Count a fact."""
        match fact:
            case CacheUse(aggregate=aggregate, outcome="refresh"):
                self._cache_writes.add(1, {LOG_TYPE: aggregate.log_type})
            case CacheUse(aggregate=aggregate, outcome="error", reason=reason):
                self._cache_errors.add(1, {LOG_TYPE: aggregate.log_type, REASON: reason})
            case EventFailed(projection=projection):
                self._held.add(1, {PROJECTION: projection.name, OUTCOME: "failed"})
            case EventParked(projection=projection):
                self._held.add(1, {PROJECTION: projection.name, OUTCOME: "parked"})
            case EventSkipped(projection=projection):
                self._held.add(1, {PROJECTION: projection.name, OUTCOME: "skipped"})

    def _asking(self, values: Callable[[Seen | None], Values]) -> Any:
        """Return the callback of a gauge. Where nothing is known, it has no value."""

        def observe(options: CallbackOptions) -> Iterator[Observation]:
            for value, facts in values(self._health.get()):
                yield Observation(value, {DATABASE: self._health.using, **facts})

        return observe


def _up(seen: Seen | None) -> Values:
    yield float(seen is not None and seen.is_up), {}


def _findings(seen: Seen | None) -> Values:
    found = () if seen is None else seen.health.findings
    for (code, level), count in Counter((each.code, each.level) for each in found).items():
        yield count, {"eventlogs.finding.code": code, "eventlogs.finding.level": level}


def _figures(seen: Seen | None, name: str) -> Iterator[tuple[float, str]]:
    for projection, figures in ({} if seen is None else seen.health.projections).items():
        if name in figures:
            yield figures[name], projection


def _lags(seen: Seen | None) -> Values:
    return ((value, {PROJECTION: name}) for value, name in _figures(seen, "lag_seconds"))


def _behind(seen: Seen | None) -> Values:
    return ((value, {PROJECTION: name}) for value, name in _figures(seen, "events_behind"))


def _held(seen: Seen | None) -> Values:
    for reason in ("parked", "waiting"):
        for value, name in _figures(seen, reason):
            yield value, {PROJECTION: name, REASON: reason}
