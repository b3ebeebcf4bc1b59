"""The checker finds each way in which rows can be wrong."""

from __future__ import annotations

import pytest
from django.db import connection

from eventlogs import LogState
from tests.races import COMMITS
from tests.races.events import batch
from tests.races.history import Outcome, kinds
from tests.races.stores import races

pytestmark = [pytest.mark.postgresql, pytest.mark.fence, COMMITS]

# All of it happens to log A, of two appends: "first" (2 events), "second" (3, with the key "k").
DAMAGE = {
    "doubled index": "UPDATE eventlogs_event SET index = 3 WHERE index = 4",
    "hole": "DELETE FROM eventlogs_event WHERE index = 1",
    "wrong version": "UPDATE eventlogs_eventlog SET version = version + 1",
    "event without its log": "DELETE FROM eventlogs_eventlog",
    "orphan key": "UPDATE eventlogs_idempotencykey SET count = count + 1",
    "unclaimed key": "DELETE FROM eventlogs_idempotencykey",
    "doubled key": """
        INSERT INTO eventlogs_idempotencykey
            (log_type, key, log_id, first_index, count, fingerprint, created_at)
        SELECT log_type, key, log_id, first_index, count, fingerprint, created_at
        FROM eventlogs_idempotencykey
    """,
    "positions run backwards": """
        UPDATE eventlogs_event SET position = -position
    """,
    "time runs backwards": """
        UPDATE eventlogs_event SET recorded_at = recorded_at - interval '1 ms' WHERE index = 3
    """,
    "lost": "DELETE FROM eventlogs_event WHERE index > 1",
    "doubled": """
        UPDATE eventlogs_event SET data = '{"marker": "first", "part": 0, "of": 2}'
        WHERE index = 2
    """,
    "torn batch": "UPDATE eventlogs_event SET index = 9 - index WHERE index IN (0, 4)",
    "wrong answer": "UPDATE eventlogs_event SET position = position + 10",
}


def two_appends() -> list[Outcome]:
    manager = races("postgresql")
    state = manager.create(*batch("first", 2))
    after = manager.append(state, *batch("second", 3), idempotency_key="k")
    return [
        Outcome(state.log_id, "first", 2, 0, state),
        Outcome(state.log_id, "second", 3, 2, after),
    ]


def test_a_sound_history_has_nothing_wrong(violations):
    assert violations(two_appends()) == []


@pytest.mark.one_table
@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_of_damage_is_found(scratch, kind):
    with scratch.cursor():
        outcomes = two_appends()
    assert scratch.violations(outcomes) == []
    for table in ("eventlogs_event", "eventlogs_idempotencykey"):
        scratch.drop_unique_constraints(table)

    with scratch.cursor() as cursor:
        cursor.execute(DAMAGE[kind])

    assert kinds(scratch.violations(outcomes))[kind] > 0


def test_an_acknowledged_append_that_is_not_there_is_lost(violations):
    outcomes = two_appends()
    state = LogState(outcomes[0].log_id, 6, 6)

    found = violations([*outcomes, Outcome(state.log_id, "third", 1, 5, state)])

    assert kinds(found) == {"lost": 1}


def test_the_checker_reads_the_schema_of_its_connection(scratch, violations):
    with scratch.cursor():
        two_appends()

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM eventlogs_event")
        assert cursor.fetchone() == (0,)
    assert violations() == []
