"""Pages of events, as sequences and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import pytest

from eventlogs import EventPage
from tests.accounts import Deposited, Noted, Opened


@pytest.fixture
def page(accounts):
    state = accounts.create(
        Opened("ada"), Deposited(2), Noted([1.5, None]), idempotency_key="k", metadata={"till": 7}
    )
    return accounts.load(state.log_id)


def test_a_page_is_a_sequence_of_records(page):
    assert isinstance(page, EventPage)
    assert isinstance(page, Sequence)
    assert len(page) == 3
    assert [record.event for record in page] == [Opened("ada"), Deposited(2), Noted([1.5, None])]
    assert page[1].event == page[-2].event == Deposited(2)
    assert [record.index for record in page[1:]] == [1, 2]
    assert [record.index for record in reversed(page)] == [2, 1, 0]
    assert page[0] in page
    assert page.index(page[2]) == 2
    with pytest.raises(IndexError):
        page[3]


def test_a_page_knows_its_log_and_where_the_next_one_starts(page, accounts):
    first = accounts.load(page.log_id, limit=2)

    assert page.next_start is None
    assert first.next_start == 2
    assert first.log_id == page[0].log_id
    assert repr(first) == f"<EventPage of {page.log_id}: 2 events, next_start=2>"


def test_an_empty_page_is_falsy_and_has_no_next_page(accounts, log_id):
    page = accounts.load(log_id)

    assert not page
    assert (len(page), page.next_start, page.log_id) == (0, None, log_id)
    assert json.loads(page.as_json()) == {"log_id": str(log_id), "events": [], "next_start": None}


def test_a_page_as_json_equals_the_stored_data(page, accounts):
    answer = json.loads(accounts.load(page.log_id, limit=2).as_json())

    assert answer["log_id"] == str(page.log_id)
    assert answer["next_start"] == 2
    assert [event["data"] for event in answer["events"]] == [{"owner": "ada"}, {"amount": 2}]
    event, record = answer["events"][1], page[1]
    assert datetime.fromisoformat(event.pop("recorded_at")) == record.recorded_at
    assert event == {
        "log_id": str(page.log_id),
        "index": 1,
        "position": record.position,
        "type": "account.deposited",
        "schema_version": 1,
        "data": {"amount": 2},
        "metadata": {"till": 7},
        "idempotency_key": "k",
    }


def test_a_page_as_json_is_the_same_raw_or_decoded(page, accounts):
    assert accounts.load(page.log_id, decode=False).as_json() == page.as_json()


@pytest.mark.parametrize("number", ["0.1", "123456789012345678901234567890", "1.10", "1e-7"])
def test_json_has_every_digit_that_was_stored(accounts, number):
    state = accounts.create(Noted(json.loads(number)))

    text = accounts.load(state.log_id).as_json()

    assert json.loads(text)["events"][0]["data"] == {"note": json.loads(number)}
