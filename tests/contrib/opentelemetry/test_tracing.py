"""Spans, made by the real SDK."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpResponse
from django.test import RequestFactory
from django.utils.connection import ConnectionDoesNotExist
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from eventlogs import (
    ConcurrentAppend,
    EventLogError,
    IdempotentReplay,
    LogManager,
    LogNotFound,
    event_context,
)
from eventlogs.context import current
from eventlogs.contrib.opentelemetry.tracing import Tracing, span_context, traceparent
from eventlogs.middleware import EventContextMiddleware
from eventlogs.models import Event
from eventlogs.observers import observers
from eventlogs.projections import Publisher, Reactor, handles, projection
from eventlogs.projections.base import projections
from eventlogs.refreshers import ImmediateRefresher
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent
from tests.contrib.installed import environ
from tests.contrib.opentelemetry.recording import traced
from tests.parked import parked_payment
from tests.processes import output_of
from tests.projections.readmodels import declaring
from tests.watching import watched

pytestmark = pytest.mark.django_db(transaction=True)

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Couriers(Reactor):
    """It appends, as a process manager does."""

    log_types = ["account"]
    name = "couriers-traced"
    version = 1
    max_attempts = 1

    @handles(Opened)
    def send(self, record):
        if record.event.owner == "secret":
            raise ValueError("the secret")
        Parcel.logs.create(Sent(record.event.owner))


@pytest.fixture
def couriers(monkeypatch):
    monkeypatch.setitem(projections, Couriers.name, Couriers)
    return Couriers


@pytest.fixture
def spans():
    with traced() as spans:
        yield spans


def stored(log_id):
    """Return the traceparents of a log's events."""
    return [each.metadata.get("traceparent") for each in Event.objects.for_log(log_id)]


def test_an_append_is_the_span_of_a_producer(spans):
    state = Account.logs.create(Opened("ada"), Deposited(1))
    Account.logs.append(state, Deposited(1))

    created, appended = spans.all
    assert (created.name, created.kind) == ("create account", SpanKind.PRODUCER)
    assert dict(created.attributes or {}) == {
        "messaging.system": "eventlogs",
        "messaging.operation.name": "create",
        "messaging.operation.type": "send",
        "messaging.destination.name": "account",
        "messaging.batch.message_count": 2,
        "eventlogs.log.id": str(state.log_id),
        "eventlogs.event.types": ("account.opened", "account.deposited"),
        "eventlogs.database": "default",
        "eventlogs.outcome": "appended",
    }
    assert appended.name == "append account"
    assert appended.attributes["messaging.message.id"] == f"{state.log_id}:2"
    assert {each.status.status_code for each in spans.all} == {StatusCode.UNSET}


def test_an_answer_is_no_error_and_a_failure_is_one(spans):
    state = Account.logs.create(Opened("ada"), idempotency_key="k")
    Account.logs.append(state, Deposited(1))
    for call in (
        lambda: Account.logs.append(state, Deposited(1)),
        lambda: Account.logs.create(Opened("ada"), idempotency_key="k"),
        lambda: Account.logs.append(state.log_id, "no event", expected_version=9),
        lambda: LogManager(Account, using="nowhere").create(Opened("ada")),
    ):
        with pytest.raises((EventLogError, ConnectionDoesNotExist)):
            call()

    found = [
        (each.attributes["error.type"], each.attributes["eventlogs.outcome"], each.status)
        for each in spans.all[2:]
    ]
    assert [(error, outcome) for error, outcome, _ in found] == [
        (ConcurrentAppend.__name__, "conflict"),
        (IdempotentReplay.__name__, "replayed"),
        ("InvalidEvent", "refused"),
        ("ConnectionDoesNotExist", "failed"),
    ]
    assert [status.status_code for _, _, status in found] == [
        *[StatusCode.UNSET] * 3,
        StatusCode.ERROR,
    ]


def test_events_have_the_context_of_the_appends_span(spans):
    with spans.tracer.start_as_current_span("request") as request:
        state = Account.logs.create(Opened("ada"), Deposited(1))
    Account.logs.append(state, Deposited(1))

    create, append = spans.named("create account"), spans.named("append account")
    assert create.parent.span_id == request.get_span_context().span_id
    assert append.parent is None
    assert stored(state.log_id) == [traceparent(each.context) for each in (create, create, append)]
    assert current.get() is None
    assert not get_current_span().get_span_context().is_valid


def test_explicit_metadata_wins(spans):
    state = Account.logs.create(Opened("ada"), metadata={"traceparent": HEADER})

    assert stored(state.log_id) == [HEADER]


def test_the_current_span_is_newer_than_the_header(spans):
    def view(request):
        with spans.tracer.start_as_current_span("request"):
            Account.logs.create(Opened("ada"))
        return HttpResponse()

    EventContextMiddleware(view)(RequestFactory().get("/", headers={"traceparent": HEADER}))

    [found] = [each.metadata for each in Event.objects.all()]
    assert found["traceparent"] == traceparent(spans.named("create account").context)
    assert found["request_id"]


def test_without_a_span_around_it_an_append_continues_the_trace_of_the_header(spans):
    def view(request):
        Account.logs.create(Opened("ada"))
        return HttpResponse()

    EventContextMiddleware(view)(RequestFactory().get("/", headers={"traceparent": HEADER}))

    create = spans.named("create account")
    assert traceparent(create.parent) == HEADER
    assert [each.metadata["traceparent"] for each in Event.objects.all()] == [
        traceparent(create.context)
    ]


def test_without_an_sdk_the_header_stays():
    with watched(Tracing()), event_context(traceparent=HEADER):
        state = Account.logs.create(Opened("ada"))
        other = Account.logs.create(Opened("eve"), metadata={"traceparent": None})

    assert stored(state.log_id) == [HEADER]
    assert stored(other.log_id) == [None]


def test_without_an_sdk_and_a_header_there_is_no_context():
    with watched(Tracing()):
        state = Account.logs.create(Opened("ada"))

    assert stored(state.log_id) == [None]


def test_a_trace_that_is_not_sampled_is_passed_on():
    with traced(sampler=ALWAYS_OFF) as spans:
        state = Account.logs.create(Opened("ada"))

    assert spans.all == []
    [found] = stored(state.log_id)
    assert span_context(found).trace_flags.sampled is False


@pytest.mark.feed
def test_the_span_of_a_reaction_links_to_the_append(spans, couriers):
    with spans.tracer.start_as_current_span("request"):
        state = Account.logs.create(Opened("ada"))

    couriers.catch_up()

    append, reaction = spans.named("create account"), spans.named("react couriers-traced")
    [link] = reaction.links
    assert (link.context.trace_id, link.context.span_id) == (
        append.context.trace_id,
        append.context.span_id,
    )
    assert (reaction.kind, reaction.parent) == (SpanKind.CONSUMER, None)
    assert reaction.context.trace_id != append.context.trace_id
    assert dict(reaction.attributes or {}) == {
        "messaging.system": "eventlogs",
        "messaging.operation.name": "react",
        "messaging.operation.type": "process",
        "messaging.destination.name": "account",
        "messaging.consumer.group.name": "couriers-traced",
        "messaging.message.id": f"{state.log_id}:0",
        "eventlogs.log.id": str(state.log_id),
        "eventlogs.event.type": "account.opened",
        "eventlogs.database": "default",
    }
    # What the reactor appends is part of its trace.
    effect = spans.named("create parcel")
    assert effect.parent.span_id == reaction.context.span_id
    [parcel] = Event.objects.filter(type="parcel.sent")
    assert parcel.metadata["traceparent"] == traceparent(effect.context)
    assert parcel.metadata["causation_id"] == f"{state.log_id}:0"


@pytest.mark.feed
def test_a_reaction_to_an_event_without_a_trace_has_no_link(couriers):
    Account.logs.create(Opened("ada"), metadata={"traceparent": "nonsense"})

    with traced() as spans:
        couriers.catch_up()

    assert spans.named("react couriers-traced").links == ()


@pytest.mark.feed
def test_a_reaction_that_fails_is_an_error_without_data(spans, couriers):
    Account.logs.create(Opened("secret"))

    couriers.catch_up()

    reaction = spans.named("react couriers-traced")
    assert reaction.status.status_code is StatusCode.ERROR
    assert reaction.attributes["error.type"] == "ValueError"
    assert reaction.events == ()
    assert "the secret" not in reaction.to_json()
    assert not get_current_span().get_span_context().is_valid


@pytest.mark.feed
def test_a_batch_of_rows_is_the_span_of_a_consumer(spans, monkeypatch):
    parked_payment(monkeypatch, "the secret")

    applied = [each for each in spans.all if each.name == "apply payment-summary"]
    assert {each.kind for each in applied} == {SpanKind.CONSUMER}
    assert applied[0].attributes["messaging.consumer.group.name"] == PaymentSummaries.name
    assert applied[0].attributes["messaging.operation.type"] == "process"
    assert applied[0].attributes["messaging.batch.message_count"] == 3
    assert "the secret" not in "".join(each.to_json() for each in spans.all)


@pytest.mark.feed
def test_a_batch_of_a_publisher_is_a_span(spans):
    class Telling(Publisher):
        log_types = ["account"]

        def publish(self, records): ...

    with declaring({}):
        projection("telling")(Telling)
        Account.logs.create(Opened("ada"), Deposited(1))
        Telling.catch_up()

    published = spans.named("publish telling")
    assert published.attributes["messaging.batch.message_count"] == 2


def test_a_reduction_says_what_the_cache_had(spans):
    accounts = LogManager(Account, refresher=ImmediateRefresher(), refresh_on_append=True)
    state = accounts.create(Opened("ada"))
    accounts.reduce(state.log_id)
    with pytest.raises(LogNotFound):
        accounts.reduce(accounts.new_id())

    reduces = [each for each in spans.all if each.name == "reduce account"]
    assert [each.attributes["eventlogs.outcome"] for each in reduces] == ["hit", "not_found"]
    assert [each.attributes["eventlogs.event.count"] for each in reduces] == [0, 0]
    assert spans.named("refresh account").attributes["eventlogs.outcome"] == "written"
    assert {each.status.status_code for each in spans.all} == {StatusCode.UNSET}


def test_async_appends_have_their_spans_in_the_callers_trace(spans):
    async def main():
        async def request(n):
            with spans.tracer.start_as_current_span(f"request {n}"):
                state = await Account.logs.acreate(Opened(f"{n}"))
                await Account.logs.aappend(state, Deposited(n))
                return state

        return await asyncio.gather(*(request(n) for n in range(6)))

    states = async_to_sync(main)()

    by_id = {each.context.span_id: each for each in spans.all}
    appends = [each for each in spans.all if each.kind is SpanKind.PRODUCER]
    assert len(appends) == 12
    for n, state in enumerate(states):
        own = [each for each in appends if each.attributes["eventlogs.log.id"] == str(state.log_id)]
        assert [by_id[each.parent.span_id].name for each in own] == [f"request {n}"] * 2
        assert stored(state.log_id) == [traceparent(each.context) for each in own]


def test_names_of_spans_have_no_ids(spans):
    for n in range(10):
        state = Account.logs.create(Opened(f"{n}"), Noted({"n": n}))
        Account.logs.reduce(state.log_id)

    assert set(spans.names) == {"create account", "reduce account"}


def test_a_traceparent_of_the_future_is_read_as_far_as_it_is_known():
    found = span_context("01" + HEADER[2:-2] + "03-more")

    assert traceparent(found) == HEADER
    assert found.is_remote
    assert span_context("00-" + "0" * 32 + HEADER[35:]) is None


APPEND = """
import django
django.setup()
from django.apps import apps
from eventlogs.observers import observers
apps.get_app_config("eventlogs_opentelemetry").ready()  # again: nothing is registered twice
assert len(observers) == 2
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
provider = TracerProvider()  # after Django has started
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)
from tests.accounts import Account, Opened
Account.logs.create(Opened("ada"))
"""


def test_the_app_is_all_that_has_to_be_installed():
    app = "eventlogs.contrib.opentelemetry"
    printed = output_of("-c", APPEND, environ=environ(app))

    assert '"name": "create account"' in printed


def test_nothing_is_observed_without_the_app():
    assert observers == []
