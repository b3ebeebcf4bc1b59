"""Moving logs from one database to another."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotentReplay,
    LogErased,
    LogId,
    LogMoved,
    LogNotFound,
)
from eventlogs.exceptions import CannotMove
from eventlogs.models import (
    EventLog,
    LogMove,
)
from eventlogs.operations import erasure, moving
from eventlogs.operations.moving import steps
from eventlogs.operations.verification import Scope, verify
from tests.accounts import Deposited, Opened
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


def findings(alias: str) -> list[str]:
    return [str(each) for each in verify(Scope(using=alias))]


def test_a_log_is_moved_with_its_events_times_and_keys(shards):
    first, second = shards.aliases
    log_id = account(shards)
    before, keys = seen(log_id), keys_in(log_id, first)

    done = moved(log_id, shards)

    assert (done.events, done.is_new) == (4, True)
    assert shards.of(log_id) == second
    assert seen(log_id) == before
    assert keys_in(log_id, second) == keys
    assert (events_in(log_id, first), events_in(log_id, second)) == (0, 4)
    assert (states(log_id, first), states(log_id, second)) == (["left"], ["arrived"])
    assert accounts.reduce(log_id).aggregate.balance == 6
    assert accounts.append(accounts.reduce(log_id), Deposited(1)).version == 5
    assert findings(first) == findings(second) == []


def test_calling_it_again_changes_nothing(shards):
    log_id = account(shards)
    moved(log_id, shards)
    accounts.append(log_id, Deposited(1), expected_version=ANY)

    assert moved(log_id, shards)[1:3] == (4, False)
    assert len(seen(log_id)) == 5


def test_a_retry_is_a_replay_in_either_database(shards):
    first, second = shards.aliases
    log_id = account(shards)
    moved(log_id, shards)

    for alias in (first, second):
        with pytest.raises(IdempotentReplay) as caught:
            at(alias).append(log_id, Deposited(2), expected_version=2, idempotency_key="key 2")
        assert (caught.value.log_id, caught.value.index) == (log_id, 2)
        assert caught.value.state.version == 3


def test_a_keyed_create_is_a_replay_after_the_move(shards):
    first, _ = shards.aliases
    key = next(
        key
        for key in map(str, range(100))
        if shards.of(LogId.from_key("account", f"idempotency-key:{key}")) == first
    )
    state = accounts.create(Opened("ada"), idempotency_key=key)
    moved(state.log_id, shards)

    found, is_new = accounts.get_or_create(Opened("ada"), idempotency_key=key)

    assert (found.log_id, found.version, is_new) == (state.log_id, 1, False)


def test_a_process_with_an_old_router_gets_log_moved(shards):
    first, second = shards.aliases
    log_id = account(shards)
    state = accounts.reduce(log_id)
    moved(log_id, shards)
    old = at(first)

    for call in (
        lambda: old.append(state, Deposited(1)),
        lambda: old.append(log_id, Deposited(1), expected_version=ANY),
        lambda: old.create(Opened("bob"), log_id=log_id),
        lambda: old.execute(log_id, lambda _: Deposited(1)),
        lambda: old.reduce(log_id),
        lambda: old.load(log_id),
        lambda: old.version(log_id),
        lambda: list(old.stream(log_id)),
    ):
        with pytest.raises(LogMoved) as caught:
            call()
        assert (caught.value.using, caught.value.to) == (first, second)
        assert caught.value.is_complete
    assert isinstance(old.not_found(log_id), LogMoved)
    with transaction.atomic(using=first):
        with pytest.raises(LogMoved):
            old.append(state, Deposited(1))
        assert EventLog.objects.using(first).count() == 0
    assert events_in(log_id, first) == 0


def test_a_state_from_before_the_move_is_out_of_date(shards):
    log_id = account(shards)
    state = accounts.reduce(log_id)
    # So that positions differ in the two databases.
    at(shards.aliases[1]).create(*[Opened("bob")] * 9, log_id=shards.new_id(shards.aliases[1]))
    moved(log_id, shards)

    with pytest.raises(ConcurrentAppend):
        accounts.append(state, Deposited(1))
    assert accounts.append(accounts.reduce(log_id), Deposited(1)).version == 5


def stopped(shards, log_id, monkeypatch):
    """Stop a move between the refusal of appends and the copy."""

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "copy", stop)
        patch.setattr(steps, "withdraw", stop)
        with pytest.raises(KeyboardInterrupt):
            moved(log_id, shards)


def test_a_log_that_is_being_moved_is_read_and_takes_no_events(shards, monkeypatch):
    first, second = shards.aliases
    log_id = account(shards)
    before = seen(log_id)
    state = accounts.reduce(log_id)

    stopped(shards, log_id, monkeypatch)

    assert shards.of(log_id) == first
    assert seen(log_id) == before
    assert accounts.reduce(log_id) == state
    assert accounts.reduce(log_id, fresh=True).aggregate == state.aggregate
    assert accounts.reduce(log_id, version=2).version == 2
    assert accounts.version(log_id) == 4
    assert accounts.exists(log_id)
    assert [each.index for each in accounts.load(log_id, reverse=True)] == [3, 2, 1, 0]
    for alias in (first, second):
        for call in (
            lambda each: each.append(log_id, Deposited(1), expected_version=ANY),
            lambda each: each.create(Opened("bob"), log_id=log_id),
        ):
            with pytest.raises(LogMoved) as caught:
                call(at(alias))
            assert not caught.value.is_complete
            assert caught.value.to == second
    with pytest.raises(LogMoved):
        at(second).reduce(log_id)
    with pytest.raises(LogMoved):
        erasure.erase(log_id, reason="a test", by="grace", using=first)
    assert findings(first) == []

    moved(log_id, shards)

    assert (seen(log_id), shards.of(log_id)) == (before, second)


def test_a_move_is_abandoned(shards, monkeypatch):
    first, second = shards.aliases
    log_id = account(shards)
    stopped(shards, log_id, monkeypatch)

    moving.abandon(log_id, source=first, target=second)

    assert accounts.append(log_id, Deposited(1), expected_version=ANY).version == 5
    assert (states(log_id, first), states(log_id, second)) == ([], [])
    assert (marks(log_id, first), marks(log_id, second)) == (1, 0)
    with pytest.raises(CannotMove) as caught:
        moving.abandon(log_id, source=first, target=second)
    assert caught.value.reason == "nothing"
    assert moved(log_id, shards).events == 5


def test_a_complete_copy_cannot_be_abandoned(shards, monkeypatch):
    first, second = shards.aliases
    log_id = account(shards)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "take_out", stop)
        with pytest.raises(KeyboardInterrupt):
            moved(log_id, shards)
    at(second).append(log_id, Deposited(1), expected_version=ANY)

    with pytest.raises(CannotMove) as caught:
        moving.abandon(log_id, source=first, target=second)

    assert caught.value.reason == "arrived"
    with pytest.raises(LogMoved):
        at(first).append(log_id, Deposited(1), expected_version=ANY)
    assert moved(log_id, shards).is_new
    assert (len(seen(log_id)), shards.of(log_id)) == (5, second)


def test_a_log_goes_on_and_comes_back(shards):
    first, second = shards.aliases
    log_id = account(shards)
    moved(log_id, shards)
    accounts.append(log_id, Deposited(9), expected_version=ANY, idempotency_key="there")
    before = seen(log_id)

    moving.move(log_id, source=second, target=first, by="grace")

    assert (seen(log_id), shards.of(log_id)) == (before, first)
    assert states(log_id, first) == ["left", "arrived"]
    assert states(log_id, second) == ["arrived", "left"]
    with pytest.raises(LogMoved):
        at(second).append(log_id, Deposited(1), expected_version=ANY)
    accounts.append(log_id, Deposited(1), expected_version=ANY)
    with pytest.raises(IdempotentReplay):
        accounts.append(log_id, Deposited(9), expected_version=ANY, idempotency_key="there")
    moved(log_id, shards)
    assert len(seen(log_id)) == 6
    assert shards.of(log_id) == second
    assert findings(first) == findings(second) == []


def test_a_long_log_is_moved_in_pages(shards, monkeypatch):
    monkeypatch.setattr("eventlogs.feed.scans.PAGE", 7)
    log_id = account(shards, events=3)
    accounts.append(log_id, *[Deposited(1)] * 20, expected_version=ANY, idempotency_key="many")
    before = seen(log_id)
    told: list[int] = []

    assert moved(log_id, shards, tell=told.append).events == 23

    assert seen(log_id) == before
    assert told == [7, 7, 7, 2]
    with pytest.raises(IdempotentReplay) as caught:
        accounts.append(log_id, *[Deposited(1)] * 20, expected_version=ANY, idempotency_key="many")
    assert caught.value.state.version == 23


def test_a_chained_log_keeps_its_chain(shards, settings):
    first, second = shards.aliases
    settings.EVENTLOGS = {**settings.EVENTLOGS, "CHAIN": True}
    log_id = account(shards)
    head = bytes(EventLog.objects.using(first).get(pk=log_id.uuid).head)

    moved(log_id, shards)

    assert bytes(EventLog.objects.using(second).get(pk=log_id.uuid).head) == head
    assert bytes(LogMove.objects.using(first).get().digest) == head
    call_command("eventlogs", "verify", "--chain", "--database", second, stdout=StringIO())
    with pytest.raises(CannotMove) as caught:
        moving.move(log_id, source=second, target=first, by="grace")
    assert caught.value.reason == "chained"
    assert accounts.append(log_id, Deposited(1), expected_version=ANY).version == 5


def test_a_copy_that_differs_is_taken_back(shards, monkeypatch):
    first, second = shards.aliases
    log_id = account(shards)
    monkeypatch.setattr(steps, "_look", lambda *_: (4, b"another"))

    with pytest.raises(CannotMove) as caught:
        moved(log_id, shards)

    assert caught.value.reason == "differs"
    assert (events_in(log_id, first), events_in(log_id, second)) == (4, 0)
    assert accounts.append(log_id, Deposited(1), expected_version=ANY).version == 5


def test_what_is_in_the_way_is_named(shards, monkeypatch):
    first, second = shards.aliases
    log_id = account(shards)
    other = account(shards, events=1)

    def reason(log: LogId, target: str = second, source: str = first) -> str:
        with pytest.raises(CannotMove) as caught:
            moving.move(log, source=source, target=target, by="grace", timeout=0.1)
        assert is_live(log, source)
        assert caught.value.log_id == log
        return caught.value.reason

    assert reason(log_id, first) == "same"
    at(second).append(
        at(second).create(Opened("bob"), log_id=shards.new_id(second)),
        Deposited(1),
        idempotency_key="key 1",
    )
    assert reason(log_id) == "key"
    at(second).create(Opened("eve"), log_id=other)
    assert reason(other) == "there"
    erasure.erase(other, reason="a test", by="grace", using=second)
    assert reason(other) == "erased"
    with pytest.raises(LogNotFound):
        moved(shards.new_id(first), shards)
    with pytest.raises(LogErased):
        moving.move(other, source=second, target=first, by="grace")
    with pytest.raises(ValueError, match="by is"):
        moved(log_id, shards, by=" ")
    with transaction.atomic(using=first), pytest.raises(RuntimeError):
        moved(log_id, shards)


def test_a_target_that_the_router_does_not_name_is_refused(shards, monkeypatch):
    first, second = shards.aliases
    log_id = account(shards)
    monkeypatch.setattr(type(shards), "aliases", (first,), raising=False)
    from example_project.shards import ShardRouter

    monkeypatch.setattr(ShardRouter, "databases", (first,))

    with pytest.raises(CannotMove) as caught:
        moving.move(log_id, source=first, target=second, by="grace")

    assert caught.value.reason == "unknown"
