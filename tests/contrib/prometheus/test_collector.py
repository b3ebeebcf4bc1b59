"""Gauges of a database are asked for at scrape time, and are absent where they are not known."""

from __future__ import annotations

import time

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from prometheus_client import CollectorRegistry

from eventlogs.contrib.prometheus.collector import HealthCollector
from example_project.payments.events import Payment, Requested
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Opened
from tests.parked import parked_payment

pytestmark = pytest.mark.django_db(transaction=True)

SUMMARY = {"database": "default", "projection": "payment-summary"}


def scraped(**options):
    """Return a registry with one collector, and a function that returns values of it."""
    registry = CollectorRegistry(auto_describe=True)
    collector = HealthCollector(**options)
    registry.register(collector)

    def value(name, **labels):
        return registry.get_sample_value(f"eventlogs_{name}", {"database": "default", **labels})

    return registry, value


def test_to_register_a_collector_asks_nothing():
    with CaptureQueriesContext(connection) as queries:
        registry = CollectorRegistry(auto_describe=True)
        registry.register(HealthCollector())

    assert len(queries) == 0


@pytest.mark.feed
def test_a_database_that_answers_has_figures(monkeypatch):
    parked_payment(monkeypatch, "no")
    _, value = scraped()

    assert value("up") == 1
    assert value("healthy") == 0
    assert value("findings", code="parked", level="act") == 1
    assert value("projection_parked", **SUMMARY) == 1
    assert value("projection_lag_seconds", **SUMMARY) == 0
    assert value("newest_position") == value("settled_position") > 0
    assert time.time() - 60 < value("looked_at_timestamp_seconds") <= time.time() + 1


@pytest.mark.feed
def test_a_lag_is_seen():
    Payment.logs.create(Requested(amount=1))
    _, value = scraped(max_age=0.0)

    assert value("projection_events_behind", **SUMMARY) == 1
    assert value("projection_lag_seconds", **SUMMARY) > 0
    PaymentSummaries.catch_up()
    assert value("projection_events_behind", **SUMMARY) == 0


def test_an_answer_is_kept_for_a_while():
    _, value = scraped(max_age=60.0)
    first = value("looked_at_timestamp_seconds")

    Account.logs.create(Opened("ada"))

    assert value("newest_position") == 0
    assert value("looked_at_timestamp_seconds") == first


def test_a_scrape_leaves_the_caller_and_its_transaction_alone():
    _, value = scraped()
    with CaptureQueriesContext(connection) as queries, transaction.atomic():
        before = len(queries)
        assert value("up") == 1
        assert len(queries) == before
