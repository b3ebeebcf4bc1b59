"""
Events of every harmful kind at once, among good ones, while a supervisor restarts dead workers.

Each ends up parked with its attempts counted, its log is held behind it, and other logs are
complete. After the cause is fixed and they are retried, all rows equal a replay.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import connection

from eventlogs import LogId
from eventlogs.models import ParkedEvent
from tests.processes import PATIENCE, Process, until
from tests.races import COMMITS
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import (
    DECLARED,
    POISON,
    POISONS,
    InlineLedgerRows,
    LedgerRow,
    LedgerRows,
    Letter,
    Letters,
    SharedLedgerRows,
    are_up_to_date,
    ledgers,
    wrong_letters,
    wrong_rows,
)
from tests.reliability.runners import Campaign

pytestmark = [COMMITS, pytest.mark.feed, pytest.mark.usefixtures("read_models")]

BROKEN = "tests.reliability.broken_projections."
MEMORY = 2**28  # bytes
BEFORE = 2  # entries before the harmful one
OF_A_SERVER = ("sleeps_in_the_database", "loses_the_connection", "breaks_the_transaction")


class Supervisor:
    """Restarts workers when they die."""

    def __init__(self, campaign: Campaign, count: int, *names: str, **conditions) -> None:
        self._start = lambda: campaign.run(*names, **conditions)
        self.workers: list[Process] = [self._start() for _ in range(count)]
        self.deaths = 0

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Restart workers until a condition holds."""

        def is_so() -> object:
            self._look_after()
            return condition()

        until(is_so, seconds=seconds)

    def _look_after(self) -> None:
        for worker in [each for each in self.workers if not each.is_alive]:
            assert worker.heard() is None
            self.workers.remove(worker)
            self.workers.append(self._start())
            self.deaths += 1

    def end(self) -> None:
        assert [worker.end() for worker in self.workers] == ["done"] * len(self.workers)


def kinds_here() -> list[str]:
    """Return the kinds of poison that this database has."""
    own = connection.vendor != "sqlite"
    return [kind for kind in POISONS if own or kind not in OF_A_SERVER]


def fill(kinds: list[str]) -> tuple[dict[LogId, str], list[LogId]]:
    """Create a ledger for each harmful kind, and good ones between them."""
    harmful: dict[LogId, str] = {}
    good: list[LogId] = []
    for kind in kinds:
        good.append(ledgers().create(Entered("good"), Entered("better")).log_id)
        entries = [Entered("good"), Entered("good"), Entered(POISON + kind), Entered("behind it")]
        harmful[ledgers().create(*entries).log_id] = kind
    return harmful, good


def add_to(log_ids: list[LogId]) -> int:
    states = [
        ledgers().append(each, Entered("later"), expected_version=len(ledgers().load(each)))
        for each in log_ids
    ]
    return states[-1].position


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        (LedgerRows.name, 1),
        (Letters.name, 1),
        pytest.param(LedgerRows.name, 2, marks=pytest.mark.long),
        pytest.param(SharedLedgerRows.name, 3, marks=pytest.mark.long),
        pytest.param(Letters.name, 2, marks=pytest.mark.long),
    ],
)
def test_harmful_events_are_parked_and_all_others_are_applied(name, workers, tmp_path):
    fixed = tmp_path / "fixed"
    harmful, good = fill(kinds_here())
    projection = DECLARED[name]

    with Campaign(fixed=str(fixed), memory=MEMORY, timeout=0.4) as campaign:
        supervisor = Supervisor(campaign, workers, name)
        supervisor.until(lambda: len(projection.parked()) == len(harmful))
        position = add_to([*harmful, *good])
        supervisor.until(lambda: projection.wait_for(position, timeout=0))

        for parked in ParkedEvent.objects.all():
            assert parked.is_parked
            assert (parked.index, parked.attempts) == (BEFORE, projection.max_attempts)
        assert done(name) == dict.fromkeys(harmful, BEFORE) | dict.fromkeys(good, 3)

        deaths = supervisor.deaths
        fixed.touch()
        supervisor.until(lambda: are_up_to_date(name))
        assert supervisor.deaths == deaths
        supervisor.end()

    assert (wrong_letters() if name == Letters.name else wrong_rows()) == []


def done(name: str) -> dict[LogId, int]:
    """Return how many events of each log are applied (or written letters about)."""
    if name == Letters.name:
        indexes: dict[LogId, set[int]] = {}
        # The crashed event wrote no letter; events before it may have written several.
        for log_id, index in Letter.objects.values_list("log_id", "index"):
            indexes.setdefault(log_id, set()).add(index)
        return {log_id: len(found) for log_id, found in indexes.items()}
    return dict(LedgerRow.objects.values_list("log_id", "entries"))


@pytest.mark.parametrize("kind", ["raises", "exits"])
def test_an_inline_row_that_cannot_be_swept_holds_only_its_log(kind, tmp_path):
    fixed = tmp_path / "fixed"
    harmful, good = fill([kind])  # by processes that do not know the projection

    with Campaign(fixed=str(fixed)) as campaign:
        supervisor = Supervisor(campaign, 1, InlineLedgerRows.name)
        supervisor.until(lambda: len(InlineLedgerRows.parked()) == 1)
        add_to(good)
        supervisor.until(lambda: done(InlineLedgerRows.name).get(good[-1]) == 3)

        fixed.touch()
        supervisor.until(lambda: are_up_to_date(InlineLedgerRows.name))
        supervisor.end()

    assert wrong_rows() == []
    assert len(harmful) == 1


def test_a_worker_that_ignores_the_death_of_the_previous_one_is_found():
    fill(["exits"])

    with Campaign(broken=BROKEN + "without_crash_detection") as campaign:
        supervisor = Supervisor(campaign, 1, LedgerRows.name)
        supervisor.until(lambda: supervisor.deaths > 2 * LedgerRows.max_attempts)

        assert not ParkedEvent.objects.exists()
        assert done(LedgerRows.name) == {}


def test_a_broken_version_that_does_not_hold_logs_is_found(tmp_path):
    fixed = tmp_path / "fixed"
    fill(["raises"])

    with Campaign(fixed=str(fixed), broken=BROKEN + "without_holding") as campaign:
        supervisor = Supervisor(campaign, 1, LedgerRows.name)
        supervisor.until(LedgerRows.parked)
        add_to(list(done(LedgerRows.name)))
        fixed.touch()
        supervisor.until(lambda: are_up_to_date(LedgerRows.name))

    assert len(wrong_rows()) == 1
