"""The output of commands: JSON for programs, and times with a time zone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from django.utils import timezone

from eventlogs import LogId
from eventlogs.management.json_values import plain
from eventlogs.models import Event
from example_project.payments.events import Authorized, Captured, Payment, Requested

WITH_ZONE = re.compile(r"\d\d:\d\d:\d\d(?:\.\d+)?(?: UTC\+05:30)?")


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Lag:
    age: timedelta | None
    at: datetime


MOMENT = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
LOG = LogId.parse("account_01h455vb4pex5vsknk084sn02q")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (timedelta(0), 0.0),
        (timedelta(minutes=1, milliseconds=250), 60.25),
        (MOMENT, "2026-01-02T03:04:05.000006Z"),
        (date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=7), str(UUID(int=7))),
        (LOG, str(LOG)),
        (Colour.RED, "red"),
        ({"b", "a"}, ["a", "b"]),
        (Lag(timedelta(seconds=3), MOMENT), {"age": 3.0, "at": "2026-01-02T03:04:05.000006Z"}),
    ],
)
def test_json_has_values_that_a_program_can_read(value, written):
    assert json.loads(json.dumps({"value": value}, default=plain)) == {"value": written}


@pytest.mark.parametrize("value", [object(), 1j, Lag, len])
def test_json_never_has_the_repr_of_a_value(value):
    with pytest.raises(TypeError, match="JSON of a command cannot hold a"):
        json.dumps({"value": value}, default=plain)


@pytest.mark.feed
def test_the_lag_of_a_projection_is_a_number_of_seconds(run_json, db):
    state = Payment.logs.create(Requested(amount=10))
    Payment.logs.append(state, Authorized(amount=10, approval_code=None), Captured(amount=4))

    told = run_json("stats")["projections"]

    assert told
    for each in told:
        assert each["age"] is None or isinstance(each["age"], float | int)
    assert "timedelta" not in json.dumps(told)


@pytest.fixture
def kolkata(settings):
    settings.TIME_ZONE = "Asia/Kolkata"
    with timezone.override("Asia/Kolkata"):
        yield


@pytest.mark.parametrize(
    "arguments", [["show", "LOG"], ["tail"], ["prune", "--older-than", "1d", "--dry-run"]]
)
def test_each_time_shows_its_time_zone(kolkata, account, run, arguments):
    written = run(*(account if each == "LOG" else each for each in arguments))

    found = WITH_ZONE.findall(written)
    assert found
    assert all(each.endswith(" UTC+05:30") for each in found)


def test_a_time_is_that_of_the_projects_zone(kolkata, account, run):
    recorded_at = Event.objects.for_log(account).get(index=2).recorded_at
    local = (recorded_at + timedelta(hours=5, minutes=30)).strftime("%Y-%m-%d %H:%M:%S")

    assert local in run("show", account)
    assert f"{local} UTC+05:30" in run("tail")


@pytest.mark.feed
def test_lines_about_applied_events_have_a_time_with_its_zone(kolkata, transactional_db, run):
    Payment.logs.create(Requested(amount=10))

    written = run("project", "payment-summary", "--once")

    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\+05:30  payment-summary: 1 ", written)


def test_json_has_times_in_utc(kolkata, account, run_json):
    recorded_at = Event.objects.for_log(account).get(index=2).recorded_at

    written = run_json("show", account)["events"][2]["recorded_at"]

    assert written == f"{recorded_at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
