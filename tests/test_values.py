"""Records as CloudEvents."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from eventlogs import EventRecord, LogId, RetiredEvent, event
from tests.accounts import Deposited

LOG_ID = LogId.new("account")
MOMENT = datetime(2026, 1, 31, 12, 30, 15, 250_000, tzinfo=UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def told(
    happened: Any = Deposited(5),  # noqa: B008 (it is frozen)
    *,
    name: str = "account.deposited",
    at: datetime = MOMENT,
    source: str | None = None,
    **metadata: Any,
) -> dict[str, Any]:
    record = EventRecord(LOG_ID, 3, 17, name, 1, happened, metadata, "key", at)
    return record.as_cloudevent(source=source)


def test_an_event_as_a_cloudevent():
    assert told() == {
        "specversion": "1.0",
        "id": f"{LOG_ID}:3",
        "source": "/account",
        "type": "account.deposited",
        "subject": str(LOG_ID),
        "time": "2026-01-31T12:30:15.250000Z",
        "datacontenttype": "application/json",
        "sequence": "0000000003",
        "partitionkey": str(LOG_ID),
        "schemaversion": 1,
        "data": {"amount": 5},
    }


def test_the_source_may_be_given():
    assert told(source="https://bank.example/accounts")["source"] == "https://bank.example/accounts"


def test_the_time_is_in_utc():
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=2)))

    assert told(at=elsewhere)["time"] == "2026-01-31T12:30:15.250000Z"


def test_of_the_metadata_only_ids_are_told():
    found = told(user="ada", correlation_id="c-1", causation_id=7, traceparent=TRACE)

    assert (found["correlationid"], found["causationid"]) == ("c-1", "7")
    assert found["traceparent"] == TRACE
    assert "ada" not in str(found)


@pytest.mark.parametrize("value", ["", "two\nlines", None, True, 1.5, ["a"], "\x00"])
def test_what_is_no_id_is_left_out(value):
    assert told(correlation_id=value, traceparent=value) == told()


@pytest.mark.usefixtures("scratch_registry")
def test_an_older_event_is_told_as_one_of_todays_class():
    @event("values.renamed", version=3, aliases=["values.old"])
    @dataclass(frozen=True)
    class Renamed:
        price: Decimal
        parts: tuple[int, ...] = (1, 2)

    found = told(Renamed(Decimal("1.50")), name="values.old")

    assert (found["type"], found["schemaversion"]) == ("values.renamed", 3)
    assert found["data"] == {"price": "1.50", "parts": [1, 2]}


def test_raw_and_retired_events_are_told_as_they_are_stored():
    assert told({"amount": 5}) == told()
    assert told(RetiredEvent("account.deposited", 1, {"amount": 5})) == told()
