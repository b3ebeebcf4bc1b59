"""
Random histories: after failures, crashes, retries, skips and rebuilds, the read model equals a
replay of the events that were not skipped.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from django.db import IntegrityError, connection
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from eventlogs import ANY, Feed, LogNotFound, ProjectionFailed
from eventlogs.feed.sources import partition_of
from eventlogs.models import (
    Checkpoint,
    Event,
    ParkedEvent,
    ProjectionState,
    SkippedEvent,
)
from eventlogs.projections import checkpoints, leases
from eventlogs.projections.batches import Advancer
from eventlogs.projections.held_logs import HeldLogs
from eventlogs.projections.starting import begin, lease_partition
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.projections import readmodels
from tests.projections.readmodels import Balance, Balances

LOGS = 4
OPTIONS = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Crash(BaseException):
    """The worker is gone: its cleanup does not run."""


class Histories(RuleBasedStateMachine):
    """Events, and all failures that can happen while they are applied."""

    def __init__(self):
        super().__init__()
        for model in (Balance, Checkpoint, ParkedEvent, ProjectionState, SkippedEvent):
            model.objects.all().delete()
        erase_all_logs()
        self.logs = [log_in(number) for number in range(LOGS)]
        self.failing = set()  # positions that fail at the moment
        self.crashing = set()  # and those that kill their worker
        self.fresh = []
        Balances.partitions, Balances.batch_size = 1, 1_000
        Balances.max_attempts, Balances.backoff = 2, 0.0
        readmodels.behaviour["before"] = self.before

    def before(self, record):
        if record.position in self.crashing:
            self.crashing.discard(record.position)
            raise Crash
        if record.position in self.failing:
            raise ValueError

    @rule(
        log=st.integers(0, LOGS - 1),
        amounts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    )
    def append(self, log, amounts):
        events = [Deposited(each) if each % 2 else Withdrawn(each) for each in amounts]
        log_id = self.logs[log]
        if Account.logs.exists(log_id):
            state = Account.logs.append(log_id, *events, expected_version=ANY)
        else:
            state = Account.logs.create(Opened("ada"), *events, log_id=log_id)
        added = Event.objects.filter(log=log_id.uuid, index__gte=state.version - len(events))
        self.fresh += added.order_by("index").values_list("position", flat=True)

    @rule(back=st.integers(1, 9), how=st.sampled_from(["failing", "crashing"]))
    def break_one(self, back, how):
        getattr(self, how).update(self.fresh[-back:][:1])

    @rule()
    def mend(self):
        self.failing.clear()

    @rule(partitions=st.sampled_from([1, 2, 3]), batch_size=st.sampled_from([1, 2, 3, 1_000]))
    def deploy(self, partitions, batch_size):
        Balances.partitions, Balances.batch_size = partitions, batch_size

    @rule()
    def catch_up(self):
        with suppress(Crash):
            Balances.catch_up()

    @rule()
    def crash_and_leave_the_lease(self):
        """Like a worker that is killed: no lease is released, and its process is gone."""
        state = begin(Balances, "default")
        for number in range(state.partitions):
            taken = lease_partition(Balances, number, using="default", owner=DEAD)
            if taken is not None:
                with suppress(Crash):
                    Advancer(Balances(), taken, Feed()).settle()

    @rule(log=st.none() | st.integers(0, LOGS - 1))
    def retry(self, log):
        Balances.retry(None if log is None else self.logs[log])

    @rule(log=st.integers(0, LOGS - 1))
    def skip(self, log):
        Balances.skip(self.logs[log])

    @rule(park=st.booleans())
    def rebuild(self, park):
        with suppress(Crash, ProjectionFailed):
            Balances.rebuild(park=park)

    @rule(log=st.integers(0, LOGS - 1))
    def rebuild_one(self, log):
        with suppress(ProjectionFailed, Crash, LogNotFound):
            Balances.rebuild(self.logs[log])

    @invariant()
    def rows_are_right_as_of_their_checkpoints(self):
        before = readmodels.behaviour["before"]
        readmodels.reset()
        try:
            if checkpoints.state_of("balances", "default"):
                assert Balances.verify(sample=None), "a row is wrong"
        finally:
            readmodels.behaviour["before"] = before

    def teardown(self):
        readmodels.reset()
        Balances.retry()
        Balances.catch_up()
        # A rebuild that has crashed keeps what it has parked, to go on from there.
        assert not ParkedEvent.objects.filter(is_rebuild=False).exists()
        assert rows() == replay(self.logs)
        Balances.rebuild(restart=True)
        assert rows() == replay(self.logs)


DEAD = f"{leases.HOST}:{2**22 + 1}:dead"


def erase_all_logs():
    """Begin with an empty feed: a test database takes a TRUNCATE."""
    with connection.cursor() as cursor:
        for table in ("eventlogs_event", "eventlogs_eventlog"):
            verb = "TRUNCATE" if connection.vendor == "postgresql" else "DELETE FROM"
            cursor.execute(f"{verb} {table}")


def log_in(number):
    """Return a new log whose partition is the same in each run."""
    while True:
        log_id = Account.logs.new_id()
        if partition_of(log_id.uuid, 6) == number:
            return log_id


def rows():
    found = Balance.objects.values_list("log_id", "balance", "seen")
    return {log_id: rest for log_id, *rest in found}


def replay(logs):
    """Return what rows should be, by a fold that shares no code with the projection."""
    skipped = set(SkippedEvent.objects.values_list("position", flat=True))
    found: dict[Any, Any] = {}
    for log_id in logs:
        for record in Account.logs.stream(log_id) if Account.logs.exists(log_id) else ():
            if record.position in skipped:
                continue
            row = found.setdefault(log_id, [0, 0])
            match record.event:
                case Deposited(amount=amount):
                    row[0] += amount
                case Withdrawn(amount=amount):
                    row[0] -= amount
            row[1] += 1
    return found


@pytest.fixture
def _machine(tables, monkeypatch):
    for name in ("partitions", "batch_size", "max_attempts", "backoff"):
        monkeypatch.setattr(Balances, name, getattr(Balances, name))


@pytest.mark.usefixtures("_machine")
def test_the_read_model_equals_a_replay_after_any_history():
    run_state_machine_as_test(Histories, settings=OPTIONS)


def run_one_history():
    """Run one fixed history: an event fails, others come, and the failed one is skipped."""
    machine = Histories()
    machine.append(0, [1, 2, 3])
    machine.append(1, [4])
    machine.break_one(4, "failing")
    machine.catch_up()
    machine.append(0, [5])
    machine.catch_up()
    machine.rows_are_right_as_of_their_checkpoints()
    machine.skip(0)
    machine.catch_up()
    machine.mend()
    machine.rebuild(park=False)
    machine.rows_are_right_as_of_their_checkpoints()
    machine.teardown()


@pytest.mark.usefixtures("_machine")
def test_the_read_model_equals_a_replay_after_one_fixed_history():
    run_one_history()


def release_at_the_beginning(lease, position=None):
    rows = Checkpoint.objects.filter(pk=lease.pk, token=lease.token)
    rows.update(owner="", leased_until=None, position=0)


BROKEN_VERSIONS = {
    "a checkpoint that goes back": (leases, "release", release_at_the_beginning),
    "held logs that are not passed over": (HeldLogs, "held", lambda self, among=None: set()),
    "skipped events that are applied": (
        HeldLogs,
        "skipped_positions",
        lambda self, first, last: set(),
    ),
}


@pytest.mark.usefixtures("_machine")
@pytest.mark.parametrize("what", list(BROKEN_VERSIONS))
def test_a_broken_version_is_found(monkeypatch, what):
    monkeypatch.setattr(*BROKEN_VERSIONS[what])

    with pytest.raises((AssertionError, IntegrityError)):
        run_one_history()
