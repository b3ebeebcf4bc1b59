"""The search for logs by an id in any notation, a part of an id, or an idempotency key."""

from __future__ import annotations

from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from django.urls import reverse
from uuid_utils.compat import uuid7

from eventlogs import LogId
from eventlogs.admin import log_search as search_of_logs
from eventlogs.admin import logs as page_of_logs
from eventlogs.admin.keyset_paging import ByCreation
from eventlogs.admin.log_search import event_in, search, search_ids
from eventlogs.models import EventLog
from tests.accounts import Account, Deposited, Opened, Parcel, Sent
from tests.admin import test_logs
from tests.admin.test_logs import LIST, listed, of, shown

pytestmark = pytest.mark.django_db
reader = test_logs.reader  # a fixture


def found(text: str) -> set[str]:
    return {str(each.log_id) for each in search(text, "default")}


@pytest.fixture
def log_id() -> LogId:
    """A log of two events, among others."""
    Parcel.logs.create(Sent("here"))
    Account.logs.create(Opened("bob"), log_id=LogId("account", UUID(int=uuid7().int - (1 << 120))))
    return Account.logs.create(Opened("ada"), Deposited(5)).log_id


def test_an_id_is_found_in_any_notation(log_id):
    text, bare, uuid = str(log_id), str(log_id)[8:], log_id.uuid
    address = f"https://a.example{of(log_id)}?event=1#event-1"

    for asked in (
        *(text, text.upper(), bare, bare.upper(), f" '{text}'\n", f"{text}:1", address),
        *(str(uuid), uuid.hex, uuid.urn, f"{{{uuid}}}", str(uuid).upper(), f"the log {text}."),
        *(text[:-1], text[:-3].upper(), bare[:-1], bare[:24].upper(), f"{text[:32]}…"),
        *(bare[-6:], bare[1:].upper(), f"…{bare[-9:]}", str(uuid)[:-1], str(uuid)[-12:]),
        *(str(uuid)[1:], uuid.hex[:-1]),
    ):
        assert found(asked) == {text}, asked


def test_a_log_of_another_type_is_not_found(log_id):
    bare = str(log_id)[8:]

    for asked in (f"parcel_{bare}", f"parcel_{bare[:-1]}", f"parcel_{bare[-8:]}"):
        assert found(asked) == set(), asked


def test_the_beginning_of_an_id_finds_all_its_logs_page_by_page(reader, monkeypatch):
    monkeypatch.setattr(page_of_logs, "LOGS", 2)
    monkeypatch.setattr(search_of_logs, "FOUND", 2)
    moment = 0x0190_0000_0000 << 80 | 7 << 76 | 2 << 62
    ids = [LogId("account", UUID(int=moment + number)) for number in range(5)]
    for each in ids:
        Account.logs.create(Opened("ada"), log_id=each)
    newest = [str(each) for each in ids][::-1]
    before = EventLog.objects.get(pk=ids[3].uuid)

    asked = f"?q={str(ids[0])[:18]}"
    assert listed(reader, asked) == newest[:2]
    assert listed(reader, f"{asked}&before={ByCreation().text(before)}") == newest[2:4]
    assert listed(reader, f"{asked}&end=1") == newest[3:]


def test_the_beginning_of_the_id_of_a_key_finds_its_log(log_id):
    # A UUID of version 5, which MariaDB sorts by its last digits.
    other = Account.logs.create(Opened("eve"), log_id=LogId.from_key("account", 7)).log_id
    text, bare, uuid = str(other), str(other)[8:], other.uuid

    for asked in (text[:14], text[:20], text[:30], bare[:8], bare[:24], uuid.hex[:9]):
        assert found(asked) == {str(other)}, asked
    for asked in (str(uuid)[:8], str(uuid)[:13], str(uuid)[:23], str(uuid)[:-1]):
        assert found(asked) == {str(other)}, asked


def test_a_text_that_could_begin_the_id_of_a_key_finds_no_others(log_id):
    # As the beginning of an id, it is a range between two UUIDs that MariaDB sorts differently.
    assert found("015ce5498125") == set()


def test_the_beginning_of_an_id_that_is_also_a_key_finds_both_logs():
    first = Account.logs.create(Opened("ada")).log_id
    second = Account.logs.create(Opened("bob"), idempotency_key=str(first)[8:20]).log_id

    # Both were made in the same moment, or one after another.
    assert {str(first), str(second)} >= found(str(first)[8:20]) >= {str(second)}
    assert str(first) in found(str(first)[8:20])


@pytest.mark.parametrize("kind", ["uuid", "id", "end"])
def test_a_key_that_looks_like_an_id_is_found_as_a_key(log_id, kind):
    key = {"uuid": str(uuid4()), "id": f"{LogId.new('order')}", "end": "abcdefgh"}[kind]
    other = Account.logs.create(Opened("eve"), idempotency_key=key).log_id

    assert found(key) == {str(other)}
    assert list(search_ids(key, "default")) == []


def test_a_key_that_is_another_logs_id_finds_both_and_each_has_its_page(reader, log_id):
    other = Parcel.logs.create(Sent("there"), idempotency_key=str(log_id)).log_id

    assert found(str(log_id)) == {str(log_id), str(other)}
    assert "owner" in shown(reader, of(log_id))


def test_the_id_of_an_event_leads_to_the_event(reader, log_id):
    for asked in (f"{log_id}:1", f"{str(log_id).upper()}:1", f"x{of(log_id)}?event=1#event-1"):
        answer = reader.get(f"{LIST}?q={quote(asked)}")
        assert answer["Location"] == f"{of(log_id)}?event=1#event-1", asked
    for asked in (f"{log_id}:2", f"{log_id}:", str(log_id)):  # there is none, or none is named
        assert listed(reader, f"?q={quote(asked)}") == [str(log_id)], asked
    assert event_in(f"{log_id}:0 {log_id}:1", "default") is None  # there are two


def test_the_id_of_an_event_beside_that_of_another_log_finds_both_logs(reader, log_id):
    other = Parcel.logs.create(Sent("there")).log_id

    found = listed(reader, f"?q={quote(f'{log_id}:1 and {other}')}")

    assert sorted(found) == sorted([str(log_id), str(other)])
    assert event_in(f"{log_id}:1 ({log_id})", "default") == (log_id, 1)


def test_an_empty_result_says_what_was_searched(reader, log_id):
    assert "No log has this id" in shown(reader, f"{LIST}?q=zzzz")
    assert "at least 6 characters" in shown(reader, f"{LIST}?q=zzzz")
    page = shown(reader, f"{LIST}?q={log_id}&type=parcel&from=2026-01-01")
    assert "No log with this id" in page
    assert "matches these filters" in page
    assert "No log matches these filters." in shown(reader, f"{LIST}?type=nope")
    assert "There are no older logs." in shown(reader, f"{LIST}?before=0.{UUID(int=0)}")


def test_an_empty_database_shows_that_there_are_no_logs(reader):
    assert "There are no logs yet." in shown(reader, LIST)


def test_the_page_of_a_log_accepts_its_id_in_any_notation(reader, log_id):
    for asked in (str(log_id).upper(), str(log_id)[8:], str(log_id.uuid), log_id.uuid.hex):
        address = reverse("admin:eventlogs_eventlog_change", args=[asked])
        assert f"<code>{log_id}</code>" in reader.get(address).content.decode(), asked
    for asked in (f"parcel_{str(log_id)[8:]}", str(log_id)[-8:], "x", str(uuid4())):
        assert (
            reader.get(reverse("admin:eventlogs_eventlog_change", args=[asked])).status_code == 404
        )


def test_a_type_without_a_class_stays_selected(reader, log_id):
    page = shown(reader, f"{LIST}?type=old_type")

    assert '<option value="old_type" selected>' in page
    assert listed(reader, "?type=old_type") == []
