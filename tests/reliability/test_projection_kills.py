"""
Workers that are killed at every step, and ones that are paused beyond their leases.

Whatever happens to them, the read model is what a replay gives, each event counted once.
"""

from __future__ import annotations

import random
import signal
import subprocess

import pytest
from django.db import connection

from eventlogs.models import Checkpoint
from tests.accounts import Account
from tests.projections import readmodels
from tests.projections.conftest import tables  # noqa: F401 (a fixture)
from tests.projections.readmodels import Balances, Letters
from tests.races import COMMITS
from tests.reliability.projection_worker import Journal
from tests.reliability.projections import (
    append_some,
    eventually,
    new_accounts,
    workers,
    write,
    wrong,
)
from tests.reliability.team import Team

pytestmark = [COMMITS, pytest.mark.usefixtures("tables")]

STEPS = [
    *("before read", "after read", "before handler", "before rows", "after rows"),
    *("before checkpoint", "after checkpoint", "before commit", "after commit"),
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(Balances, "timeout", 2.0)
    monkeypatch.setattr(Balances, "backoff", 0.01)


def end_of(worker: subprocess.Popen[bytes], seconds: float) -> int:
    """Return how a worker has ended; one that has met with no accident is killed at rest."""
    try:
        return worker.wait(seconds)
    except subprocess.TimeoutExpired:
        worker.kill()
        return worker.wait()


def settle() -> None:
    """Let the events that were in the hands of the dead come, and all that waits behind them."""
    assert eventually(lambda: (Balances.catch_up(), Balances.wait_for(last(), 0))[1])


def last() -> int:
    from eventlogs import Feed

    return Feed().settled()


def kill_workers(rounds: int, choices: random.Random, **told) -> int:
    log_ids, killed = new_accounts(8), 0
    with workers() as crew:
        for number in range(rounds):
            append_some(log_ids, 30, choices)
            told |= {"at": STEPS[number % len(STEPS)], "after": choices.randrange(4)}
            worker = crew.start(batch_size=choices.choice([5, 20, 1_000]), **told)
            assert end_of(worker, 4) == -signal.SIGKILL
            killed += 1
    return killed


@pytest.mark.parametrize("rounds", [9, pytest.param(108, marks=pytest.mark.long)])
def test_a_read_model_is_right_whoever_is_killed_where(rounds):
    assert kill_workers(rounds, random.Random(4)) == rounds

    settle()
    assert wrong() == []


@pytest.mark.postgresql
def test_a_checkpoint_that_commits_after_the_rows_is_found():
    kill_workers(9, random.Random(4), twin="checkpoint_in_a_transaction_of_its_own")

    settle()
    assert wrong() != []


@pytest.mark.parametrize("rounds", [4, pytest.param(20, marks=pytest.mark.long)])
def test_a_kill_while_an_event_is_retried_leaves_it_counted_and_once(rounds, tmp_path):
    poison = tmp_path / "poison"
    poison.touch()
    [ada, bob] = new_accounts(2)
    choices = random.Random(5)
    with workers() as crew:
        for number in range(rounds):
            append_some([ada, bob], 5, choices)
            places = ["before begin", "after begin", "after hold", "before hold"]
            at = places[number % len(places)]
            worker = crew.start(at=at, poison=str(poison), max_attempts=100)
            end_of(worker, 3)

    settle()
    assert wrong() == []


@pytest.mark.postgresql
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.long)])
def test_many_workers_come_and_go_and_share_partitions(seconds):
    choices, log_ids = random.Random(6), new_accounts(16)
    told = {"partitions": 4, "batch_size": 20}
    with workers() as crew, Team(dict(connection.settings_dict), {}) as team:
        team.add(2, write, log_ids)
        team.go()
        for number in range(seconds * 2):
            while len(crew.running) < 3:
                crew.start(**told)
            if number % 2:
                victim = choices.choice(crew.running)
                crew.running.remove(victim)
                victim.send_signal(choices.choice([signal.SIGKILL, signal.SIGTERM]))
                victim.wait(30)
            eventually(lambda: False, 0.5)
        assert sum(team.finish()) > 0
        crew.stop()

    assert Checkpoint.objects.filter(projection="balances").count() == 4
    settle()
    assert wrong() == []
    assert set(Checkpoint.objects.values_list("owner", flat=True)) == {""}


@pytest.mark.postgresql
@pytest.mark.parametrize("at", ["after read", "before handler", "after rows", "before commit"])
def test_a_worker_that_is_paused_beyond_its_lease_changes_nothing(at):
    assert paused_and_woken(at) == []


@pytest.mark.postgresql
def test_a_worker_that_does_not_look_at_its_token_is_found():
    assert paused_and_woken("after read", twin="token_is_not_looked_at") != []


def paused_and_woken(at: str, **told) -> list[str]:
    """Pause a worker in a batch, let another one take over, wake it; return what is wrong."""
    log_ids = new_accounts(4)
    append_some(log_ids, 40, random.Random(7))
    with workers() as crew:
        sleeper = crew.start(at=at, after=0, how="SIGSTOP", **told)
        assert eventually(lambda: state_of(sleeper.pid) == "T")
        other = crew.start()
        # Inside of a transaction it holds the checkpoint's row, until PostgreSQL ends its session.
        assert eventually(lambda: not Balances.lag().positions, 15)
        append_some(log_ids, 20, random.Random(8))

        sleeper.send_signal(signal.SIGCONT)
        assert eventually(lambda: not Balances.lag().positions, 15)
        eventually(lambda: False, 1.0)
        crew.stop()
        assert other.returncode == 0
    settle()
    return wrong()


def state_of(pid: int) -> str:
    """Return the state of a process, as ps has it."""
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rsplit(")", 1)[1].split()[0]


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.long)])
def test_a_reactor_is_called_at_least_once_for_each_event(rounds, tmp_path, monkeypatch):
    monkeypatch.setattr(Letters, "timeout", 2.0)
    monkeypatch.setattr(Letters, "backoff", 0.01)
    journal = tmp_path / "journal"
    log_ids, choices = new_accounts(3), random.Random(9)
    with workers() as crew:
        for number in range(rounds):
            append_some(log_ids, 6, choices)
            at = ["before handler", "before checkpoint", "after commit"][number % 3]
            end_of(crew.start("letters", at=at, after=3, journal=str(journal)), 3)
    append_some(log_ids, 3, choices)
    monkeypatch.setattr(readmodels, "reactions", Journal(journal))

    assert eventually(lambda: (Letters.catch_up(), Letters.wait_for(last(), 0))[1])

    called = [int(line) for line in journal.read_text().splitlines()]
    for log_id in log_ids:
        positions = [record.position for record in Account.logs.load(log_id)][1:]
        # As often as need be, and for the first time in order.
        assert list(dict.fromkeys(each for each in called if each in positions)) == positions
    assert len(called) > len(set(called))
