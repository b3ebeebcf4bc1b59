"""
Two runners, one of which is paused beyond its lease and woken when the other has taken over.

Its knowledge is then out of date, and it can change nothing: its fencing token, and its position,
are no longer those of the checkpoint.
"""

from __future__ import annotations

import signal

import pytest
from django.db import connection, transaction
from django.utils import timezone

from eventlogs import ANY, LogId
from eventlogs.models import ParkedEvent, ProjectionWorker
from eventlogs.projections import leases
from tests.processes import Process, Stop, until
from tests.races import COMMITS
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import (
    POISON,
    LedgerRows,
    Letters,
    are_up_to_date,
    ledgers,
    wrong_letters,
    wrong_rows,
)
from tests.reliability.runners import LEASE, Campaign

pytestmark = [
    # SQLite has one writer at a time: a process paused in a transaction stops all of them.
    pytest.mark.locks,
    pytest.mark.feed,
    COMMITS,
    pytest.mark.usefixtures("read_models"),
]

BROKEN = "tests.reliability.broken_projections."
LATEST = 2 * LEASE + 3.0  # seconds: for a pause at the lease's end, and for a busy machine

OUTSIDE = ["after the feed is read", "after the commit", "after a rest"]
INSIDE = ["in the handler", "after the checkpoint moves", "before the commit"]
OTHERS = [
    "before the checkpoint moves",
    "before the rows are written",
    "after the rows are written",
]

# Whether a session sleeps in a statement.
ASLEEP = {
    "postgresql": (
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event = 'PgSleep')"
    ),
    "mysql": (
        "SELECT EXISTS (SELECT * FROM information_schema.processlist"
        " WHERE db = DATABASE() AND state = 'User sleep')"
    ),
}


def append_to(log_ids: list[LogId], text: str) -> int:
    """Append to each ledger, and return the last position."""
    return max(
        ledgers().append(each, Entered(text), Entered(text), expected_version=ANY).position
        for each in log_ids
    )


def pause_one(campaign: Campaign, names: tuple[str, ...], step: str) -> Process:
    """Start a runner that is paused at a step, and wait until it is."""
    paused = campaign.run(*names, stop=Stop(step, 1, signal.SIGSTOP))
    assert paused.heard() == step
    return paused


@pytest.mark.parametrize(
    "step",
    [
        "after the checkpoint moves",
        *(
            pytest.param(step, marks=pytest.mark.long)
            for step in OUTSIDE + OTHERS + INSIDE[:1] + INSIDE[2:]
        ),
    ],
)
def test_a_runner_that_is_paused_beyond_its_lease_changes_nothing_afterwards(step):
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(5)]

    with Campaign() as campaign:
        paused = pause_one(campaign, (LedgerRows.name,), step)
        other = campaign.run(LedgerRows.name)
        position = append_to(log_ids, "while it is paused")

        # The server ended its session, where it had a transaction open.
        assert LedgerRows.wait_for(position, timeout=LATEST)

        paused.wake()
        until(lambda: LedgerRows.wait_for(append_to(log_ids, "awake"), timeout=0.5), seconds=10)
        assert other.end() == "done"
        until(lambda: LedgerRows.wait_for(append_to(log_ids, "alone"), timeout=0.5), seconds=10)
        assert paused.end() == "done"
        assert are_up_to_date(LedgerRows.name)

    assert wrong_rows() == []


@pytest.mark.parametrize(
    "step",
    ["after the reaction", pytest.param("before the reaction", marks=pytest.mark.long)],
)
def test_a_reactor_that_is_paused_beyond_its_lease_skips_no_event(step):
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(5)]

    with Campaign() as campaign:
        paused = pause_one(campaign, (Letters.name,), step)
        other = campaign.run(Letters.name)
        position = append_to(log_ids, "while it is paused")
        assert Letters.wait_for(position, timeout=LATEST)

        paused.wake()
        until(lambda: is_at_work_again(paused))
        position = append_to(log_ids, "awake")
        until(lambda: are_up_to_date(Letters.name))
        assert other.end() == "done"
        assert paused.end() == "done"

    assert wrong_letters() == []


def test_a_statement_of_a_killed_worker_blocks_no_worker_beyond_the_lease():
    # The server does not notice: the statement continues, and keeps the checkpoint locked.
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(2)]
    harmful = ledgers().create(Entered(POISON + "sleeps_in_the_database")).log_id

    with Campaign() as campaign:
        killed = campaign.run(LedgerRows.name)
        until(is_asleep)
        killed.kill()
        campaign.run(LedgerRows.name)
        position = append_to(log_ids, "after it was killed")

        assert LedgerRows.wait_for(position, timeout=LATEST)
    assert ParkedEvent.objects.get().log_id == harmful


@pytest.mark.postgresql
@pytest.mark.parametrize(("own", "then"), [("0", "2s"), ("1min", "2s"), ("300ms", "300ms")])
def test_an_existing_statement_timeout_is_never_raised(own, then):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT set_config('statement_timeout', %s, true)", [own])

        leases.limit_idle_time("default", 2)

        cursor.execute("SELECT current_setting('statement_timeout')")
        assert cursor.fetchone() == (then,)


@pytest.mark.mariadb
@pytest.mark.parametrize(("own", "then"), [(0, 2), (60, 2), (1, 1)])
def test_the_limits_of_a_mariadb_session_are_set_for_the_transaction_alone(own, then):
    ledgers().create(Entered("the first"))
    LedgerRows.catch_up()
    taken = leases.acquire(LedgerRows.name, 0, using="default", owner="it:1:a", seconds=1.3)
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION idle_transaction_timeout = 7, max_statement_time = %s", [own])

    with leases.fenced(taken):
        inside = limits()

    assert inside == (2, then)
    assert limits() == (7, own)


def limits():
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@SESSION.idle_transaction_timeout, @@SESSION.max_statement_time")
        return cursor.fetchone()


def is_at_work_again(worker: Process) -> bool:
    """Return whether a worker that was considered dead has reported since."""
    alive = ProjectionWorker.objects.filter(seen_until__gt=timezone.now())
    return alive.filter(name__contains=f":{worker.pid}:").exists()


def is_asleep() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(ASLEEP[connection.vendor])
        return bool(cursor.fetchone()[0])


def test_a_worker_without_a_fencing_token_is_found():
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(5)]

    with Campaign(broken=BROKEN + "without_fencing_token") as campaign:
        paused = pause_one(campaign, (LedgerRows.name,), "after the feed is read")
        other = campaign.run(LedgerRows.name)
        assert LedgerRows.wait_for(append_to(log_ids, "while it is paused"), timeout=LATEST)
        paused.wake()
        until(wrong_rows)
        other.kill()

    assert len(wrong_rows()) == len(log_ids)


@pytest.mark.long
def test_a_worker_whose_session_is_never_ended_is_found():
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(2)]

    with Campaign(broken=BROKEN + "without_limit_of_idleness") as campaign:
        pause_one(campaign, (LedgerRows.name,), "after the checkpoint moves")
        campaign.run(LedgerRows.name)

        position = append_to(log_ids, "while it is paused")
        assert not LedgerRows.wait_for(position, timeout=2 * LEASE + 1.0)
