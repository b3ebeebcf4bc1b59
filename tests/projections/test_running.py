"""Running projections: one that fails does not stop the others."""

from __future__ import annotations

import pytest

from eventlogs.projections import declarations
from eventlogs.projections.declarations import BaseProjection, projection
from eventlogs.projections.running import run

tasks = pytest.importorskip("eventlogs.tasks", exc_type=ImportError)


class Counting(BaseProjection):
    @classmethod
    def catch_up(cls):
        return 3


class Failing(BaseProjection):
    @classmethod
    def catch_up(cls):
        raise ValueError("broken")


@pytest.fixture(autouse=True)
def _only_these():
    known = dict(declarations.projections)
    declarations.projections.clear()
    projection("failing")(Failing)
    projection("counting")(Counting)
    yield
    declarations.projections.clear()
    declarations.projections.update(known)


def test_named_projections_catch_up():
    assert run(["counting"]) == {"counting": 3}


def test_a_failure_is_raised_in_the_end():
    with pytest.raises(ExceptionGroup) as caught:
        run()

    assert [str(error) for error in caught.value.exceptions] == ["broken"]


def test_an_unknown_name_is_refused():
    with pytest.raises(KeyError):
        run(["unknown"])


def test_the_celery_task_runs_them():
    assert tasks.run_projections(["counting"]) == {"counting": 3}
