"""Workers go on while the table of events is replaced by another one."""

from __future__ import annotations

from threading import Event as Flag

import pytest
from django.db import transaction

from eventlogs import ANY, LogState
from eventlogs.exceptions import CannotPartition
from eventlogs.operations import partitioning
from eventlogs.operations.partitioning import copying, running, sessions
from eventlogs.projections.workers import Worker
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.conftest import PARTITIONS
from tests.operations.partitioning.logs import partitions
from tests.projections.readmodels import Balances, balances, replayed

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.fence,
    pytest.mark.usefixtures("tables", "declared"),
]


def test_a_worker_applies_each_event_once_while_the_table_is_replaced(race, monkeypatch):
    monkeypatch.setattr(copying, "BATCH", 300)
    monkeypatch.setattr(sessions, "PAUSE", 0.05)
    monkeypatch.setattr(running, "POLL", 0.01)
    monkeypatch.setattr(Balances, "partitions", 2)
    is_replaced, is_written = Flag(), Flag()
    writing = iter((1, 0))

    def write():
        try:
            states: list[LogState] = []
            while not is_replaced.wait(0.005):
                state = Account.logs.create(Opened("ada"), Deposited(7))
                with transaction.atomic():
                    for each in (state, *states[-3:]):
                        Account.logs.append(each.log_id, Withdrawn(1), expected_version=ANY)
                    is_replaced.wait(0.005)  # the other one appends, and commits before
                states.append(state)
            return states
        finally:
            if next(writing) == 0:
                is_written.set()

    def work():
        worker = Worker(["balances"])
        rounds = 0
        try:
            while True:
                is_last = is_written.is_set()
                moved = worker.round()
                rounds += bool(moved)
                if is_last and not moved:
                    return rounds
        finally:
            worker.close()

    def replace():
        replaced = 0
        try:
            for wanted in (4, 0, 3):
                while partitions("default") != wanted:
                    try:
                        replaced += partitioning.partition(wanted).swapped
                    except CannotPartition as error:
                        if "nobody could" not in error.reason:
                            raise
                        # A lock was not granted in time: the next call goes on.
        finally:
            is_replaced.set()
        return replaced

    try:
        replaced, one, other, *rounds = race(replace, write, write, work, work)
        assert replaced >= 2
        assert all(isinstance(each, int) for each in rounds), rounds
        assert sum(rounds) > 3
        Balances.catch_up()
        assert balances() == replayed(*one, *other)
        assert Balances.verify(sample=None).differences == ()
    finally:
        partitioning.partition(PARTITIONS)
