"""A process that moves a log is killed at each step: exactly one database has the log."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from django.db.models import QuerySet

from eventlogs import ANY, LogMoved, LogNotFound
from eventlogs.exceptions import CannotMove
from eventlogs.models import EventLog
from eventlogs.operations import erasure, moving
from eventlogs.operations.moving import steps
from tests.accounts import Deposited
from tests.operations.moving.logs import (
    account,
    accounts,
    at,
    events_in,
    is_live,
    keys_in,
    marks,
    moved,
    seen,
    states,
)
from tests.projections.crashes import after, before, killed_in

STEPS = [
    pytest.param(lambda m: before(m, steps, "announce"), id="nothing is done"),
    pytest.param(lambda m: before(m, steps, "_insert"), id="the mark, uncommitted"),
    pytest.param(lambda m: after(m, steps, "announce"), id="announced"),
    pytest.param(lambda m: after(m, steps, "_insert", call=2), id="leaving, uncommitted"),
    pytest.param(lambda m: after(m, steps, "leave"), id="leaving"),
    pytest.param(lambda m: before(m, steps, "copy"), id="all have read it"),
    pytest.param(lambda m: before(m, steps, "_store_events"), id="the mark is gone, uncommitted"),
    pytest.param(lambda m: after(m, steps, "_store_events"), id="copied, uncommitted"),
    pytest.param(lambda m: after(m, steps, "_look"), id="compared, uncommitted"),
    pytest.param(lambda m: before(m, steps, "_store_skips"), id="before the skips"),
    pytest.param(lambda m: after(m, steps, "copy"), id="arrived"),
    pytest.param(lambda m: before(m, steps, "take_out"), id="rows are made"),
    pytest.param(lambda m: after(m, steps, "take_out"), id="taken out"),
    pytest.param(lambda m: before(m, erasure, "forget_copies"), id="before the copies"),
    pytest.param(lambda m: after(m, erasure, "forget_copies"), id="all is done"),
]


def check_one_place(log_id: Any, shards: Any) -> str:
    """Check that exactly one database has the whole log; return its alias."""
    first, second = shards.aliases
    arrived = "arrived" in states(log_id, second)
    place, other = (second, first) if arrived else (first, second)
    assert events_in(log_id, place) == 4
    assert not is_live(log_id, other)
    if place == first:
        assert events_in(log_id, second) == 0
        assert keys_in(log_id, second) == []
    return place


def try_to_append(log_id: Any, shards: Any) -> list[str]:
    """Append in both databases; return the aliases where that was possible."""
    done = []
    for alias in shards.aliases:
        try:
            at(alias).append(log_id, Deposited(5), expected_version=ANY, idempotency_key="new")
        except LogMoved:
            continue
        except LogNotFound:  # the target has not heard of the log yet
            assert not marks(log_id, alias)
            continue
        done.append(alias)
    return done


@pytest.mark.parametrize("step", STEPS)
def test_killed_while_moving(monkeypatch, shards, step):
    first, second = shards.aliases
    log_id = account(shards)
    there, keys = seen(log_id), keys_in(log_id, first)

    with monkeypatch.context() as dying:
        step(dying)
        assert killed_in(lambda: moved(log_id, shards))

    place = check_one_place(log_id, shards)
    assert (at(first).version(log_id) == 4) if place == first else True
    appended = try_to_append(log_id, shards)
    assert appended in ([], [place])

    moved(log_id, shards)

    assert shards.of(log_id) == second
    assert seen(log_id)[:4] == there
    assert len(seen(log_id)) == 4 + len(appended)
    assert keys_in(log_id, second)[:3] == keys
    assert events_in(log_id, first) == 0
    assert (states(log_id, first)[-1], states(log_id, second)[-1]) == ("left", "arrived")
    assert accounts.append(log_id, Deposited(5), expected_version=ANY, idempotency_key="more")


@pytest.mark.parametrize("step", STEPS)
def test_killed_and_abandoned(monkeypatch, shards, step):
    first, second = shards.aliases
    log_id = account(shards)
    there = seen(log_id)

    with monkeypatch.context() as dying:
        step(dying)
        assert killed_in(lambda: moved(log_id, shards))
    place = check_one_place(log_id, shards)
    with suppress(CannotMove):  # nothing was begun, or the copy is complete
        moving.abandon(log_id, source=first, target=second)

    assert check_one_place(log_id, shards) == place
    if place == first:
        assert (marks(log_id, first), marks(log_id, second)) == (1, 0)
        assert is_live(log_id, first)
    assert try_to_append(log_id, shards) == [place]
    assert at(place).version(log_id) == 5
    assert [each.id for each in at(place).stream(log_id)][:4] == [each[0] for each in there]


BACK = [
    pytest.param(lambda m: before(m, steps, "withdraw"), id="nothing is done"),
    pytest.param(lambda m: after(m, steps, "withdraw"), id="withdrawn"),
    pytest.param(lambda m: after(m, steps, "go_back"), id="back"),
]


@pytest.mark.parametrize("then", ["abandon", "move"])
@pytest.mark.parametrize("step", BACK)
def test_killed_while_abandoning(monkeypatch, shards, step, then):
    first, second = shards.aliases
    log_id = account(shards)
    with monkeypatch.context() as dying:
        after(dying, steps, "leave")
        assert killed_in(lambda: moved(log_id, shards))

    with monkeypatch.context() as dying:
        step(dying)
        assert killed_in(lambda: moving.abandon(log_id, source=first, target=second))

    assert check_one_place(log_id, shards) == first
    if then == "move":
        moved(log_id, shards)
        assert shards.of(log_id) == second
    elif "leaving" in states(log_id, first):
        moving.abandon(log_id, source=first, target=second)
    assert len(try_to_append(log_id, shards)) == 1
    assert len(seen(log_id)) == 5


def test_a_slow_call_stores_no_copy_after_another_one_has_abandoned_the_move(monkeypatch, shards):
    first, second = shards.aliases
    log_id = account(shards)
    copy = steps.copy

    def abandon_and_copy(move, *, tell):
        moving.abandon(log_id, source=first, target=second)
        at(first).append(log_id, Deposited(5), expected_version=ANY)
        return copy(move, tell=tell)

    monkeypatch.setattr(steps, "copy", abandon_and_copy)
    with pytest.raises(CannotMove) as caught:
        moved(log_id, shards)

    assert caught.value.reason == "overtaken"
    assert (events_in(log_id, first), events_in(log_id, second)) == (5, 0)
    assert at(first).append(log_id, Deposited(5), expected_version=ANY).version == 6


def test_a_slow_call_stores_no_copy_of_an_earlier_attempt(monkeypatch, shards):
    first, second = shards.aliases
    log_id = account(shards)
    copy = steps.copy

    def begin_anew_and_copy(move, *, tell):
        monkeypatch.setattr(steps, "copy", copy)
        moving.abandon(log_id, source=first, target=second)
        at(first).append(log_id, Deposited(5), expected_version=ANY)
        with monkeypatch.context() as dying:
            after(dying, steps, "leave")
            assert killed_in(lambda: moved(log_id, shards))
        return copy(move, tell=tell)

    monkeypatch.setattr(steps, "copy", begin_anew_and_copy)
    with pytest.raises(CannotMove) as caught:
        moved(log_id, shards)

    assert caught.value.reason == "overtaken"
    assert check_one(log_id, shards) == 5
    assert moved(log_id, shards).events == 5


def check_one(log_id: Any, shards: Any) -> int:
    """Check that the log is in the first database only, and return the number of its events."""
    first, second = shards.aliases
    assert (events_in(log_id, second), is_live(log_id, second)) == (0, False)
    return events_in(log_id, first)


def test_a_broken_version_that_goes_back_without_a_look_at_the_target_has_two_logs(
    monkeypatch, shards
):
    first, second = shards.aliases
    log_id = account(shards)
    with monkeypatch.context() as dying:
        after(dying, steps, "copy")
        assert killed_in(lambda: moved(log_id, shards))

    monkeypatch.setattr(steps, "withdraw", lambda move: True)
    moving.abandon(log_id, source=first, target=second)

    assert try_to_append(log_id, shards) == [first, second]


def test_a_broken_version_that_refuses_no_appends_has_two_logs(monkeypatch, shards):
    first, second = shards.aliases
    log_id = account(shards)
    leave = steps.leave

    def leave_and_take_events(move):
        left = leave(move)
        rows: QuerySet[EventLog] = QuerySet(EventLog, using=first).filter(pk=log_id.uuid)
        rows.update(log_type="account")
        return left

    monkeypatch.setattr(steps, "leave", leave_and_take_events)
    with monkeypatch.context() as dying:
        after(dying, steps, "copy")
        assert killed_in(lambda: moved(log_id, shards))

    assert try_to_append(log_id, shards) == [first, second]
