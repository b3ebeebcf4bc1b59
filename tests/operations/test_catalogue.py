"""The catalogue of event types."""

from __future__ import annotations

import json

import pytest
from django.urls import reverse

from eventlogs import retired_event
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import EventLog, StoredType
from eventlogs.operations import catalogue as module
from eventlogs.operations.catalogue import (
    Entry,
    Field,
    asyncapi_document,
    catalogue,
    json_schemas,
)
from tests.accounts import Account, Deposited, Opened

pytestmark = pytest.mark.django_db


def entry(name: str, **options) -> Entry:
    [found] = [each for each in catalogue(**options).entries if each.name == name]
    return found


def append_unknown(version: int = 3) -> None:
    state = Account.logs.create(Opened("ada"))
    EventLog.objects.append(
        state.log_id, [EncodedEvent("account.forgotten", version, "{}")], expected_version=1
    )


def test_an_event_type_has_its_fields_its_handlers_and_its_number():
    Account.logs.create(Opened("ada"), Deposited(5), Deposited(6))

    found = entry("account.deposited")

    assert found.cls == "tests.accounts.Deposited"
    assert (found.version, found.stored, found.count) == (1, (1,), 2)
    assert found.fields == (Field("amount", "integer", True),)
    # Other tests may have declared further aggregates with this event.
    assert "account" in found.log_types
    assert "tests.accounts.Account" in found.aggregates


def test_the_handlers_of_the_example_are_named():
    found = entry("payment.captured")

    assert "payment-summary" in found.projections
    assert found.aggregates == ("example_project.payments.events.Payment",)


def test_a_stored_type_without_a_class_is_listed(scratch_registry):
    append_unknown()

    found = entry("account.forgotten")
    assert (found.cls, found.stored, found.count, found.is_retired) == ("", (3,), 1, False)

    retired_event("account.forgotten")
    assert entry("account.forgotten").is_retired


def test_the_newest_events_are_counted_unless_all_are_asked_for(monkeypatch):
    Account.logs.create(Opened("ada"), *[Deposited(1)] * 9)
    monkeypatch.setattr(module, "NEWEST", 4)

    found = catalogue()
    assert (found.counted, found.is_exact) == (4, False)
    assert entry("account.opened").count == 0
    assert entry("account.opened", exact=True).count == 1


def test_exact_puts_the_table_of_stored_types_right():
    append_unknown()
    StoredType.objects.create(log_type="account", type="account.erased", schema_version=1)
    StoredType.objects.create(log_type="account", type="account.noted", schema_version=1)

    catalogue(exact=True)

    assert set(StoredType.objects.values_list("type", "schema_version")) == {
        ("account.opened", 1),
        ("account.forgotten", 3),
        ("account.noted", 1),  # its class is here, and may be appended meanwhile
    }


def test_schemas_and_asyncapi_are_whole_documents():
    schemas = json_schemas()
    assert schemas["$defs"]["account.deposited"]["properties"] == {"amount": {"type": "integer"}}
    assert schemas["$defs"]["account.deposited"]["x-version"] == 1

    document = asyncapi_document()
    message = document["components"]["messages"]["account.deposited"]
    assert message["payload"]["schema"]["required"] == ["amount"]
    assert document["channels"]["account"]["messages"]["account.deposited"] == {
        "$ref": "#/components/messages/account.deposited"
    }
    json.dumps([schemas, document])


def test_the_admin_has_a_page_of_it(client, admin_user):
    append_unknown()
    client.force_login(admin_user)

    page = client.get(reverse("admin:eventlogs_event_types")).content.decode()

    assert "account.forgotten" in page
    assert "no class" in page
    assert "tests.accounts.Account" in page
    listed = client.get(reverse("admin:eventlogs_event_changelist")).content.decode()
    assert reverse("admin:eventlogs_event_types") in listed


def test_the_page_is_for_those_who_may_see_events(client, django_user_model):
    client.force_login(django_user_model.objects.create_user("eve", is_staff=True))

    assert client.get(reverse("admin:eventlogs_event_types")).status_code == 403
