"""
Spans of appends, reductions, refreshes, batches and reactions.

The context of an append's span is the ``traceparent`` of its events, unless ``metadata=`` has one.
A reactor's span links to that of its event: it is a trace of its own, because the request may have
ended long ago (https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/).

An error is recorded by the name of its class. Its text and traceback may quote data of an event.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import Token
from typing import Any, Final, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TracerProvider,
    get_current_span,
    get_tracer,
    set_span_in_context,
)

from eventlogs.context import Layer, current, member, valid_traceparent
from eventlogs.contrib.opentelemetry.conventions import (
    CONSUMER_GROUP,
    DATABASE,
    DESTINATION,
    ERROR_TYPE,
    EVENT_TYPE,
    EVENT_TYPES,
    EVENTLOGS,
    EVENTS,
    LOG_ID,
    LOG_TYPE,
    MESSAGE_COUNT,
    MESSAGE_ID,
    OPERATION_NAME,
    OPERATION_TYPE,
    OUTCOME,
    REASON,
    SCOPE,
    VERSION,
)
from eventlogs.events.metadata import TRACEPARENT
from eventlogs.observers import (
    APPENDED,
    FAILED,
    Append,
    Batch,
    Observer,
    Operation,
    Reaction,
    Reduce,
    RefreshRun,
)

IN_JSON: Final = re.compile(r':\s*"([^"\\]*)"$')


class Begun(NamedTuple):
    """A span that is the current one, and what is to be restored after it."""

    span: Span
    context: Token[Any]
    layer: Token[Any] | None


class Tracing(Observer):
    """Makes spans with the tracer of a provider, by default the global one."""

    def __init__(self, *, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer(SCOPE, VERSION, tracer_provider)

    def begin(self, operation: Operation) -> Begun | None:
        """Begin a span, and make it the current one."""
        match operation:
            case Append():
                return self._begin_append(operation)
            case Reaction():
                return self._begin_reaction(operation)
            case Reduce(log_id=log_id, using=using):
                facts = {LOG_ID: str(log_id), LOG_TYPE: log_id.log_type, DATABASE: using}
                return self._begin(f"reduce {log_id.log_type}", facts)
            case RefreshRun(log_id=log_id, using=using):
                facts = {LOG_ID: str(log_id), LOG_TYPE: log_id.log_type, DATABASE: using}
                return self._begin(f"refresh {log_id.log_type}", facts)
            case Batch(projection=projection, using=using, read=read, is_retry=is_retry):
                if not (projection.is_transactional or projection.publishes):
                    return None  # each of its reactions has a span
                name = "publish" if projection.publishes else "apply"
                name = "retry" if is_retry else name
                batch: dict[str, Any] = {
                    **EVENTLOGS,
                    OPERATION_NAME: name,
                    OPERATION_TYPE: "process",
                    CONSUMER_GROUP: projection.name,
                    DATABASE: using,
                }
                if read:
                    batch[MESSAGE_COUNT] = read
                return self._begin(f"{name} {projection.name}", batch, kind=SpanKind.CONSUMER)
        return None

    def end(self, operation: Operation, token: Begun | None) -> None:
        """End a span."""
        if token is None:
            return
        _restore(token)
        span, error = token.span, operation.error
        if span.is_recording():
            has_failed = isinstance(operation, Reaction) and error is not None
            match operation:
                case Append(outcome=outcome):
                    span.set_attribute(OUTCOME, outcome)
                    if outcome == APPENDED and operation.events == 1:
                        span.set_attribute(MESSAGE_ID, f"{operation.log_id}:{operation.index}")
                    has_failed = outcome == FAILED
                case Reduce(outcome=outcome, reason=reason, events=events):
                    span.set_attributes({OUTCOME: outcome, EVENTS: events})
                    if reason:
                        span.set_attribute(REASON, reason)
                    has_failed = outcome == FAILED
                case RefreshRun(outcome=outcome):
                    span.set_attribute(OUTCOME, outcome)
                    has_failed = outcome == FAILED
                case Batch(outcome=outcome, events=events):
                    span.set_attributes({OUTCOME: outcome, EVENTS: events})
                    has_failed = outcome == FAILED
            if error is not None:
                span.set_attribute(ERROR_TYPE, error_type(operation))
            if has_failed:
                span.set_status(StatusCode.ERROR)
        span.end()

    def drop(self, operation: Operation, token: Begun | None) -> None:
        """Forget a span: one that never ends is not exported."""
        if token is not None:
            _restore(token)

    def _begin(
        self,
        name: str,
        facts: Mapping[str, Any],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: list[Link] | None = None,
        context: Any = None,
    ) -> Begun:
        span = self._tracer.start_span(name, context, kind, facts, links)
        return Begun(span, otel_context.attach(set_span_in_context(span)), None)

    def _begin_append(self, append: Append) -> Begun:
        log_type, name = append.log_id.log_type, "create" if append.is_create else "append"
        layer = current.get()
        parent = None
        if layer is not None and not get_current_span().get_span_context().is_valid:
            # No other instrumentation is there: continue the trace that the request came with.
            found = span_context(_traceparent_of(layer))
            parent = None if found is None else set_span_in_context(NonRecordingSpan(found))
        begun = self._begin(
            f"{name} {log_type}",
            {
                **EVENTLOGS,
                OPERATION_NAME: name,
                OPERATION_TYPE: "send",
                DESTINATION: log_type,
                MESSAGE_COUNT: append.events,
                LOG_ID: str(append.log_id),
                EVENT_TYPES: append.event_types,
                **({} if append.using is None else {DATABASE: append.using}),
            },
            kind=SpanKind.PRODUCER,
            context=parent,
        )
        made = begun.span.get_span_context()
        if not made.is_valid:  # there is no SDK, and no span around the append
            return begun
        own = {TRACEPARENT: member(TRACEPARENT, traceparent(made))}
        return begun._replace(layer=current.set(Layer(own, outer=layer)))

    def _begin_reaction(self, reaction: Reaction) -> Begun:
        record, name = reaction.record, reaction.projection.name
        cause = span_context(record.metadata.get(TRACEPARENT))
        return self._begin(
            f"react {name}",
            {
                **EVENTLOGS,
                OPERATION_NAME: "react",
                OPERATION_TYPE: "process",
                DESTINATION: record.log_id.log_type,
                CONSUMER_GROUP: name,
                MESSAGE_ID: record.id,
                LOG_ID: str(record.log_id),
                EVENT_TYPE: record.type,
                DATABASE: reaction.using,
            },
            kind=SpanKind.CONSUMER,
            links=[] if cause is None else [Link(cause)],
        )


def error_type(operation: Operation) -> str:
    """Return the class of the error of an operation: of a reaction, that of its handler's error."""
    error = operation.error
    if isinstance(operation, Reaction) and error is not None:
        error = error.__cause__ or error
    return type(error).__qualname__


def traceparent(made: SpanContext) -> str:
    """Return a span context as a W3C traceparent."""
    return f"00-{made.trace_id:032x}-{made.span_id:016x}-{made.trace_flags:02x}"


def span_context(value: Any) -> SpanContext | None:
    """Return the span context of a W3C traceparent, or None for anything else."""
    valid = valid_traceparent(value)
    if valid is None:
        return None
    _, trace, span, flags = valid.split("-")
    return SpanContext(int(trace, 16), int(span, 16), True, TraceFlags(int(flags, 16)))


def _traceparent_of(layer: Layer) -> str | None:
    found = IN_JSON.search(layer.members(asks=False).get(TRACEPARENT, ""))
    return None if found is None else found[1]


def _restore(begun: Begun) -> None:
    if begun.layer is not None:
        current.reset(begun.layer)
    otel_context.detach(begun.context)
