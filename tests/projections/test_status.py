"""The status of all projections, by a few bounded queries."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from eventlogs import LogId
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.sources import feed_source_for, partition_of
from eventlogs.models import Checkpoint, Event, ParkedEvent, ProjectionState
from eventlogs.projections.status import status_of, statuses
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent
from tests.projections.readmodels import Balances, DepositsByOwner, Letters, ReducedBalances

pytestmark = pytest.mark.django_db


def at(projection, *positions, **more):
    for number, position in enumerate(positions):
        Checkpoint.objects.create(
            projection=projection.name,
            partition=number,
            partitions=len(positions),
            position=position,
            **more,
        )


def parked(projection, retry_at=None):
    ParkedEvent.objects.create(
        projection=projection.name,
        log_id=LogId.new("account"),
        position=1,
        index=0,
        type="account.opened",
        attempts=1,
        retry_at=retry_at,
        first_failed_at=timezone.now(),
        failed_at=timezone.now(),
    )


@pytest.fixture
def last():
    """The position of the last of three events."""
    return Account.logs.create(Opened("Ada"), Deposited(1), Deposited(1)).position


def test_a_projection_that_has_never_run_is_behind_by_all_its_events(last):
    found = status_of(Balances)

    assert (found.name, found.kind, found.rows_version) == ("balances", "rows", None)
    assert (found.position, found.positions_behind, found.at_least) == (0, 3, False)
    assert found.age > timedelta()
    assert not found.is_rebuild_due
    assert found.owners == ()


def test_a_projection_that_has_applied_all_events_is_not_behind(last):
    at(Balances, last, last, applied=5, rate=2.5, owner="ada:1:x")

    found = status_of(Balances)
    assert (found.positions_behind, found.age) == (0, timedelta())
    assert (found.partitions, found.applied, found.rate) == (2, 10, 5.0)
    assert found.owners == ("ada:1:x",)


def test_the_partition_that_is_furthest_behind_counts(last):
    event = Event.objects.get(position=last)
    places = [last, last]
    places[partition_of(event.log_id, 2)] = last - 1
    at(Balances, *places)

    found = status_of(Balances)
    waited_for = timezone.now() - event.recorded_at
    assert (found.position, found.positions_behind) == (last - 1, 1)
    assert timedelta() <= waited_for - found.age < timedelta(seconds=5)


def test_events_of_other_log_types_do_not_count(last):
    at(Balances, last)
    Parcel.logs.create(Sent("Rome"))

    found = status_of(Balances)
    assert (found.positions_behind, found.age) == (0, timedelta())


def test_each_projection_has_its_own_lag(last):
    at(Balances, last)
    at(ReducedBalances, last - 1)

    found = {
        each.name: each.positions_behind
        for each in statuses([Balances, ReducedBalances, DepositsByOwner])
    }
    assert found == {Balances.name: 0, ReducedBalances.name: 1, DepositsByOwner.name: 2}


def test_waiting_and_parked_events_are_counted_separately(last):
    now = Event.objects.get(position=last).recorded_at
    parked(Balances)
    parked(Balances)
    parked(Balances, retry_at=now)
    parked(DepositsByOwner, retry_at=now)

    found = {
        each.name: (each.parked, each.waiting) for each in statuses([Balances, DepositsByOwner])
    }
    assert found == {Balances.name: (2, 1), DepositsByOwner.name: (0, 1)}


def test_a_rebuild_is_due_if_rows_are_of_another_version(last):
    ProjectionState.objects.create(name=Balances.name, version=99, mode=Balances.mode, partitions=1)

    found = status_of(Balances)
    assert (found.rows_version, found.is_rebuild_due) == (99, True)
    assert not status_of(Letters).is_rebuild_due


def test_a_feed_that_is_behind_the_checkpoint_is_a_problem(last):
    at(Balances, last + 1_000_000)

    found = status_of(Balances)
    assert (found.positions_behind, found.age) == (None, None)
    assert "position" in found.problem or "ahead" in found.problem


def test_a_feed_that_cannot_be_read_is_a_problem_of_all_projections(last, monkeypatch):
    def unavailable(self):
        raise FeedUnavailable("replica", using="default")

    monkeypatch.setattr(type(feed_source_for("default")), "watermark", unavailable)

    for found in statuses([Balances, DepositsByOwner]):
        assert found.positions_behind is None
        assert found.problem


def test_the_number_of_queries_does_not_depend_on_the_number_of_projections(last):
    Account.logs.create(Opened("Grace"), Noted("x"))
    counts = []
    for wanted in ([Balances], [Balances, ReducedBalances, DepositsByOwner, Letters]):
        statuses(wanted)
        with CaptureQueriesContext(connection) as context:
            statuses(wanted)
        counts.append(len(context))

    assert counts[0] == counts[1] <= 8


def test_without_events_no_projection_is_behind():
    assert [each.positions_behind for each in statuses([Balances, Letters])] == [0, 0]
