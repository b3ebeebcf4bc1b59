"""
A retry of the same request reaches another release than the one that stored the original.

Each release is a process with a version of its own of one module; they share the database.
"""

from __future__ import annotations

import os

import pytest
from django.db import connection

from eventlogs.models import Event
from tests.processes import ROOT, output_of

AGGREGATE = """
@dataclass
class Booking(Aggregate, log_type="booking", events=[Booked]):
    seats: int = 0

    def apply(self, record):
        self.seats += 1
"""
HEAD = """
from dataclasses import dataclass
from eventlogs import Aggregate, event, upcaster

"""
RELEASES = {
    "first": '''
@event("booking.booked")
@dataclass(frozen=True)
class Booked:
    seat: int
''',
    "a field with a default": '''
@event("booking.booked")
@dataclass(frozen=True)
class Booked:
    seat: int
    window: bool = False
''',
    "a new name": '''
@event("booking.reserved", aliases=["booking.booked"])
@dataclass(frozen=True)
class Booked:
    seat: int
''',
    "a new version": '''
@event("booking.booked", version=2)
@dataclass(frozen=True)
class Booked:
    place: str

    def __init__(self, seat=0, place=None):
        object.__setattr__(self, "place", place or f"seat {seat}")

@upcaster("booking.booked", from_version=1)
def place_of_seat(data):
    return {"place": f"seat {data['seat']}"}
''',
}  # fmt: skip
RETRY = """
import sys
from asgiref.sync import async_to_sync
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
import django
django.setup()
from django.db import transaction
from eventlogs import EventLogError
from bookings import Booked, Booking

logs, log_id = Booking.logs, sys.argv[2]


def call(name, work):
    try:
        state, was_new = work()
    except EventLogError as error:
        print(f"{name}: {type(error).__name__}")
    else:
        print(f"{name}: {state.log_id} {state.version} {state.position} {was_new}")


def in_a_transaction():
    with transaction.atomic():
        try:
            return logs.get_or_append(log_id, Booked(2), expected_version=1, idempotency_key="b")
        finally:
            assert logs.version(log_id) == 2, "the transaction is not usable"


call("create", lambda: logs.get_or_create(Booked(1), idempotency_key="a"))
call("async", lambda: async_to_sync(logs.aget_or_create)(Booked(1), idempotency_key="a"))
if log_id == "none":
    log_id = str(logs.get_or_create(Booked(1), idempotency_key="a")[0].log_id)
    call("append", lambda: logs.get_or_append(
        log_id, Booked(2), expected_version=1, idempotency_key="b"))
else:
    call("append", in_a_transaction)
call("execute", lambda: (logs.execute(log_id, lambda _: [], idempotency_key="b"), False))
call("another", lambda: logs.get_or_create(Booked(9), idempotency_key="a"))
"""


@pytest.fixture
def answers(transactional_db, tmp_path):
    """A function that lets a release make the same requests, and returns its answers."""

    def run(release: str, log_id: str = "none") -> dict[str, str]:
        folder = tmp_path / release
        folder.mkdir(exist_ok=True)
        (folder / "bookings.py").write_text(HEAD + RELEASES[release] + AGGREGATE)
        printed = output_of(
            *("-c", RETRY, str(connection.settings_dict["NAME"]), log_id),
            environ={"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        )
        return dict(line.split(": ", 1) for line in printed.splitlines())

    return run


def test_a_retry_returns_the_original_state_in_every_release(answers):
    first = answers("first")
    log_id = first["create"].split()[0]
    assert first["create"].endswith(" True")
    assert first["append"].endswith(" True")
    positions = list(Event.objects.order_by("index").values_list("position", flat=True))
    assert len(positions) == 2

    for release in RELEASES:
        retried = answers(release, log_id)

        assert retried == {
            "create": f"{log_id} 1 {positions[0]} False",
            "async": f"{log_id} 1 {positions[0]} False",
            "append": f"{log_id} 2 {positions[1]} False",
            "execute": f"{log_id} 2 {positions[1]} False",
            "another": "IdempotencyKeyReused",
        }, release
    assert Event.objects.count() == 2


@pytest.mark.parametrize("newer", ["a field with a default", "a new name", "a new version"])
def test_a_retry_that_reaches_an_older_release_is_never_done_twice(answers, newer):
    """A retry is a replay if the old code can read the events of the new one; else an error."""
    stored = answers(newer)
    log_id = stored["create"].split()[0]
    assert Event.objects.count() == 2

    retried = answers("first", log_id)

    if newer == "a field with a default":
        assert retried["create"] == stored["create"].replace("True", "False")
        assert retried["another"] == "IdempotencyKeyReused"
    else:
        assert retried["create"] == retried["another"] == "IdempotencyKeyUndecided"
        assert retried["append"] == "IdempotencyKeyUndecided"
    assert retried["execute"] == stored["execute"]
    assert Event.objects.count() == 2
