"""Personal data in the admin: shown to those who see payloads, erased ones as a badge."""

from __future__ import annotations

import html

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from eventlogs import LogManager
from eventlogs.admin.personal_values import (
    ENCRYPTED,
    ERASED,
    UNREADABLE,
    Payload,
    of_row,
    opened,
    without_hidden,
)
from eventlogs.models import Event, SubjectKey
from eventlogs.privacy import key_store, memory
from tests.admin.test_logs import of, reader, viewer
from tests.guests import SETTINGS, Guest, Joined, Moved

__all__ = ["reader", "viewer"]

pytestmark = pytest.mark.django_db
EVENTS = reverse("admin:eventlogs_event_changelist")
LIST = reverse("admin:eventlogs_eventlog_changelist")
ADA, NAME, STREET, IP = "member:1", "Countess Lovelace", "St. James Square", "192.0.2.77"
CHARLES, FRIEND = "member:2", "Charles Babbage"
BADGE = '<span class="el-badge el-quiet">erased</span>'
PAGES = ("events", "list", "log", "older", "tree")


@pytest.fixture(autouse=True)
def _settings(settings):
    settings.EVENTLOGS = {**SETTINGS, "CACHE": None}
    memory.clear()
    yield
    memory.clear()


@pytest.fixture
def state():
    return LogManager(Guest).create(
        Joined(ADA, NAME, CHARLES, FRIEND),
        Moved(ADA, [STREET]),
        metadata={"ip": IP, "person": ADA, "user": "1"},
    )


def pages(client, state):
    addresses = {
        "events": EVENTS,
        "list": LIST,
        "log": of(state.log_id),
        "older": of(state.log_id, "?event=0"),
        "tree": reverse("admin:eventlogs_event_tree", args=[f"{state.log_id}:0"]),
        "export": reverse("admin:eventlogs_eventlog_export", args=[state.log_id]),
    }
    found = {}
    for name, address in addresses.items():
        response = client.get(address)
        content = response.getvalue() if response.streaming else response.content
        found[name] = (response.status_code, html.unescape(content.decode()))
    return found


def test_who_sees_payloads_sees_personal_values_and_no_ciphertext(reader, state):
    found = pages(reader, state)

    assert {status for status, _ in found.values()} == {200}
    for name in ("events", "log"):
        text = found[name][1]
        assert NAME in text
        assert IP in text
        assert FRIEND in text
    for name in PAGES:
        assert "$personal" not in found[name][1]
    # An export has what is stored.
    assert "$personal" in found["export"][1]
    assert NAME not in found["export"][1]


def test_erased_values_are_a_badge_and_no_page_is_an_error(reader, state):
    key_store().destroy(ADA)

    found = pages(reader, state)

    assert {status for status, _ in found.values()} == {200}
    for secret in (NAME, STREET, IP, "$personal"):
        assert not [name for name in PAGES if secret in found[name][1]]
    for name in ("events", "log"):
        assert found[name][1].count(BADGE) >= 3  # the name, the street, the address
        assert FRIEND in found[name][1]
    # State and changes are those of today's code, with the declared stand-ins.
    assert "erased" in found["older"][1]
    assert NAME not in found["export"][1]


def test_who_does_not_see_payloads_sees_neither_values_nor_whether_they_are_erased(viewer, state):
    before = pages(viewer, state)
    key_store().destroy(ADA)
    after = pages(viewer, state)

    assert before["export"][0] == before["tree"][0] == 403
    for name in ("events", "list", "log", "older"):
        assert before[name][0] == 200
        for secret in (NAME, STREET, IP, FRIEND, "$personal"):
            assert secret not in before[name][1]
        assert BADGE not in after[name][1]
        assert ">encrypted<" in after["log"][1]


def test_values_of_a_key_that_cannot_be_had_are_unreadable_and_the_page_is_shown(
    reader, state, settings
):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "ENCRYPTION_KEYS": []}

    found = pages(reader, state)

    assert {status for status, _ in found.values()} == {200}
    assert ">unreadable<" in found["log"][1]
    assert BADGE not in found["log"][1]
    assert "$personal" not in found["log"][1]


def test_one_key_that_cannot_be_had_hides_no_other_value(state):
    key_store().destroy(ADA)
    lost = SubjectKey.objects.filter(subject=CHARLES)
    rows = Event.objects.filter(log_id=state.log_id.uuid).order_by("index")
    other = LogManager(Guest).create(Joined("member:3", "Mary")).log_id
    payloads = [of_row(each) for each in (*rows, Event.objects.get(log_id=other.uuid))]
    lost.update(wrapped_by="a key that is not in the settings")

    joined, moved, mary = opened(payloads, sees=True)

    assert (joined.data["name"], joined.data["friend_name"]) == (ERASED, UNREADABLE)
    assert moved.data["streets"] == [ERASED]
    assert mary.data["name"] == "Mary"


def test_a_value_that_was_moved_to_another_place_is_unreadable(reader, state):
    row = Event.objects.get(log_id=state.log_id.uuid, index=0)
    moved = Payload(state.log_id, 1, row.data, row.metadata)

    [found] = opened([moved], sees=True)

    assert found.data["name"] is UNREADABLE
    assert without_hidden(found.data)["name"] is None
    [found] = opened([moved], sees=False)
    assert found.data["name"] is ENCRYPTED


def test_the_keys_of_a_page_are_looked_up_once(reader, state):
    guests = LogManager(Guest)
    for _ in range(10):
        state = guests.append(state, Moved(ADA, [STREET]))

    with CaptureQueriesContext(connection) as captured:
        reader.get(of(state.log_id))

    looks = [each for each in captured.captured_queries if "eventlogs_subjectkey" in each["sql"]]
    assert len(looks) <= 4


def test_payloads_without_personal_data_are_unchanged():
    payload = Payload(LogManager(Guest).new_id(), 0, {"name": {"$personal": 1}}, {})

    assert opened([payload], sees=True) == [payload]
    assert without_hidden([1, {"a": ERASED}]) == [1, {"a": None}]
