from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from django.core.management import CommandError

from eventlogs import Aggregate, EventRecord, LogId
from eventlogs.models import Event
from eventlogs.stores import AppendRequest, store_for
from example_project.payments.events import Authorized, Payment, Requested
from tests.accounts import Opened, encoded


def test_the_state_is_written_as_json(account, run):
    written = json.loads(run("reduce", account))

    assert written["log_id"] == str(account)
    assert written["version"] == 3
    assert written["position"] == Event.objects.for_log(account).last().position
    assert written["aggregate"] == {"owner": "Ada", "balance": 70, "notes": 0}


def test_the_state_as_of_a_version_and_a_moment(account, run):
    moment = Event.objects.for_log(account).get(index=1).recorded_at.isoformat()

    assert json.loads(run("reduce", account, "--version", 1))["aggregate"]["balance"] == 0
    assert json.loads(run("reduce", account, "--at", moment))["aggregate"]["balance"] == 100


def test_a_version_and_a_moment_exclude_each_other(account, run):
    with pytest.raises(CommandError, match="not allowed with"):
        run("reduce", account, "--version", 1, "--at", "2026-01-01")


def test_a_version_that_is_not_reached_is_a_mistake(account, run):
    with pytest.raises(CommandError, match="has not reached version 9"):
        run("reduce", account, "--version", 9)


def test_a_log_type_without_an_aggregate_is_a_mistake(run, db):
    log_id = LogId.new("stranger")
    store_for("default").append(AppendRequest(log_id, encoded(1), 0, None, "{}"))

    with pytest.raises(CommandError, match="No aggregate folds stranger logs"):
        run("reduce", log_id)


def test_an_aggregate_is_chosen_by_its_name(account, run):
    assert json.loads(run("reduce", account, "--aggregate", "Account"))["version"] == 3
    assert json.loads(run("reduce", account, "--aggregate", "tests.accounts.Account"))
    with pytest.raises(CommandError, match=r"Aggregates: tests\.accounts\.Account"):
        run("reduce", account, "--aggregate", "Ledger")


def test_properties_are_listed_apart_from_the_fields(db, run):
    state = Payment.logs.create(Requested(amount=100))
    log_id = Payment.logs.append(state, Authorized(amount=80, approval_code="x")).log_id

    written = json.loads(run("reduce", log_id))

    assert "amount_outstanding" not in written["aggregate"]
    assert written["computed"]["amount_outstanding"] == 80
    assert json.loads(run("reduce", log_id, "--version", 1))["computed"]["amount_outstanding"] == 0


def test_a_value_without_a_json_form_is_not_shown_as_its_repr(db, run, scratch_registry):
    class Rate:
        def __init__(self) -> None:
            self.percent = 5

    @dataclass
    class Rated(Aggregate, log_type="account", events=[Opened]):
        rate: Rate = field(default_factory=Rate)

        def apply(self, record: EventRecord) -> None: ...

        @property
        def doubled(self) -> Rate:
            return self.rate

    log_id = Rated.logs.create(Opened("Ada")).log_id

    written = json.loads(run("reduce", log_id, "--aggregate", Rated.__qualname__))

    assert written["aggregate"] == {"rate": {"percent": 5}}
    assert written["computed"] == {"doubled": {"percent": 5}}
