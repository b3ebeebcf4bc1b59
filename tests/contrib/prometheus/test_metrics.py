"""Counters and histograms of what a process does, in a real registry."""

from __future__ import annotations

import re

import pytest
from django.db import transaction
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from eventlogs import ConcurrentAppend, IdempotentReplay, LogManager, LogNotFound
from eventlogs.contrib.prometheus.metrics import Metrics
from eventlogs.observers import observers
from eventlogs.refreshers import ImmediateRefresher
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Deposited, Opened
from tests.contrib.installed import environ
from tests.parked import parked_payment
from tests.processes import output_of
from tests.watching import watched

pytestmark = pytest.mark.django_db(transaction=True)

SUMMARY = {"projection": "payment-summary"}


@pytest.fixture
def registry():
    """A registry with metrics that are counted."""
    registry = CollectorRegistry()
    with watched(Metrics(registry)):
        yield registry


@pytest.fixture
def value(registry):
    """A function that returns the value of a metric."""
    return lambda name, **labels: registry.get_sample_value(f"eventlogs_{name}", labels)


def appends(value, outcome):
    return value("appends_total", log_type="account", outcome=outcome, database="default")


def test_appends_are_counted_by_outcome(value):
    state = Account.logs.create(Opened("ada"), Deposited(1), idempotency_key="k")
    Account.logs.append(state, Deposited(1))
    with pytest.raises(ConcurrentAppend):
        Account.logs.append(state, Deposited(1))
    with pytest.raises(IdempotentReplay):
        Account.logs.create(Opened("ada"), Deposited(1), idempotency_key="k")
    with pytest.raises(LogNotFound):
        Account.logs.append(Account.logs.new_id(), Deposited(1), expected_version=1)

    outcomes = ("appended", "conflict", "replayed", "refused", "failed")
    assert [appends(value, each) for each in outcomes] == [2, 1, 1, 1, 0]
    assert value("appended_events_total", log_type="account", database="default") == 3
    assert value("append_seconds_count", log_type="account") == 5


def test_what_is_rolled_back_is_not_counted_as_appended(value):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Account.logs.create(Opened("ada"))
        raise ZeroDivisionError
    with transaction.atomic():
        Account.logs.create(Opened("ada"))
        assert appends(value, "appended") == 0

    assert appends(value, "appended") == 1


def test_reductions_are_counted_by_what_the_cache_had(value):
    accounts = LogManager(Account, refresher=ImmediateRefresher())
    state = accounts.create(Opened("ada"), Deposited(1))
    for _ in range(3):
        accounts.reduce(state.log_id)
    accounts.reduce(state.log_id, fresh=True)
    with pytest.raises(LogNotFound):
        accounts.reduce(accounts.new_id())

    def reduces(outcome, reason=""):
        return value("reduces_total", log_type="account", outcome=outcome, reason=reason)

    assert (reduces("hit"), reduces("miss", "absent")) == (2, 1)
    assert (reduces("uncached"), reduces("not_found")) == (1, 1)
    assert value("reduced_events_total", log_type="account") == 4
    assert value("reduce_seconds_count", log_type="account", outcome="hit") == 2
    assert value("cache_writes_total", log_type="account") == 1


def test_refreshes_are_counted(value):
    accounts = LogManager(Account, refresher=ImmediateRefresher(), refresh_on_append=True)
    accounts.create(Opened("ada"))

    assert value("refreshes_total", log_type="account", outcome="written") == 1
    assert value("refresh_seconds_count", log_type="account") == 1


@pytest.mark.feed
def test_projections_are_counted(value, monkeypatch):
    state = parked_payment(monkeypatch, "no")
    PaymentSummaries.skip(state.log_id)
    PaymentSummaries.catch_up()

    assert value("failed_events_total", **SUMMARY) == 1
    assert value("parked_events_total", **SUMMARY) == 1
    assert value("skipped_events_total", **SUMMARY) == 1
    assert value("applied_events_total", **SUMMARY) >= 1
    assert value("batches_total", outcome="applied", **SUMMARY) >= 1
    assert value("batch_seconds_count", **SUMMARY) >= 1


def test_no_id_and_no_data_is_in_a_label(registry, value):
    with transaction.atomic():
        for n in range(20):
            state = Account.logs.create(Opened(f"owner {n}"), idempotency_key=f"key {n}")
            Account.logs.reduce(state.log_id)

    text = generate_latest(registry).decode()
    series = [line for line in text.splitlines() if line and line[0] != "#"]
    assert not re.search(r"account_[0-9a-z]{26}|owner|key \d", text)
    assert len(series) < 100
    assert appends(value, "appended") == 20


def test_names_follow_the_conventions():
    """https://prometheus.io/docs/practices/naming/, as the parser of Prometheus' format reads."""
    registry = CollectorRegistry()
    Metrics(registry)

    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert all(each.name.startswith("eventlogs_") for each in families)
    assert all(each.documentation for each in families)
    histograms = [each.name for each in families if each.type == "histogram"]
    assert histograms
    assert all(name.endswith("_seconds") for name in histograms)


APPEND = """
import django
django.setup()
from eventlogs.observers import observers
from prometheus_client import REGISTRY, generate_latest
from tests.accounts import Account, Opened
from django.apps import apps
apps.get_app_config("eventlogs_prometheus").ready()  # again: nothing is registered twice
assert len(observers) == 1
Account.logs.create(Opened("ada"))
print(generate_latest(REGISTRY).decode())
"""


def test_the_app_is_all_that_has_to_be_installed():
    printed = output_of(
        "-W", "error", "-c", APPEND, environ=environ("eventlogs.contrib.prometheus")
    )

    assert (
        'eventlogs_appends_total{database="default",log_type="account",outcome="appended"} 1.0'
        in printed
    )
    assert 'eventlogs_up{database="default"} 1.0' in printed


def test_nothing_is_registered_without_the_app():
    assert observers == []
    assert REGISTRY.get_sample_value("eventlogs_up", {"database": "default"}) is None
