"""
A failover: writers go on at the promoted replica, by Django's settings with several hosts.

The primary is killed, as by a failure of its machine. Writers repeat what was not acknowledged,
under the same idempotency key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from django.db import InterfaceError, OperationalError, connection, connections

from eventlogs import ANY, LogManager
from tests.accounts import Account, Deposited, Opened
from tests.processes import until
from tests.processes.forks import Place, Processes
from tests.reliability.replicas import Replica, Server, alias_of, cut_off, migrated, promote, sql

pytestmark = pytest.mark.postgresql

WRITERS = 4
BEFORE = 50  # appends of each writer until the primary is killed, at least
AFTER = 50  # and then

accounts = LogManager(Account)

# What the runbook says: positions that were given out by the lost history are not given out again.
MOVE_ON = """
SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'),
              nextval(pg_get_serial_sequence('eventlogs_event', 'position')) + 1000000)
"""


@pytest.fixture(autouse=True)
def _databases(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Allow servers that the run does not know."""
    with django_db_blocker.unblock():
        yield


class Told(NamedTuple):
    """What a writer knows: the amounts of its log that were acknowledged, and its log."""

    log_id: str
    acknowledged: list[int]
    repeated: int


def write(place: Place) -> Told:
    """Append amounts to a log of its own, one after the other, until the test ends."""
    log_id, acknowledged, repeated = accounts.new_id(), list[int](), 0
    accounts.create(Opened(f"writer {place.number}"), log_id=log_id)
    amount = 0
    while not place.is_set():
        amount += 1
        while True:
            try:
                accounts.get_or_append(
                    log_id,
                    Deposited(amount),
                    expected_version=ANY,
                    idempotency_key=f"{log_id} {amount}",
                )
                break
            except (OperationalError, InterfaceError):
                # Perhaps stored, perhaps not. A server that is not there yet is tried again.
                repeated += 1
                connection.close()
                place.wait(0.02)
        acknowledged.append(amount)
        if amount % 10 == 0:
            place.say(amount)
    return Told(str(log_id), acknowledged, repeated)


@contextmanager
def servers(*, synchronous: bool) -> Iterator[tuple[Server, str, str, dict[str, Any]]]:
    """Give a primary, its alias, that of its replica, and settings that name both hosts."""
    with Server() as server, migrated(server) as primary:
        settings = connections[primary].settings_dict
        with Replica(server) as standby, alias_of(standby, settings["NAME"]) as replica:
            if synchronous:
                sql(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
                sql(primary, "SELECT pg_reload_conf()")
            state = "sync" if synchronous else "async"
            until(
                lambda: sql(primary, "SELECT sync_state FROM pg_stat_replication") == [(state,)],
                what=f"the replica to be {state}",
            )
            other = connections[replica].settings_dict
            both = {
                **settings,
                "HOST": f"{settings['HOST']},{other['HOST']}",
                "PORT": f"{settings['PORT']},{other['PORT']}",
                "OPTIONS": {"target_session_attrs": "read-write", "connect_timeout": 2},
            }
            yield server, primary, replica, both


def heard(processes: list[Any], least: int) -> None:
    """Wait until each writer has been acknowledged so many more appends."""
    for each in processes:
        first = each.heard()
        while each.heard() < first + least:
            pass


def amounts(alias: str, log_id: str) -> list[int]:
    """Return the amounts in a log, in its order."""
    logs = LogManager(Account, using=alias)
    return [each.event.amount for each in logs.stream(log_id) if isinstance(each.event, Deposited)]


def test_a_synchronous_replica_has_everything_that_was_acknowledged() -> None:
    with servers(synchronous=True) as (server, primary, replica, both):
        with Processes(database=both) as team:
            writers = team.line_up(WRITERS, write)
            team.go()
            heard(writers, BEFORE)
            server.process.kill()
            server.process.wait()
            connections[primary].close()
            promote(replica)
            heard(writers, AFTER)
            told: list[Told] = end(writers)

        assert sum(each.repeated for each in told) >= WRITERS
        for each in told:
            assert amounts(replica, each.log_id) == each.acknowledged


def test_an_asynchronous_replica_may_lack_the_last_and_doubles_nothing() -> None:
    with servers(synchronous=False) as (server, primary, replica, both):
        with Processes(database=both) as team:
            writers = team.line_up(WRITERS, write)
            team.go()
            heard(writers, BEFORE)
            cut_off(replica)
            heard(writers, BEFORE)
            server.process.kill()
            server.process.wait()
            connections[primary].close()
            promote(replica)
            sql(replica, MOVE_ON)
            heard(writers, AFTER)
            told: list[Told] = end(writers)

        lost = 0
        for each in told:
            found = amounts(replica, each.log_id)
            assert max(Counter(found).values()) == 1
            assert found == sorted(found)
            assert set(found) <= set(each.acknowledged)
            missing = sorted(set(each.acknowledged) - set(found))
            # The last ones before the failure, and no other.
            assert missing == list(range(missing[0], missing[-1] + 1)) if missing else True
            lost += len(missing)
        assert lost > 0


def end(writers: list[Any]) -> list[Told]:
    """Let the writers end, and return what they were told."""
    told = []
    for each in writers:
        each.tell_to_end()
    for each in writers:
        report = each.heard()
        while not isinstance(report, Told):
            report = each.heard()
        each.join()
        told.append(report)
    return told
