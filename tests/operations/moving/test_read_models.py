"""Projections and reactors of both databases, when a log is moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import models

from eventlogs import ANY, LogId, LogIdField, Projection, Reactor, handles, projection
from eventlogs.exceptions import CannotMove
from eventlogs.models import AppliedVersion, ParkedEvent, SkippedEvent
from eventlogs.operations import moving
from eventlogs.operations.moving import steps
from eventlogs.projections import databases
from example_project.shards import ShardRouter
from tests.accounts import Account, Deposited, Opened
from tests.operations.moving.logs import account, accounts, at, is_live, moved, states
from tests.projections.tables import Known, made
from tests.tables import Table
from tests.test_shards import Shards

pytestmark = pytest.mark.feed


class MovedRow(Table):
    log_id = LogIdField(primary_key=True)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_moves"


class InlineRow(Table):
    log_id = LogIdField(primary_key=True)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_moves"


class DayRow(Table):
    day = models.CharField(primary_key=True, max_length=10)
    events = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_moves"


FAILING: list[int] = []
WRITTEN: list[str] = []


@projection("moved-sums")
class MovedSums(Projection):
    log_types = ["account"]
    model = MovedRow
    max_attempts = 1
    backoff = 0.0

    @handles(Deposited)
    def deposited(self, row, record):
        if record.event.amount in FAILING:
            raise ValueError
        row.balance += record.event.amount


@projection("moved-inline")
class MovedInline(Projection):
    log_types = ["account"]
    model = InlineRow
    mode = Projection.INLINE

    @handles(Deposited)
    def deposited(self, row, record):
        row.balance += record.event.amount


@projection("moved-days")
class MovedDays(Projection):
    log_types = ["account"]
    model = DayRow

    def key(self, record):
        return "today"

    @handles(Deposited)
    def deposited(self, row, record):
        row.events += 1


@projection("moved-letters")
class MovedLetters(Reactor):
    log_types = ["account"]

    @handles(Deposited)
    def write(self, record):
        WRITTEN.append(record.id)


KNOWN = Known(MovedSums, MovedInline, MovedDays, MovedLetters)


@pytest.fixture
def places(shards: Shards, monkeypatch: Any) -> Iterator[Shards]:
    """Two databases with read models, and with what the test declares of the projections."""
    monkeypatch.setattr(ShardRouter, "apps", ("eventlogs", "tests_of_moves"))
    tables = (MovedRow, InlineRow, DayRow)
    with made(*tables), made(*tables, using=shards.aliases[1]):
        yield shards
    FAILING.clear()
    WRITTEN.clear()
    databases._found.clear()
    databases._missing.clear()


def rows(model: type[Table], alias: str) -> dict[Any, int]:
    return dict(model.objects.using(alias).values_list("pk", "balance"))


def test_the_row_of_a_log_goes_with_it(places):
    first, second = places.aliases
    with KNOWN.declared("moved-sums", "moved-inline"):
        log_id = account(places)
        MovedSums.catch_up()

        done = moved(log_id, places)

        assert sorted(done.rows) == ["moved-inline", "moved-sums"]
        assert rows(InlineRow, second) == {log_id: 6}
        assert rows(MovedRow, first) == rows(InlineRow, first) == {}
        assert not AppliedVersion.objects.using(first).exists()
        accounts.append(log_id, Deposited(10), expected_version=ANY)
        assert rows(InlineRow, second) == {log_id: 16}
        assert MovedSums.catch_up() == 4
        assert rows(MovedRow, second) == {log_id: 16}
        MovedInline.catch_up()
        assert rows(InlineRow, second) == {log_id: 16}
        assert MovedSums.verify(sample=None).differences == ()
        assert MovedInline.verify(sample=None).differences == ()


def test_rows_that_logs_share_are_to_be_rebuilt_in_the_source(places):
    first, second = places.aliases
    with KNOWN.declared("moved-days"):
        log_id, other = account(places), account(places, events=1)
        accounts.append(other, Deposited(1), expected_version=ANY)
        MovedDays.catch_up()

        assert moved(log_id, places).to_rebuild == ("moved-days",)
        MovedDays.catch_up()
        MovedDays.rebuild(using=first, restart=True)

        events = [
            each.objects.using(alias).get().events for each in [DayRow] for alias in (first, second)
        ]
        assert events == [1, 3]


def test_a_reactor_does_not_react_a_second_time(places):
    with KNOWN.declared("moved-letters"):
        log_id = account(places)
        MovedLetters.catch_up()
        assert [f"{log_id}:{index}" for index in (1, 2, 3)] == WRITTEN

        moved(log_id, places)
        accounts.append(log_id, Deposited(9), expected_version=ANY)
        MovedLetters.catch_up()
        moving.move(log_id, source=places.aliases[1], target=places.aliases[0], by="grace")
        accounts.append(log_id, Deposited(9), expected_version=ANY)
        MovedLetters.catch_up()

        assert [f"{log_id}:{index}" for index in (1, 2, 3, 4, 5)] == WRITTEN


def test_a_log_stays_while_a_reactor_has_not_come_to_its_end(places):
    with KNOWN.declared("moved-letters"):
        log_id = account(places)
        MovedLetters.catch_up()
        accounts.append(log_id, Deposited(9), expected_version=ANY)

        with pytest.raises(CannotMove) as caught:
            moved(log_id, places, timeout=0.2)

        assert (caught.value.reason, caught.value.projection) == ("behind", "moved-letters")
        accounts.append(log_id, Deposited(9), expected_version=ANY)
        MovedLetters.catch_up()
        moved(log_id, places)
        MovedLetters.catch_up()
        assert [f"{log_id}:{index}" for index in range(1, 6)] == WRITTEN


def test_without_the_wait_the_last_event_has_no_reaction(places, monkeypatch):
    """A broken version, which does not wait for the reactors of the source."""
    monkeypatch.setattr("eventlogs.operations.moving.waiting.wait", lambda *_, **__: None)
    with KNOWN.declared("moved-letters"):
        log_id = account(places)
        MovedLetters.catch_up()
        accounts.append(log_id, Deposited(9), expected_version=ANY)

        moved(log_id, places)
        MovedLetters.catch_up()

        assert f"{log_id}:4" not in WRITTEN


def test_a_log_that_a_projection_holds_stays(places):
    first, _ = places.aliases
    FAILING.append(2)
    with KNOWN.declared("moved-sums"):
        log_id = account(places)
        MovedSums.catch_up()

        with pytest.raises(CannotMove) as caught:
            moved(log_id, places)

        assert (caught.value.reason, caught.value.projection) == ("held", "moved-sums")
        assert is_live(log_id, first)
        assert ParkedEvent.objects.using(first).count() == 1


def test_an_event_that_fails_while_the_log_leaves_ends_the_move(places, monkeypatch):
    first, second = places.aliases
    with KNOWN.declared("moved-sums"):
        log_id = account(places)
        MovedSums.catch_up()
        leave = steps.leave

        def append_and_leave(move):
            accounts.append(log_id, Deposited(70), Deposited(7), expected_version=ANY)
            left = leave(move)
            FAILING.append(70)
            MovedSums.catch_up()
            MovedSums.retry()
            MovedSums.catch_up()
            return left

        monkeypatch.setattr(steps, "leave", append_and_leave)
        with pytest.raises(CannotMove) as caught:
            moved(log_id, places)

        assert caught.value.reason == "held"
        assert (states(log_id, first), states(log_id, second)) == ([], [])
        FAILING.clear()
        MovedSums.retry()
        MovedSums.catch_up()
        assert rows(MovedRow, first) == {log_id: 83}


def test_what_a_person_has_skipped_stays_skipped(places):
    first, second = places.aliases
    at(second).create(*[Opened("eve")] * 5, log_id=places.new_id(second))
    FAILING.append(2)
    with KNOWN.declared("moved-sums"):
        log_id = account(places)
        MovedSums.catch_up()
        MovedSums.skip(log_id)
        MovedSums.catch_up()
        assert rows(MovedRow, first) == {log_id: 4}

        moved(log_id, places)

        [skip] = SkippedEvent.objects.using(second).all()
        [*_, event, _] = accounts.stream(log_id)
        assert (skip.log_id, skip.index, skip.position) == (log_id, 2, event.position)
        MovedSums.catch_up()
        assert rows(MovedRow, second) == {log_id: 4}


def test_a_projection_that_has_never_run_is_waited_for(places):
    with KNOWN.declared("moved-sums"):
        log_id: LogId = account(places)

        with pytest.raises(CannotMove) as caught:
            moved(log_id, places, timeout=0)

        assert (caught.value.reason, caught.value.projection) == ("behind", "moved-sums")
        assert Account.logs.append(log_id, Deposited(1), expected_version=ANY).version == 5
