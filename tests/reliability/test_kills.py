"""
Writers that are killed, and server processes that are stopped, while they append.

No acknowledged event is lost, none is stored twice, and no log has a hole.
"""

from __future__ import annotations

import random

import pytest
from django.db import connection

from tests.processes import ProcessFailed
from tests.races import COMMITS
from tests.races.history import kinds
from tests.reliability.writers import APPLICATION, Writers

pytestmark = [pytest.mark.postgresql, COMMITS]

BROKEN = "tests.races.broken."
PAUSE = 0.1  # seconds between two stops


def stop_one_backend(how: str) -> None:
    """Have the server stop one writer's statement, or its whole connection."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT {how}(pid) FROM pg_stat_activity
            WHERE application_name = %s AND datname = current_database()
            ORDER BY random() LIMIT 1
            """,
            [APPLICATION],
        )


def disturb(writers: Writers, stops: int) -> None:
    """
    Let them write, and stop one so many times, in one of three ways.

    Go on until there are enough outcomes, and intents of a killed writer: a busy machine takes
    longer for them.
    """
    for _ in range(stops):
        writers.work(PAUSE)
        match random.randrange(3):
            case 0:
                writers.kill_one()
            case 1:
                stop_one_backend("pg_terminate_backend")
            case 2:
                stop_one_backend("pg_cancel_backend")
    while len(writers.outcomes) <= stops or not writers.taken_over:
        writers.work_until(len(writers.outcomes) + 1)
        writers.kill_one()
    writers.finish()


@pytest.mark.parametrize(
    ("store", "stops"),
    [
        ("postgresql", 30),
        ("mixed", 30),
        *(
            pytest.param(store, 300, marks=pytest.mark.long)
            for store in ("postgresql", "portable", "mixed")
        ),
    ],
)
def test_acknowledged_appends_are_stored_once_after_any_kill(violations, new_logs, store, stops):
    with Writers(dict(connection.settings_dict), store, new_logs(3), count=8) as writers:
        disturb(writers, stops)

    assert violations(writers.outcomes) == []


def test_answers_before_the_commit_are_found(violations, new_logs):
    def lost() -> int:
        logs, broken = new_logs(8), BROKEN + "AcknowledgesBeforeCommit"
        try:
            with Writers(dict(connection.settings_dict), broken, logs, count=2) as writers:
                for _ in range(6):
                    # Ten answers lead to a commit: a few more, and some are probably not committed.
                    writers.work_until(len(writers.outcomes) + 25)
                    writers.kill_one()
        except ProcessFailed:
            return 0  # its successor appends for a version that was lost, and is refused
        return kinds(violations(writers.outcomes))["lost"]

    assert any(lost() for _ in range(10))


def test_retries_that_are_stored_again_are_found(violations, new_logs):
    def doubled() -> int:
        logs, broken = new_logs(3), BROKEN + "ForgetsKeys"
        # A long queue for few logs: most are killed while they wait, and appended all the same.
        with Writers(dict(connection.settings_dict), broken, logs, count=8) as writers:
            while not writers.taken_over or len(writers.outcomes) < 200:
                writers.work_until(len(writers.outcomes) + 10)
                writers.kill_one()
            writers.finish()
        return kinds(violations(writers.outcomes))["doubled"]

    # A kill has to fall between a commit and its answer, which may happen in none of one round.
    assert any(doubled() for _ in range(10))
