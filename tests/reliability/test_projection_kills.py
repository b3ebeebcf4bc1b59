"""
Runners that are killed at each step, while writers append and some events fail now and then.

In the end each row equals a replay of its log, so each event was applied once and in
order, and the reactor was called for each at least once.
"""

from __future__ import annotations

import random
import signal
from itertools import cycle, islice

import pytest

from eventlogs import LogId
from eventlogs.feed.sources import partition_of
from tests.processes import Process, Stop, until
from tests.races import COMMITS
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import (
    LedgerRows,
    Letters,
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

STEPS = [
    "before the handler",
    "in the handler",
    "after the handler",
    "before the rows are written",
    "after the rows are written",
    "before the checkpoint moves",
    "after the checkpoint moves",
    "before the commit",
    "after the commit",
    "after the reaction",
    "after a log is held",
    "after an attempt is counted",
    "before the reaction",
    "after a failure is noted",
    "before an event is parked",
    "after an event is parked",
    "before a log is let go",
    "after a log is let go",
    "before a log is held",
    "before an attempt is counted",
]


def new_ledgers(count: int) -> list[LogId]:
    """Create ledgers, equally many in each of four partitions."""
    made = []
    for number in range(count):
        log_id = ledgers().new_id()
        while partition_of(log_id.uuid, 4) != number % 4:
            log_id = ledgers().new_id()
        made.append(ledgers().create(Entered("the first"), log_id=log_id).log_id)
    return made


def write_to(campaign: Campaign, log_ids: list[LogId], count: int = 2) -> list[Process]:
    pause = 0.06
    return [campaign.begin(write, f"writer-{n}", log_ids, pause, 0.04) for n in range(count)]


def kill_at(campaign: Campaign, step: str, names: tuple[str, ...], *, time: int = 1) -> None:
    """Start a runner that is killed at a step, and wait for its end."""
    runner = campaign.run(*names, stop=Stop(step, time, signal.SIGKILL))

    def is_there() -> bool:
        # The check retries parked events: if all ledgers were held, no step would be passed.
        return runner.pipe.poll(0.3) or (are_up_to_date(*names) and False)

    until(is_there, what=step)
    assert runner.heard() == step
    runner.join()
    assert runner.exit_code == -signal.SIGKILL


def settle(campaign: Campaign, *names: str) -> None:
    """Let an undisturbed runner do the remaining work, and end it."""
    runner = campaign.run(*names)
    until(lambda: are_up_to_date(*names))
    assert runner.end() == "done"


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.long)])
def test_each_event_is_applied_once_if_a_runner_is_killed_at_any_step(kills):
    names = (LedgerRows.name, Letters.name)
    log_ids = new_ledgers(6)

    with Campaign() as campaign:
        writers = write_to(campaign, log_ids)
        for step in islice(cycle(STEPS), kills):
            kill_at(campaign, step, names, time=random.randint(1, 2))
        assert sum(writer.end() for writer in writers) > kills
        settle(campaign, *names)

    assert wrong_rows() == []
    assert wrong_letters() == []


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.long)])
def test_each_event_is_applied_once_if_one_of_several_runners_is_killed_at_any_step(kills):
    names = (SharedLedgerRows.name, SharedLetters.name)
    log_ids = new_ledgers(8)

    with Campaign() as campaign:
        writers = write_to(campaign, log_ids)
        others = [campaign.run(*names) for _ in range(2)]
        for step in islice(cycle(STEPS[::3] + STEPS[1::3] + STEPS[2::3]), kills):
            # So that its share includes the step.
            kill_at(campaign, step, names[1:] if "reaction" in step else names[:1])
        assert sum(writer.end() for writer in writers) > kills
        until(lambda: are_up_to_date(*names))
        assert [other.end() for other in others] == ["done"] * 2

    assert wrong_rows() == []
    assert wrong_letters() == []


def test_rows_that_commit_apart_from_the_checkpoint_are_found():
    log_ids = new_ledgers(3)

    with Campaign(broken=BROKEN + "rows_and_checkpoint_apart") as campaign:
        kill_at(campaign, "between the commits", (LedgerRows.name,))
        settle(campaign, LedgerRows.name)

    assert len(wrong_rows()) == len(log_ids)


def test_a_reactor_that_is_called_after_its_checkpoint_moved_is_found():
    new_ledgers(3)

    with Campaign(broken=BROKEN + "reacts_afterwards") as campaign:
        kill_at(campaign, "before the reaction", (Letters.name,))
        settle(campaign, Letters.name)

    assert len(wrong_letters()) == 1
