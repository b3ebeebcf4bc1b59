"""The status of a projection in words, and its levels."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from eventlogs.admin.projection_status import FINE, PASSING, URGENT, conditions, row
from eventlogs.projections.status import ProjectionStatus


def status_of(**more: Any) -> ProjectionStatus:
    return ProjectionStatus(
        **{
            "name": "x",
            "kind": "rows",
            "version": 1,
            "rows_version": 1,
            "is_rebuild_due": False,
            "partitions": 1,
            "position": 7,
            "positions_behind": 0,
            "age": timedelta(),
            "applied": 7,
            "rate": 0.0,
            "parked": 0,
            "waiting": 0,
            "awaiting_release": 0,
            "owners": (),
            **more,
        }
    )


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, ["up to date"]),
        ({"parked": 1_804}, ["1,804 parked", "up to date, except for 1,804 held logs"]),
        (
            {"waiting": 3, "awaiting_release": 2},
            [
                "1 waits for a retry",
                "2 wait for a release",
                "up to date, except for 3 held logs",
            ],
        ),
        (
            {"positions_behind": 1, "age": timedelta(seconds=3.2)},
            ["behind by 1 event, 3.2 s"],
        ),
        ({"positions_behind": 10_000, "at_least": True}, ["behind by at least 10,000 events"]),
        (
            {"at_least": True},
            ["behind by an unknown number of events"],
        ),
        ({"rows_version": None}, ["has never run"]),
        ({"problem": "No feed.", "positions_behind": None, "age": None}, ["No feed."]),
    ],
)
def test_the_status_of_a_projection_is_described_in_words(facts, said):
    assert [each.text for each in conditions(status_of(**facts), ())] == said


def test_only_conditions_that_need_action_are_urgent():
    held = status_of(parked=2, waiting=1, is_rebuild_due=True, rows_version=0)

    assert [each.level for each in conditions(held, ())] == [PASSING, PASSING, PASSING, FINE]
    found = conditions(held, {"parked", "rebuild-due"})
    assert [each.level for each in found] == [URGENT, URGENT, PASSING, FINE]
    assert conditions(status_of(), {"rebuild-failed"})[0].level == URGENT


def test_figures_have_separators_and_unknown_ones_are_marked():
    found = row(status_of(position=1_333_500, positions_behind=None, age=None), ())

    assert (found["position"], found["behind"], found["lag"]) == ("1,333,500", "?", "")
    assert found["run_by"] == "no worker"
    assert row(status_of(positions_behind=0, at_least=True), ())["behind"] == "?"
    assert row(status_of(kind="inline"), ())["run_by"] == "each append"
    assert row(status_of(owners=("a",), partitions=4), ())["run_by"] == "1 worker for 4 partitions"
