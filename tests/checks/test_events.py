"""The system checks of event classes, each by its id."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from typing import Annotated

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from eventlogs import Unique, event, retired_event, upcaster
from eventlogs.checks.events import check_events, check_stored_types
from eventlogs.models import StoredType
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


# Types that are stored


def stored(*types: tuple[str, int], log_type: str = "account") -> None:
    for name, version in types:
        StoredType.objects.create(log_type=log_type, type=name, schema_version=version)


@pytest.mark.django_db
@pytest.mark.usefixtures("scratch_registry")
def test_e050_a_stored_type_has_no_class_here():
    stored(("account.opened", 1), ("account.forgotten", 1))

    [message] = check_stored_types(databases=["default"])

    assert message.id == "eventlogs.E050"
    assert "'account.forgotten', version 1: no class is registered for it." in message.msg
    assert "retired_event('account.forgotten')" in message.hint

    retired_event("account.forgotten")
    assert found(check_stored_types, databases=["default"]) == []


@pytest.mark.django_db
@pytest.mark.usefixtures("scratch_registry")
def test_e050_a_stored_version_cannot_be_read_here():
    event("tests.reshaped", version=3)(make_dataclass("Reshaped", [("amount", int)]))
    stored(("tests.reshaped", 4), ("tests.reshaped", 1), ("tests.reshaped", 3))

    messages = [each.msg for each in check_stored_types(databases=["default"])]

    assert len(messages) == 2
    assert "version 1: no upcaster takes it from version 1 to 2." in messages[0]
    assert "version 4: its class is of version 3." in messages[1]


@pytest.mark.django_db
def test_e050_other_projects_logs_are_not_ours():
    stored(("x.y", 1), log_type="somebody_elses")

    assert found(check_stored_types, databases=["default"]) == []
    assert found(check_stored_types, databases=None) == []


@pytest.mark.django_db
def test_e050_is_part_of_a_deployment_and_takes_one_statement(django_assert_max_num_queries):
    stored(("account.forgotten", 1))

    with pytest.raises(SystemCheckError, match=r"eventlogs\.E050"):
        call_command("check", databases=["default"], deploy=True, tags=["database"])
    call_command("check", databases=["default"], tags=["database"])
    with django_assert_max_num_queries(2):
        found(check_stored_types, databases=["default"])
