"""
Many workers that share the partitions of projections, while some start and some end.

Those that are asked to end release their leases at once; the others are killed.
"""

from __future__ import annotations

import random
import time

import pytest
from django.db import connection, transaction
from django.utils import timezone

from eventlogs import ANY
from eventlogs.models import Checkpoint, ProjectionWorker
from eventlogs.projections import checkpoints
from tests.processes import Process, until
from tests.races import COMMITS
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import (
    LedgerRows,
    SharedLedgerRows,
    SharedLetters,
    are_up_to_date,
    ledgers,
    wrong_letters,
    wrong_rows,
)
from tests.reliability.runners import Campaign, write

pytestmark = [COMMITS, pytest.mark.usefixtures("read_models")]

BROKEN = "tests.reliability.broken_projections."
NAMES = (SharedLedgerRows.name, SharedLetters.name)
CROWD = 4


def let_go(worker: Process) -> None:
    """Ask a worker to end: no lease and no registration of it remains."""
    assert worker.end() == "done"
    assert not Checkpoint.objects.filter(owner__contains=f":{worker.pid}:").exists()
    alive = ProjectionWorker.objects.filter(seen_until__gt=timezone.now())
    assert not alive.filter(name__contains=f":{worker.pid}:").exists()


@pytest.mark.parametrize("changes", [3, pytest.param(60, marks=pytest.mark.long)])
def test_each_event_is_applied_once_while_workers_start_and_end(changes):
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(16)]
    pause = 0.04 if connection.vendor == "postgresql" else 0.08

    with Campaign() as campaign:
        writers = [campaign.begin(write, f"writer-{n}", log_ids, pause, 0.02) for n in range(2)]
        crowd = [campaign.run(*NAMES) for _ in range(CROWD)]
        for number in range(changes):
            until_advanced(random.randrange(40, 240))
            victim = crowd.pop(random.randrange(CROWD))
            if number % 2:
                let_go(victim)
            else:
                victim.kill()
            crowd.append(campaign.run(*NAMES))
        assert sum(writer.end() for writer in writers) > changes
        until(lambda: are_up_to_date(*NAMES))
        for worker in crowd:
            let_go(worker)

    assert wrong_rows() == []
    assert wrong_letters() == []


def test_workers_of_different_projections_leave_no_partition_unowned():
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(16)]

    with Campaign() as campaign:
        for names in (NAMES, NAMES, NAMES[1:], NAMES[:1]):
            campaign.run(*names)
            until(lambda: len(owners()) == 8)
            append_to(log_ids)
            until(lambda: are_up_to_date(*NAMES))

    assert wrong_rows() == []
    assert wrong_letters() == []


def until_advanced(by: int) -> None:
    """Wait until the positions of all partitions have risen by so many, together."""

    def positions() -> int:
        return sum(Checkpoint.objects.values_list("position", flat=True))

    reached = positions() + by
    until(lambda: positions() >= reached)


def owners() -> list[str]:
    return list(Checkpoint.objects.exclude(owner="").values_list("owner", flat=True))


def append_to(log_ids) -> None:
    for each in log_ids:
        ledgers().append(each, Entered("one more"), expected_version=ANY)


@pytest.mark.postgresql
def test_a_broken_version_without_leases_is_found():
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(16)]

    with Campaign(broken=BROKEN + "without_leases") as campaign:
        for _ in range(3):
            campaign.run(SharedLedgerRows.name)
        campaign.begin(write, "writer", log_ids, 0.01, 0.0)
        until(lambda: wrong_rows_of_a_moment(log_ids))


def wrong_rows_of_a_moment(log_ids) -> bool:
    """Return whether a row has more entries than its log, which it never gets rid of."""
    rows = dict(SharedLedgerRows.model.objects.values_list("log_id", "entries"))
    return any(rows.get(each, 0) > ledgers().version(each) for each in log_ids)


@pytest.mark.postgresql
def test_a_locked_checkpoint_ends_no_worker(elsewhere):
    log_id = ledgers().create(Entered("the first")).log_id

    with Campaign(timeout=0.3) as campaign:
        worker = campaign.run(LedgerRows.name)
        until(lambda: are_up_to_date(LedgerRows.name))
        with transaction.atomic():
            checkpoints.lock_all(LedgerRows.name, using="default")
            state = elsewhere(
                lambda: ledgers().append(log_id, Entered("meanwhile"), expected_version=ANY)
            )
            time.sleep(2.0)
            assert worker.is_alive
        assert LedgerRows.wait_for(state.position, timeout=10)
        assert worker.end() == "done"

    assert wrong_rows() == []
