"""
Rebuilds that are killed at each step, the swap included, beside writers, readers and a runner.

Readers look at all rows, all the time: none is ever missing, none goes back to an earlier state.
"""

from __future__ import annotations

import signal

import pytest
from django.db import connection, transaction

from eventlogs import Feed, LogId, ProjectionFailed
from eventlogs.models import ParkedEvent
from tests.locks import is_waited_for
from tests.processes import Process, Stop, until
from tests.races import COMMITS
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import (
    LedgerRow,
    LedgerRows,
    SharedLedgerRows,
    are_up_to_date,
    ledgers,
    wrong_rows,
)
from tests.reliability.runners import Campaign, Seen, watch, write

pytestmark = [
    # SQLite has one writer at a time: a rebuild would wait for the writers, and they for it.
    pytest.mark.locks,
    pytest.mark.feed,
    COMMITS,
    pytest.mark.usefixtures("read_models"),
]

BROKEN = "tests.reliability.broken_projections."
# Seconds. That no read waits for locks for long, the server checks: see LONGEST_LOCK_WAIT.
LONGEST_READ = 30.0

# The first call comes through these, in this order.
PREPARING = ["after the shadow is made", "after the preparation"]
FILLING = [
    "after the handler",
    "after the rows are written",
    "after the checkpoint moves",
    "after the commit",
]
SWAPPING = [
    "before the swap",
    "before the tables are swapped",
    "after the tables are swapped",
    "after the checkpoints are switched",
]
AFTERWARDS = ["after the swap"]


def fill(count: int, entries: int) -> list[LogId]:
    made = []
    for _ in range(count):
        texts = [Entered(f"entry {number}") for number in range(entries)]
        made.append(ledgers().create(*texts).log_id)
    return made


def kill_rebuild(campaign: Campaign, name: str, step: str, *, time: int = 1) -> None:
    rebuild = campaign.rebuild(name, stop=Stop(step, time, signal.SIGKILL))
    assert rebuild.heard() == step
    rebuild.join()


def spoil_rows() -> None:
    """Make the rows wrong, so that only a rebuild corrects them."""
    LedgerRow.objects.update(total=-1_000_000)


def is_whole(readers: list[Process]) -> list[Seen]:
    seen = [reader.end() for reader in readers]
    assert [each.wrong for each in seen] == [[]] * len(seen)
    assert max(each.slowest for each in seen) < LONGEST_READ
    assert min(each.reads for each in seen) > 10
    return seen


@pytest.mark.parametrize(
    ("each", "rounds", "count", "pause"),
    [
        # Each rebuild goes through what the writers have added: a few of them in CI.
        (LedgerRows, 1, 2, 0.1),
        pytest.param(LedgerRows, 5, 4, 0.02, marks=pytest.mark.long),
        pytest.param(SharedLedgerRows, 5, 4, 0.02, marks=pytest.mark.long),
    ],
)
def test_a_rebuild_that_is_killed_anywhere_is_resumed_and_no_reader_sees_it(
    each, rounds, count, pause
):
    log_ids = fill(20, 30 if count == 4 else 10)

    with Campaign() as campaign:
        campaign.run(each.name)
        until(lambda: are_up_to_date(each.name))
        writers = [campaign.begin(write, f"writer-{n}", log_ids, pause, 0.0) for n in range(count)]
        readers = [campaign.begin(watch) for _ in range(2)]
        for _ in range(rounds):
            spoil_rows()
            for step in PREPARING:
                kill_rebuild(campaign, each.name, step)
            for number, step in enumerate(FILLING):
                # Not at the same event each time: that event would fail the rebuild.
                kill_rebuild(campaign, each.name, step, time=2 + 3 * number)
            for step in SWAPPING + AFTERWARDS:
                kill_rebuild(campaign, each.name, step)
        spoil_rows()
        assert campaign.rebuild(each.name).heard() > 0
        assert sum(writer.end() for writer in writers) > 20
        until(lambda: are_up_to_date(each.name))
        is_whole(readers)

    assert wrong_rows() == []


def test_an_event_in_progress_when_a_rebuild_was_killed_is_in_its_rows():
    fill(4, 10)
    with Campaign() as campaign:
        # The second one applies events one by one, since the first one died.
        kill_rebuild(campaign, LedgerRows.name, "in the handler")
        kill_rebuild(campaign, LedgerRows.name, "in the handler")

        assert campaign.rebuild(LedgerRows.name).heard() > 0

    assert not ParkedEvent.objects.exists()
    assert wrong_rows() == []


def test_an_event_that_kills_a_strict_rebuild_each_time_is_named_in_the_end():
    fill(1, 2)
    with Campaign() as campaign:
        for _ in range(1 + LedgerRows.max_attempts):  # the first one is not counted
            kill_rebuild(campaign, LedgerRows.name, "in the handler")

    with pytest.raises(ProjectionFailed) as caught:
        LedgerRows.rebuild()

    assert caught.value.position == next(iter(Feed().read())).position
    assert LedgerRows.rebuild() == 2  # its handler is fixed: the process is no longer killed
    assert wrong_rows() == []


@pytest.mark.postgresql
def test_a_swap_does_not_wait_behind_a_long_reader_and_keep_others_waiting():
    log_ids = fill(5, 10)

    with Campaign() as campaign:
        runner = campaign.run(LedgerRows.name)
        until(lambda: are_up_to_date(LedgerRows.name))
        readers = [campaign.begin(watch)]
        with transaction.atomic():
            list(LedgerRow.objects.all())  # it keeps its lock on the table
            rebuild = campaign.rebuild(LedgerRows.name)
            # The swap gives up its lock for others, and tries again.
            until(swap_is_waiting)
            until(lambda: not swap_is_waiting())
            until(swap_is_waiting)
            assert rebuild.is_alive
            position = ledgers().append(log_ids[0], Entered("meanwhile"), expected_version=10)
        assert rebuild.heard() > 0
        assert LedgerRows.wait_for(position.position, timeout=10)
        is_whole(readers)
        assert runner.end() == "done"

    assert wrong_rows() == []


def swap_is_waiting() -> bool:
    return is_waited_for(LedgerRow._meta.db_table, "AccessExclusiveLock")


@pytest.fixture(params=["of the server", "of Django"])
def strict_by_default(request, monkeypatch):
    """Transactions are REPEATABLE READ by default."""
    from psycopg import IsolationLevel

    level = IsolationLevel.REPEATABLE_READ
    connection.ensure_connection()
    if request.param == "of Django":
        monkeypatch.setattr(connection, "isolation_level", level)
        connection.connection.isolation_level = level
    else:
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_isolation = 'repeatable read'")
    yield
    connection.close()


@pytest.mark.postgresql
@pytest.mark.usefixtures("strict_by_default")
def test_a_snapshot_from_before_a_rebuild_has_its_rows():
    fill(3, 2)
    LedgerRows.catch_up()
    other = connection.copy("other")
    other.ensure_connection()

    with other.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT count(*) FROM eventlogs_event")
        LedgerRows.rebuild()
        cursor.execute(f"SELECT count(*) FROM {LedgerRow._meta.db_table}")
        assert cursor.fetchone() == (3,)
        cursor.execute("ROLLBACK")
    other.close()

    assert wrong_rows() == []


def test_a_broken_version_that_rebuilds_in_place_is_found():
    fill(20, 30)

    with Campaign() as campaign:
        campaign.run(LedgerRows.name)
        until(lambda: are_up_to_date(LedgerRows.name))
        readers = [campaign.begin(watch, True) for _ in range(2)]
        assert [reader.heard() for reader in readers] == ["reading"] * 2
        campaign.rebuild(LedgerRows.name, broken=BROKEN + "rebuilds_in_place").heard()
        until(lambda: are_up_to_date(LedgerRows.name))
        seen = [reader.end() for reader in readers]

    assert wrong_rows() == []
    assert all(each.wrong for each in seen)


def test_a_swap_that_leaves_out_newer_events_is_found():
    log_ids = fill(5, 10)

    with Campaign(broken=BROKEN + "swaps_as_it_is") as campaign:
        rebuild = campaign.rebuild(LedgerRows.name, stop=Stop("before the swap", 1, signal.SIGSTOP))
        assert rebuild.heard() == "before the swap"
        ledgers().append(log_ids[0], Entered("meanwhile"), expected_version=10)
        rebuild.wake()
        assert rebuild.heard() > 0
        campaign.run(LedgerRows.name)
        until(lambda: are_up_to_date(LedgerRows.name))

    assert len(wrong_rows()) == 1
