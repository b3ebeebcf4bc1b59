"""
Rows that change with the appends, while writers race on few logs and are killed at each step.

Some writers know nothing of the projection, as code of an older release; a runner applies their
events. In the end each row equals a replay, and there was no deadlock.
"""

from __future__ import annotations

import random
import signal
from itertools import cycle, islice

import pytest
from django.db import connection, transaction

from eventlogs import ANY, TransactionMustRetry
from eventlogs.models import AppliedVersion
from tests.processes import Process, Stop, until
from tests.races import COMMITS
from tests.reliability import read_models
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import InlineLedgerRows, are_up_to_date, ledgers, wrong_rows
from tests.reliability.runners import Campaign

pytestmark = [COMMITS, pytest.mark.usefixtures("read_models")]

BROKEN = "tests.reliability.broken_projections."
STEPS = [
    "before the handler",
    "in the handler",
    "after the handler",
    "before the rows are written",
    "after the rows are written",
]


def append(place, name, log_ids, is_old: bool) -> tuple[int, int]:
    """
    Append until told to stop, in transactions of one log or two; return how often, and retries.

    ``is_old`` says that this process does not know the projection.
    """
    read_models.declare([] if is_old else [InlineLedgerRows.name])
    choices, manager = random.Random(name), ledgers()
    count = retries = 0
    while True:  # once at least: a process may be told to end before it has begun
        # In one order: otherwise the appends themselves could deadlock.
        chosen = sorted(choices.sample(log_ids, choices.choice((1, 1, 2))))
        try:
            with transaction.atomic():
                for log_id in chosen:
                    entries = [Entered(f"{name}-{count}")] * choices.choice((1, 3))
                    manager.append(log_id, *entries, expected_version=ANY)
        except TransactionMustRetry:
            retries += 1
        count += 1
        if place.is_set():
            return count, retries
        place.wait(0.002)


def sessions() -> int:
    """Return how many sessions there are in this database."""
    if connection.vendor != "postgresql":
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_type = 'client backend'"
        )
        return cursor.fetchone()[0]


def deadlocks() -> int:
    """Return how many deadlocks there were in this database, of sessions that have ended."""
    if connection.vendor != "postgresql":
        return 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return cursor.fetchone()[0]


@pytest.mark.parametrize(
    ("writers", "kills"), [(8, 8), pytest.param(8, 100, marks=pytest.mark.long)]
)
def test_inline_rows_are_right_after_any_kill(writers, kills):
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(4)]
    before = deadlocks()

    with Campaign() as campaign:
        runner = campaign.run(InlineLedgerRows.name)

        def start(number: int, **conditions) -> Process:
            return campaign.begin(
                append, f"writer-{number}", log_ids, number % 4 == 3, **conditions
            )

        crowd = [start(number) for number in range(writers)]
        for number, step in enumerate(islice(cycle(STEPS), kills)):
            victim = start(4 * (writers + number), stop=Stop(step, 3, signal.SIGKILL))
            assert victim.heard() == step
            if number % 2:
                crowd.pop(0).kill()  # at any step
                crowd.append(start(writers + number))
            if number % 4 == 3:
                runner.kill()
                runner = campaign.run(InlineLedgerRows.name)
        reports = [each.end() for each in crowd]
        until(lambda: are_up_to_date(InlineLedgerRows.name))
        assert runner.end() == "done"

    assert wrong_rows() == []
    versions = dict(AppliedVersion.objects.values_list("log_id", "version"))
    assert versions == {each: ledgers().version(each) for each in log_ids}
    assert min(count for count, _ in reports) > 0
    assert sum(retries for _, retries in reports) == 0
    until(lambda: sessions() <= 1, what="the end of all other sessions")
    assert deadlocks() == before


def test_inline_rows_need_no_worker_if_all_writers_know_the_projection():
    log_ids = [ledgers().new_id() for _ in range(2)]
    with Campaign() as campaign:
        first = campaign.begin(create, log_ids)
        assert first.heard() == 2
        crowd = [campaign.begin(append, f"writer-{n}", log_ids, False) for n in range(4)]
        until(lambda: all(ledgers().version(each) > 20 for each in log_ids))
        for each in crowd:
            each.kill()

        # Without a sweep and without waiting, committed events are in the rows.
        assert wrong_rows() == []


def create(place, log_ids) -> int:
    read_models.declare([InlineLedgerRows.name])
    for each in log_ids:
        ledgers().create(Entered("the first"), log_id=each)
    return len(log_ids)


@pytest.mark.postgresql
def test_a_projection_that_does_not_lock_its_log_is_found():
    # On a machine that is busy, PostgreSQL may end the stalled session before it is woken: then the
    # attempt has no effect, and is repeated.
    assert any(rows_went_back_without_the_lock() for _ in range(4))


def rows_went_back_without_the_lock() -> bool:
    """Return whether rows were seen that lack events which their appends had applied."""
    seen: list[bool] = []
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(2)]

    with Campaign() as campaign:
        sweeper = campaign.run(
            InlineLedgerRows.name,
            broken=BROKEN + "without_lock_of_the_log",
            stop=Stop("before the rows are written", 1, signal.SIGSTOP),
            timeout=20.0,
        )
        assert sweeper.heard() == "before the rows are written"
        writer = campaign.begin(append, "writer", log_ids, False)
        until(lambda: all(ledgers().version(each) > 3 for each in log_ids))
        writer.end()
        assert wrong_rows() == []
        sweeper.wake()
        # The sweep writes the row that it had read; a moment later it applies the lost events.
        until(lambda: lack_events(log_ids, seen) or are_up_to_date(InlineLedgerRows.name))

    return any(seen)


def lack_events(log_ids, seen: list[bool]) -> bool:
    versions = dict(AppliedVersion.objects.values_list("log_id", "version"))
    seen.append(any(versions[each] < ledgers().version(each) for each in log_ids))
    return seen[-1]


def test_a_projection_that_applies_only_its_own_append_is_found():
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(2)]

    with Campaign(broken=BROKEN + "without_applied_versions") as campaign:
        writer = campaign.begin(append, "writer", log_ids, False)
        until(lambda: all(ledgers().version(each) > 3 for each in log_ids))
        writer.end()

    assert len(wrong_rows()) == 2
