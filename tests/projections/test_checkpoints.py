"""Leases: one worker at a time moves a checkpoint, and one that lost its lease cannot."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from django.db import Error, connection, connections, transaction
from django.utils import timezone

from eventlogs import LogId
from eventlogs.exceptions import ProjectionUnavailable
from eventlogs.feed.sources import partition_of
from eventlogs.models import Checkpoint
from eventlogs.projections import checkpoints, leases
from eventlogs.projections.leases import LeaseLost
from tests.locks import a_session_waits
from tests.processes import until
from tests.projections.crashes import kill_this_process, killed_in

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "leased"


@pytest.fixture(autouse=True)
def _partitions():
    checkpoints.ensure(NAME, using="default", version=1, mode="async", partitions=2)


def acquire(owner="ada:1:x", number=0, seconds=30.0, **options):
    return leases.acquire(NAME, number, using="default", owner=owner, seconds=seconds, **options)


def checkpoint(number=0):
    return Checkpoint.objects.get(projection=NAME, partition=number)


def test_each_lease_has_a_higher_token():
    tokens = []
    for owner in ["ada:1:x", "bob:1:x", "ada:1:x"]:
        lease = acquire(owner)
        tokens.append(lease.token)
        leases.release(lease)

    assert tokens == [1, 2, 3]


def test_a_live_lease_is_not_taken_over():
    assert acquire("ada:1:x")
    assert acquire("bob:1:x") is None
    assert acquire("bob:1:x", number=1)


def test_a_worker_that_takes_its_own_lease_again_learns_that_it_was_abandoned():
    first = acquire()
    again = acquire()

    assert (first.was_abandoned, again.was_abandoned) == (False, True)
    with pytest.raises(LeaseLost), transaction.atomic():
        leases.move(first, 5)


def test_a_lease_that_has_expired_is_taken_over():
    acquire("ada:1:x", seconds=0.2)
    found = []

    def is_taken():
        found.append(acquire("bob:1:x"))
        return found[-1]

    until(is_taken)

    *refused, taken = found
    assert refused[0] is None
    assert (taken.token, taken.was_abandoned) == (2, True)


def test_the_lease_of_a_process_that_is_dead_is_taken_over_at_once():
    assert killed_in(lambda: kill_this_process(acquire(leases.new_owner())))
    assert checkpoint().owner

    assert acquire("bob:1:x").was_abandoned


def test_the_lease_of_a_process_of_another_machine_is_not_known_to_be_dead():
    assert not leases.is_dead(f"elsewhere:{2**22 + 1}:x")
    assert leases.is_dead(f"{leases.HOST}:{2**22 + 1}:x")
    assert not leases.is_dead(leases.new_owner())
    for owner in ["", "x", "a:b", f"{leases.HOST}:not a number:x", f"{leases.HOST}:1:x"]:
        assert not leases.is_dead(owner)


def test_processes_in_another_pid_namespace_have_another_host(monkeypatch):
    """As in containers that share only the name of their machine."""
    owner = leases.new_owner()
    monkeypatch.setattr(Path, "readlink", lambda path: "pid:[1]")
    monkeypatch.setattr(leases, "HOST", leases._host())

    assert not leases.is_dead(owner.replace(str(os.getpid()), str(2**22 + 1)))
    assert len(f"{'x' * 50}.12345678:{2**22}:12345678") <= 100


def test_a_released_lease_is_free_and_not_abandoned():
    leases.release(acquire("ada:1:x"), 7)

    taken = acquire("bob:1:x")

    assert (taken.position, taken.was_abandoned) == (7, False)


def test_an_abandoned_lease_is_free_at_once_and_known_as_abandoned():
    leases.abandon(acquire("ada:1:x"))

    assert acquire("bob:1:x").was_abandoned


def test_releasing_never_lowers_the_position():
    lease = acquire()
    with leases.fenced(lease, 9) as moved:
        pass
    leases.release(moved, 4)

    assert checkpoint().position == 9


def test_a_lease_whose_transaction_was_rolled_back_is_released_at_the_stored_position():
    lease = acquire()
    with pytest.raises(ZeroDivisionError), leases.fenced(lease, 9) as moved:
        raise ZeroDivisionError

    leases.release(moved, 12)

    assert (checkpoint().position, checkpoint().owner) == (0, "")


def test_a_worker_that_has_lost_its_lease_cannot_release_it():
    lost = acquire("ada:1:x")
    leases.abandon(lost)
    acquire("bob:1:x")

    leases.release(lost, 9)
    leases.abandon(lost)

    assert (checkpoint().owner, checkpoint().position) == ("bob:1:x", 0)
    assert checkpoint().leased_until is not None


@pytest.mark.parametrize("wrong", [{"token": 0}, {"token": 2}, {"position": 5}, {"pk": 0}])
def test_a_wrong_token_or_position_does_not_move_the_checkpoint(wrong):
    lease = acquire()

    with pytest.raises(LeaseLost), leases.fenced(replace(lease, **wrong), 9):
        pytest.fail("not reached")

    assert checkpoint().position == 0
    with leases.fenced(lease, 9):
        pass
    assert checkpoint().position == 9


def test_moving_renews_the_lease_and_is_undone_by_a_rollback():
    lease = acquire(seconds=2.0)
    would_have_ended = checkpoint().leased_until
    assert not lease.is_half_over
    until(lambda: lease.is_half_over)

    with leases.fenced(lease, 3, applied=7) as moved:
        assert not moved.is_half_over
    until(lambda: timezone.now() > would_have_ended)

    assert acquire("bob:1:x") is None
    assert (checkpoint().position, checkpoint().applied) == (3, 7)


@pytest.mark.postgresql
def test_a_row_that_is_locked_is_not_waited_for(elsewhere):
    with transaction.atomic():
        Checkpoint.objects.select_for_update().get(projection=NAME, partition=0)
        begun = time.monotonic()

        assert elsewhere(acquire) is None
        assert elsewhere(lambda: acquire(number=1)) is not None

    assert time.monotonic() - begun < 2
    assert acquire() is not None


def test_one_of_several_racing_workers_gets_a_partition(race):
    answers = race(*[lambda: acquire(leases.new_owner())] * 8)

    assert [each for each in answers if isinstance(each, Exception)] == []
    assert len([each for each in answers if each]) == 1


def test_the_first_worker_creates_the_checkpoints_at_the_start_position(race):
    def begin():
        return checkpoints.ensure(
            "raced", using="default", version=1, mode="async", partitions=3, start=lambda: 5
        ).name

    assert race(*[begin] * 4) == ["raced"] * 4
    assert checkpoints.positions("raced", "default") == {0: 5, 1: 5, 2: 5}
    assert checkpoints.position("raced", "default") == 5
    checkpoints.ensure("raced", using="default", version=1, mode="async", partitions=9, start=fail)


def fail():
    pytest.fail("asked")


def test_a_projection_that_has_never_run_is_at_the_beginning():
    assert checkpoints.position("unknown", "default") == 0
    assert checkpoints.state_of("unknown", "default") is None


# Repartitioning


def repartition(partitions, owner="ada:1:x"):
    return checkpoints.repartition(NAME, partitions, using="default", owner=owner)


def test_repartitioning_keeps_the_position_and_the_count_and_raises_the_tokens():
    for number in (0, 1):
        lease = acquire(number=number)
        with leases.fenced(lease, 9, applied=4):
            pass

    assert repartition(5)

    assert checkpoints.positions(NAME, "default") == dict.fromkeys(range(5), 9)
    assert checkpoints.state_of(NAME, "default").partitions == 5
    found = Checkpoint.objects.filter(projection=NAME)
    assert sum(found.values_list("applied", flat=True)) == 8
    assert set(found.values_list("token", "owner", "partitions")) == {(2, "", 5)}
    with pytest.raises(LeaseLost), leases.fenced(lease, 12):
        pass


def test_repartitioning_is_refused_while_positions_differ():
    with leases.fenced(acquire(), 9):
        pass

    assert not repartition(5)
    assert checkpoints.state_of(NAME, "default").partitions == 2


def test_repartitioning_is_refused_while_another_worker_has_a_lease():
    acquire("bob:1:x", number=1)

    assert not repartition(5)
    assert repartition(5, owner="bob:1:x")


def test_becoming_inline_revokes_all_leases():
    lease = acquire()

    checkpoints.become_inline(NAME, using="default")

    assert checkpoints.state_of(NAME, "default").mode == "inline"
    with pytest.raises(LeaseLost), leases.fenced(lease, 9):
        pass


# Beside a worker


def log_of(number, of):
    while True:
        log_id = LogId.new("account")
        if partition_of(log_id.uuid, of) == number:
            return log_id


@pytest.mark.postgresql
def test_changing_rows_beside_a_worker_locks_the_partition_of_the_log(elsewhere):
    with checkpoints.locked(NAME, log_of(1, 2), using="default") as row:
        assert row.partition == 1
        assert elsewhere(lambda: acquire(number=1)) is None
        assert elsewhere(acquire) is not None


@pytest.mark.postgresql
def test_checkpoints_that_are_replaced_while_a_lock_is_waited_for_are_found(elsewhere):
    """As a rebuild does it: the old row is deleted, another one takes its place."""
    Checkpoint.objects.bulk_create(
        [
            Checkpoint(projection=NAME, is_rebuild=True, partition=number, partitions=2, position=7)
            for number in (0, 1)
        ]
    )
    found = []

    def lock():
        with checkpoints.locked(NAME, log_of(0, 2), using="default") as row:
            found.append(row.position)
        connections.close_all()

    other = threading.Thread(target=lock)
    with transaction.atomic():
        Checkpoint.objects.filter(projection=NAME, is_rebuild=False).delete()
        other.start()
        until(a_session_waits)
        Checkpoint.objects.filter(projection=NAME).update(is_rebuild=False)
    other.join()

    assert found == [7]


def test_missing_checkpoints_are_not_waited_for_forever():
    Checkpoint.objects.filter(projection=NAME).delete()

    with (
        pytest.raises(ProjectionUnavailable, match="another process"),
        checkpoints.locked(NAME, log_of(0, 2), using="default"),
    ):
        pytest.fail("not reached")


def has_gone(pid: int) -> bool:
    """Return whether the server has ended a session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", [pid])
        return bool(cursor.fetchone()[0])


@pytest.mark.postgresql
def test_a_worker_that_stalls_in_a_transaction_is_ended_by_the_server(elsewhere):
    lease = acquire(seconds=0.2)
    pid = connection.connection.info.backend_pid
    with (
        pytest.raises(Error, match="idle-in-transaction"),
        leases.fenced(lease, 9),
    ):
        until(partial(elsewhere, partial(has_gone, pid)))
        Checkpoint.objects.count()
    connection.close()

    assert checkpoint().position == 0


def test_a_lease_is_live_while_it_has_not_expired_and_its_owner_is_not_dead():
    acquire("ada:1:x")
    assert leases.is_live(checkpoint(), using="default")
    Checkpoint.objects.update(leased_until=timezone.now() - timedelta(seconds=1))
    assert not leases.is_live(checkpoint(), using="default")
