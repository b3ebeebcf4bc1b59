"""Runners whose connections are ended repeatedly: no event is parked, each is applied once."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial

import pytest
from django.db import OperationalError, connection

from eventlogs import ANY, LogId
from eventlogs.models import ParkedEvent
from tests.processes import until
from tests.races import COMMITS
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import (
    DECLARED,
    LedgerRows,
    Letters,
    ledgers,
    wrong_letters,
    wrong_rows,
)
from tests.reliability.runners import Campaign
from tests.sessions import end_session

pytestmark = [
    COMMITS,
    pytest.mark.locks,
    pytest.mark.feed,
    pytest.mark.usefixtures("read_models"),
]

TIMES = 20
NAMES = (LedgerRows.name, Letters.name)

# The sessions of all others, and those among them with an open transaction that is idle.
OTHERS = {
    "postgresql": """
SELECT pid, state = 'idle in transaction' FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
""",
    "mysql": """
SELECT id, command = 'Sleep'
       AND id IN (SELECT trx_mysql_thread_id FROM information_schema.innodb_trx)
FROM information_schema.processlist WHERE db = DATABASE() AND id <> connection_id()
""",
}


def terminate(*, in_transactions: bool = False) -> int:
    """End the sessions of all others, or those with a transaction; return how many there were."""
    if connection.vendor == "mysql":
        time.sleep(0.15)  # it does not look again while others have looked in 0.1 s
    with connection.cursor() as cursor:
        cursor.execute(OTHERS[connection.vendor])
        found = [
            number for number, is_inside in cursor.fetchall() if is_inside or not in_transactions
        ]
    for number in found:
        with suppress(OperationalError):  # it has ended meanwhile
            end_session(number)
    return len(found)


def append_to(log_ids: list[LogId]) -> int:
    states = [ledgers().append(each, Entered("more"), expected_version=ANY) for each in log_ids]
    return states[-1].position


def are_at(position: int) -> bool:
    """Return whether all events are applied, up to a position."""
    assert not ParkedEvent.objects.filter(retry_at=None).exists()
    done = all(DECLARED[name].wait_for(position, timeout=0) for name in NAMES)
    return done and not ParkedEvent.objects.exists()


def test_connections_that_are_ended_twenty_times_park_no_event():
    log_ids = [ledgers().create(Entered("the first")).log_id for _ in range(4)]
    in_a_batch = 0

    with Campaign(losses=TIMES + 5) as campaign:
        runners = [campaign.run(*NAMES), campaign.run(*NAMES)]
        for _ in range(TIMES):
            position = append_to(log_ids)
            # In the middle of a transaction if possible; otherwise at any point.
            for _ in range(50):
                if terminate(in_transactions=True):
                    in_a_batch += 1
                    break
            else:
                until(terminate)
            until(partial(are_at, position))
        assert [runner.end() for runner in runners] == ["done"] * 2

    assert in_a_batch > 0
    assert wrong_rows() == []
    assert wrong_letters() == []
