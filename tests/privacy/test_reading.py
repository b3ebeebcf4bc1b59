"""Encrypted values are read wherever events are read, and erased ones have their stand-in."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from eventlogs import (
    ANY,
    EventRecord,
    KeyUnavailable,
    Personal,
    RetiredEvent,
    UndecodableEvent,
    event,
    retired_event,
    upcaster,
)
from eventlogs.events import used_keys
from eventlogs.events.codec import EventReader
from eventlogs.events.registry import registry
from eventlogs.privacy import erased_paths, key_store
from eventlogs.stores import store_for
from eventlogs.values import StoredEvent
from tests.people import Address, Admitted, Moved, Noted, Patient
from tests.privacy.conftest import NEW

pytestmark = pytest.mark.django_db
ALICE = Admitted(7, "Alice", phone="555", address=Address("Elm 5", "Ulm"), notes=["a", "b"])


def stored_events(log_id: Any) -> list[StoredEvent]:
    return list(store_for("default").events(log_id, start=0, limit=100))


def test_a_stream_and_a_fold_read_plain_values():
    state = Patient.logs.create(ALICE, *[Admitted(n, f"n{n}") for n in range(5)])

    assert next(iter(Patient.logs.stream(state.log_id))).event == ALICE
    assert Patient.logs.reduce(state.log_id, version=2).aggregate.names == ["Alice", "n0"]
    assert Patient.logs.execute(state.log_id, lambda patient: [Moved(patient.name)]).version == 7


def test_the_keys_that_were_used_are_collected():
    state = Patient.logs.create(ALICE, Admitted(8, "Bob"), Moved("B"))
    eight = key_store().destroy("patient:8")

    with used_keys.Noting() as used:
        list(EventReader().records(stored_events(state.log_id)))

    assert used == {key_store().find("patient:7")}
    assert eight not in used


def test_events_that_are_met_one_by_one_look_a_key_up_once():
    state = Patient.logs.create(*[ALICE] * 5)
    events = iter(stored_events(state.log_id))

    with CaptureQueriesContext(connection) as queries:
        assert len(list(EventReader().records(events))) == 5

    assert len(queries) == 1


def test_the_paths_of_erased_values_are_known():
    state = Patient.logs.create(ALICE, Moved("B"))
    stored, plain = stored_events(state.log_id)
    before = erased_paths(stored)
    key_store().destroy("patient:7")

    record, other = Patient.logs.load(state.log_id)

    assert before == erased_paths(plain) == []
    assert sorted(erased_paths(stored)) == [
        *("$.address.street", "$.name", "$.notes[0]", "$.notes[1]", "$.phone"),
    ]
    assert record.is_erased
    assert not other.is_erased


def test_a_missing_wrapping_key_is_an_error_and_not_erased(settings):
    state = Patient.logs.create(ALICE)
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}

    with pytest.raises(KeyUnavailable):
        Patient.logs.load(state.log_id)
    with pytest.raises(KeyUnavailable):
        Patient.logs.load(state.log_id, decode=False)


def test_another_key_store_is_an_error_and_not_erased():
    state = Patient.logs.create(ALICE)
    QuerySet(apps_model("SubjectKey")).all().delete()

    with pytest.raises(KeyUnavailable, match="no row"):
        Patient.logs.load(state.log_id)


def apps_model(name: str) -> Any:
    return apps.get_model("eventlogs", name)


@pytest.fixture
def other_classes() -> Iterator[None]:
    """Let a test register other classes for the names of events."""
    names = ("patient.admitted",)
    claims = {name: list(registry._by_name.get(name, [])) for name in names}
    upcasters = dict(registry._upcasters)
    yield
    for name in names:
        registry._by_name[name] = claims[name]
    registry._upcasters.clear()
    registry._upcasters.update(upcasters)
    registry._retired.pop("patient.admitted", None)


def read_as(cls: type | None, stored: StoredEvent, **options: Any) -> EventRecord:
    registry._by_name["patient.admitted"] = []
    if cls is not None:
        version = 2 if cls in (Newer, WithNick) else 1
        event("patient.admitted", version=version)(cls)
    [record] = EventReader().records([stored], **options)
    return record


@dataclass(frozen=True)
class Plain:
    """It does not declare what is personal any more."""

    patient: int
    name: str | None


@dataclass(frozen=True)
class Anything:
    patient: int
    name: Any


@dataclass(frozen=True)
class Newer:
    patient: int
    full_name: Annotated[str, Personal(subject="patient", redacted="nobody")]


@dataclass(frozen=True)
class WithNick:
    patient: int
    full_name: Annotated[str, Personal(subject="patient", redacted="nobody")]
    nick: Annotated[str | None, Personal(subject="patient", redacted="nobody")]


@pytest.mark.parametrize("cls", [Plain, Anything])
def test_a_class_that_declares_nothing_any_more_still_reads(other_classes, cls):
    state = Patient.logs.create(Admitted(7, "Alice"))
    [stored] = stored_events(state.log_id)

    assert read_as(cls, stored).event == cls(7, "Alice")
    key_store().destroy("patient:7")
    assert read_as(cls, stored).event == cls(7, None)


def test_a_retired_event_has_plain_values(other_classes):
    state = Patient.logs.create(Admitted(7, "Alice"))
    [stored] = stored_events(state.log_id)
    registry._by_name["patient.admitted"] = []
    retired_event("patient.admitted")

    retired = read_as(None, stored).event

    assert isinstance(retired, RetiredEvent)
    assert retired.data["name"] == "Alice"
    assert read_as(None, stored, decode=False).event["name"] == "Alice"


def test_upcasters_see_the_plain_value_and_then_a_stand_in(other_classes):
    state = Patient.logs.create(Admitted(7, "Alice"))
    [stored] = stored_events(state.log_id)

    @upcaster("patient.admitted", from_version=1)
    def renamed(data: dict[str, Any]) -> dict[str, Any]:
        return {"patient": data["patient"], "full_name": data["name"]}

    assert read_as(Newer, stored).event == Newer(7, "Alice")
    key_store().destroy("patient:7")
    assert read_as(Newer, stored).event == Newer(7, "nobody")


def test_none_stays_none_in_an_event_of_an_older_version(other_classes):
    """Also where the stand-in of the field is a text: the value never was there."""
    state = Patient.logs.create(Admitted(7, "Alice"))
    [stored] = stored_events(state.log_id)

    @upcaster("patient.admitted", from_version=1)
    def renamed(data: dict[str, Any]) -> dict[str, Any]:
        return {"patient": data["patient"], "full_name": data["name"], "nick": None}

    assert read_as(WithNick, stored).event == WithNick(7, "Alice", None)
    key_store().destroy("patient:7")
    assert read_as(WithNick, stored).event == WithNick(7, "nobody", None)


def test_an_upcaster_declares_the_stand_ins_of_its_version(other_classes):
    state = Patient.logs.create(Admitted(7, "Alice", notes=["x"]))
    [stored] = stored_events(state.log_id)

    @upcaster("patient.admitted", from_version=1, redacted={"name": "N.N.", "notes[]": "-"})
    def joined(data: dict[str, Any]) -> dict[str, Any]:
        return {"patient": data["patient"], "full_name": data["name"].upper() + data["notes"][0]}

    assert read_as(Newer, stored).event == Newer(7, "ALICEx")
    key_store().destroy("patient:7")
    assert read_as(Newer, stored).event == Newer(7, "N.N.-")


@pytest.mark.parametrize("text", ["2.abc", "1.", "1.!!!!", "1." + "A" * 20, 5, None, {"a": 1}])
def test_a_text_that_is_no_ciphertext_is_refused(text):
    state = Patient.logs.create(ALICE)
    [stored] = stored_events(state.log_id)
    data = json.loads(stored.data)
    data["name"] = {"$personal": text}
    fields = {name: getattr(stored, name) for name in stored.__struct_fields__}

    with pytest.raises(UndecodableEvent, match=r"at \$\.name, its personal data"):
        list(EventReader().records([StoredEvent(**{**fields, "data": json.dumps(data)})]))


def test_a_note_with_text_like_ours_is_only_text():
    note = {"a": '{"$personal": "1.' + "A" * 60 + '"}'}
    state = Patient.logs.create(Noted(note))

    [record] = Patient.logs.load(state.log_id)

    assert record.event == Noted(note)


@pytest.mark.sqlite  # PostgreSQL refuses to delete events
def test_an_export_has_no_plain_text_and_is_readable_after_an_import(tmp_path):
    state = Patient.logs.create(Admitted(7, "Alice Secret"), idempotency_key="k")
    Patient.logs.append(state.log_id, Admitted(7, "Alice Secret"), expected_version=ANY)
    path = tmp_path / "export.jsonl"
    call_command("eventlogs", "export", str(path), stdout=io.StringIO())
    for model in ("IdempotencyKey", "Event", "EventLog"):
        QuerySet(apps_model(model))._raw_delete("default")

    call_command("eventlogs", "import", str(path), stdout=io.StringIO())

    assert b"Alice" not in path.read_bytes()
    assert [each.event.name for each in Patient.logs.load(state.log_id)] == ["Alice Secret"] * 2


def test_a_command_shows_plain_values(capsys):
    state = Patient.logs.create(Admitted(7, "Alice Secret"))
    out = io.StringIO()

    call_command("eventlogs", "show", str(state.log_id), stdout=out)

    assert "Alice Secret" in out.getvalue()
