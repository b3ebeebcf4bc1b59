"""Metrics, recorded by the real SDK."""

from __future__ import annotations

import pytest
from django.db import transaction

from eventlogs import ConcurrentAppend, IdempotentReplay, LogManager
from eventlogs.contrib.opentelemetry import installation
from eventlogs.refreshers import ImmediateRefresher
from tests.accounts import Account, Deposited, Opened
from tests.contrib.opentelemetry.recording import metered, traced
from tests.parked import parked_payment

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def metrics():
    with metered() as metrics:
        yield metrics


def attributes(**values):
    """Return attributes by their names, with dots for double underscores."""
    return frozenset((name.replace("__", "."), value) for name, value in values.items())


SENDS = {"messaging__system": "eventlogs", "messaging__destination__name": "account"}
APPLIES = {"messaging__system": "eventlogs", "messaging__operation__name": "apply"}


def test_appends_are_counted_by_outcome(metrics):
    state = Account.logs.create(Opened("ada"), Deposited(1), idempotency_key="k")
    Account.logs.append(state, Deposited(1))
    with pytest.raises(ConcurrentAppend):
        Account.logs.append(state, Deposited(1))
    with pytest.raises(IdempotentReplay):
        Account.logs.create(Opened("ada"), Deposited(1), idempotency_key="k")

    assert metrics.values("eventlogs.appends") == {
        attributes(eventlogs__log__type="account", eventlogs__outcome=outcome): count
        for outcome, count in {"appended": 2, "conflict": 1, "replayed": 1}.items()
    }
    assert metrics.values("messaging.client.sent.messages") == {
        attributes(messaging__operation__name="create", **SENDS): 2,
        attributes(messaging__operation__name="append", **SENDS): 1,
    }
    assert metrics.values("messaging.client.operation.duration") == {
        attributes(messaging__operation__name=name, **SENDS, **error): 1
        for name, error in (
            ("create", {}),
            ("append", {}),
            ("append", {"error__type": "ConcurrentAppend"}),
            ("create", {"error__type": "IdempotentReplay"}),
        )
    }


def test_durations_have_buckets_of_seconds(metrics):
    Account.logs.create(Opened("ada"))

    [point] = metrics.points["messaging.client.operation.duration"]
    assert point.explicit_bounds[:3] == (0.005, 0.01, 0.025)
    assert 0 < point.sum < 10


def test_what_is_rolled_back_is_not_sent(metrics):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Account.logs.create(Opened("ada"))
        raise ZeroDivisionError

    assert metrics.values("messaging.client.sent.messages") == {}
    assert metrics.values("eventlogs.appends") == {}


def test_reductions_and_the_cache_are_counted(metrics):
    accounts = LogManager(Account, refresher=ImmediateRefresher())
    state = accounts.create(Opened("ada"), Deposited(1))
    for _ in range(3):
        accounts.reduce(state.log_id)

    of = {"eventlogs__log__type": "account"}
    assert metrics.values("eventlogs.reduce.duration") == {
        attributes(eventlogs__outcome="miss", eventlogs__reason="absent", **of): 1,
        attributes(eventlogs__outcome="hit", eventlogs__reason="", **of): 2,
    }
    assert metrics.values("eventlogs.reduced.events") == {attributes(**of): 2}
    assert metrics.values("eventlogs.cache.writes") == {attributes(**of): 1}


@pytest.mark.feed
def test_projections_are_counted_and_the_database_is_asked(metrics, monkeypatch):
    parked_payment(monkeypatch, "no")

    summary = {"messaging__consumer__group__name": "payment-summary", **APPLIES}
    assert metrics.values("messaging.client.consumed.messages") == {attributes(**summary): 1}
    assert metrics.values("messaging.process.duration")[attributes(**summary)] >= 1
    assert metrics.values("eventlogs.held.events") == {
        attributes(eventlogs__projection="payment-summary", eventlogs__outcome=each): 1
        for each in ("failed", "parked")
    }
    default = {"eventlogs__database": "default"}
    assert metrics.values("eventlogs.up") == {attributes(**default): 1}
    of = {"eventlogs__projection": "payment-summary", **default}
    assert metrics.values("eventlogs.projection.lag")[attributes(**of)] == 0
    assert metrics.values("eventlogs.projection.behind")[attributes(**of)] == 0
    held = metrics.values("eventlogs.projection.held")
    assert held[attributes(eventlogs__reason="parked", **of)] == 1
    finding = {"eventlogs__finding__code": "parked", "eventlogs__finding__level": "act"}
    assert metrics.values("eventlogs.findings")[attributes(**finding, **default)] == 1


def test_a_database_that_is_not_known_has_no_gauges():
    with metered(using="nowhere") as metrics:
        assert metrics.values("eventlogs.up") == {attributes(eventlogs__database="nowhere"): 0}
        assert metrics.values("eventlogs.projection.lag") == {}


def test_no_attribute_is_an_id(metrics):
    for n in range(20):
        state = Account.logs.create(Opened(f"{n}"), idempotency_key=f"{n}")
        Account.logs.reduce(state.log_id)

    points = metrics.points
    assert all(len(each) <= 12 for each in points.values())
    assert "account_0" not in repr(points)


def test_an_exemplar_of_a_duration_is_its_span():
    with traced() as spans, metered() as metrics:
        Account.logs.create(Opened("ada"))

    [point] = metrics.points["messaging.client.operation.duration"]
    assert [each.span_id for each in point.exemplars] == [spans.all[0].context.span_id]
    assert [type(each).__name__ for each in installation.observers_of_a_process()] == [
        "Tracing",
        "Metering",
    ]
