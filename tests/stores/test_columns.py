"""The rows of events, as stored events."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from eventlogs import LogId
from eventlogs.stores import columns
from eventlogs.stores.columns import events_of_bytes, events_of_rows

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(log_type, log, index):
    return log_type, log, index, 7 + index, "account.opened", 1, '{"a":1}', "{}", "key", NOW


def test_an_event_has_the_same_id_whether_its_log_is_read_as_a_uuid_or_as_bytes():
    ids = [LogId.new("account"), LogId.new("parcel")]
    places = [(each, index) for index in range(3) for each in ids]

    of_uuids = events_of_rows(row(each.log_type, each.uuid, index) for each, index in places)
    of_bytes = events_of_bytes(row(each.log_type, each.uuid.bytes, index) for each, index in places)

    assert of_bytes == of_uuids
    assert [(each.log_id, each.index) for each in of_bytes] == places
    assert of_bytes[0].as_json() == of_uuids[0].as_json()


def test_rows_that_contradict_each_other_keep_the_types_that_they_have():
    raw = LogId.new("account").uuid.bytes

    types = ["account", "parcel", "account"]
    found = events_of_bytes(row(log_type, raw, 0) for log_type in types)

    assert [each.log_type for each in found] == types


def test_a_limited_number_of_ids_is_kept(monkeypatch):
    monkeypatch.setattr(columns, "MAX_LOG_IDS", 3)
    columns._log_ids.clear()
    ids = [LogId.new("account") for _ in range(8)]

    found = events_of_bytes(row("account", each.uuid.bytes, 0) for each in ids)

    assert [each.log_id for each in found] == ids
    assert len(columns._log_ids) <= 3


@pytest.fixture(autouse=True)
def _no_ids_of_other_tests():
    yield
    columns._log_ids.clear()
