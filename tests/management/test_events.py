"""``manage.py eventlogs events``."""

from __future__ import annotations

import json

import pytest
from django.core.management import CommandError

from tests.accounts import Account, Deposited, Opened

pytestmark = pytest.mark.django_db


def test_event_types_are_listed(run):
    Account.logs.create(Opened("ada"), Deposited(5))

    said = run("events")

    assert "account.deposited" in said
    assert "Events are counted among all 2 events." in said


def test_one_type_is_described(run):
    said = run("events", "account.deposited")

    assert "amount" in said
    assert "tests.accounts.Deposited" in said
    assert "account.opened" not in said
    with pytest.raises(CommandError, match=r"no event type 'x'"):
        run("events", "x")


def test_documents_are_json(run, run_json):
    assert "account.opened" in json.loads(run("events", "--schema"))["$defs"]
    assert json.loads(run("events", "--asyncapi"))["asyncapi"] == "3.0.0"
    found = run_json("events", "--exact", "account.opened")
    assert [each["name"] for each in found["events"]] == ["account.opened"]
    assert found["is_exact"]
