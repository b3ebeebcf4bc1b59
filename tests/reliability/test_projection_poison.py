"""
Events that raise, hang, exit, or eat the memory of whoever handles them.

They end up parked, with their log's later events held behind them in order; the other logs are
complete; and once the cause is mended, all of it is applied.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from eventlogs.models import ParkedEvent
from tests.accounts import Account, Deposited, Opened
from tests.projections.conftest import tables  # noqa: F401 (a fixture)
from tests.projections.readmodels import Balance, Balances
from tests.races import COMMITS
from tests.reliability.projection_worker import POISONS
from tests.reliability.projections import Workers, append_some, new_accounts, workers, wrong

pytestmark = [COMMITS, pytest.mark.usefixtures("tables")]

MEMORY = 1_500_000_000  # bytes of address space: what a worker needs, and some more
PATIENCE = 60.0  # seconds


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(Balances, "timeout", 2.0)


def run_until(crew: Workers, done, seconds: float = PATIENCE, **told) -> bool:
    """Start workers again that have died, as a supervisor does, until something is so."""
    end = time.monotonic() + seconds
    while not done():
        crew.running = [each for each in crew.running if each.poll() is None]
        if not crew.running:
            crew.start(max_attempts=3, **told)
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def is_parked() -> bool:
    return ParkedEvent.objects.filter(retry_at=None).exists()


@pytest.mark.parametrize("kind", POISONS)
def test_a_poisonous_event_is_parked_and_stops_no_other_log(kind, tmp_path: Path):
    poison = tmp_path / "poison"
    poison.touch()
    others = new_accounts(3)
    ill = Account.logs.create(Opened("ill"), Deposited(1))
    append_some(others, 10, random.Random(3))
    ill = Account.logs.append(ill, Deposited(POISONS[kind]), Deposited(2), Deposited(3))
    append_some(others, 10, random.Random(3))
    told = {"poison": str(poison), "memory": MEMORY}

    with workers() as crew:
        assert run_until(crew, is_parked, **told)
        append_some(others, 10, random.Random(3))
        Account.logs.append(ill, Deposited(4))
        assert run_until(crew, lambda: not Balances.lag().positions, **told)

        # The log is held where it was, and it alone.
        parked = ParkedEvent.objects.get()
        assert (parked.log_id, parked.index, parked.attempts) == (ill.log_id, 2, 3)
        row = Balance.objects.get(pk=ill.log_id)
        assert (row.balance, row.seen) == (1, 2)
        assert [each for each in wrong() if str(ill.log_id) not in each] == []

        poison.unlink()
        assert Balances.retry() == 1
        assert run_until(crew, lambda: not ParkedEvent.objects.exists(), **told)
        crew.stop()
    assert wrong() == []


def test_crashes_that_are_not_counted_beforehand_are_found(tmp_path: Path):
    poison = tmp_path / "poison"
    poison.touch()
    Account.logs.create(Opened("ill"), Deposited(POISONS["exits"]))

    with workers() as crew:
        told = {"poison": str(poison), "twin": "attempts_are_counted_afterwards"}
        assert not run_until(crew, is_parked, 8, **told)


def test_later_events_that_do_not_wait_are_found(tmp_path: Path):
    poison = tmp_path / "poison"
    poison.touch()
    ill = Account.logs.create(Opened("ill"), Deposited(POISONS["raises"]))
    with workers() as crew:
        told = {"poison": str(poison), "twin": "later_events_do_not_wait"}
        assert run_until(crew, is_parked, **told)
        Account.logs.append(ill, Deposited(2))
        assert run_until(crew, lambda: not Balances.lag().positions, **told)

    assert Balance.objects.get(pk=ill.log_id).balance == 2  # it went on without the one before
