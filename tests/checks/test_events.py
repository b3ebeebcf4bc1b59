"""The system checks of event classes, each by its id."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from typing import Annotated

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from eventlogs import Unique, event, upcaster
from eventlogs.checks.events import check_events
from tests.checks.messages import found
from tests.members import EMAIL


@pytest.mark.usefixtures("scratch_registry")
def test_e006_two_classes_claim_one_name():
    event("account.deposited")(make_dataclass("Claimant", [("amount", int)]))

    [message] = check_events()

    assert message.id == "eventlogs.E006"
    assert "tests.accounts.Deposited" in message.msg
    assert message.hint == "Rename one of them."


@pytest.mark.usefixtures("scratch_registry")
def test_e006_an_upcaster_is_missing():
    event("tests.reshaped", version=2)(make_dataclass("Reshaped", [("amount", int)]))

    assert found(check_events) == ["eventlogs.E006"]

    upcaster("tests.reshaped", from_version=1)(lambda data: data)

    assert found(check_events) == []


@pytest.mark.usefixtures("scratch_registry")
def test_e006_an_upcaster_is_surplus():
    upcaster("account.deposited", from_version=1)(lambda data: data)

    assert found(check_events) == ["eventlogs.E006"]


@pytest.mark.usefixtures("scratch_registry")
def test_e007_fields_cannot_be_encoded():
    @event("tests.ambiguous")
    @dataclass(frozen=True)
    class Ambiguous:
        money: Decimal | str

    [message] = check_events()

    assert message.id == "eventlogs.E007"
    assert "Ambiguous" in message.msg
    assert message.hint.startswith("Use types that JSON can tell apart")


@pytest.mark.django_db
@pytest.mark.usefixtures("scratch_registry")
def test_manage_py_check_stops_at_an_error():
    event("tests.reshaped", version=2)(make_dataclass("Reshaped", [("amount", int)]))

    with pytest.raises(SystemCheckError, match=r"eventlogs\.E006"):
        call_command("check")


@pytest.mark.usefixtures("scratch_registry")
def test_e048_one_scope_is_normalized_in_two_ways():
    unique = Unique(EMAIL.scope, normalize=str.lower)
    event("tests.renamed")(make_dataclass("Renamed", [("email", Annotated[str, unique])]))

    [message] = check_events()

    assert message.id == "eventlogs.E048"
    assert "'member.email' is declared with two different normalize functions" in message.msg
    assert "EMAIL = Unique('member.email', normalize=…)" in str(message.hint)
