"""What holds for the tests themselves: they wait for conditions, not for time to pass."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent

CLOCK = "the clock has to move on"
SLOW = "stands for something slow"
HANGS = "a handler that hangs has to be interrupted"
NOTHING = "what must not happen would happen in this time"
LATER = "the other side has to be waiting when this happens; nothing shows that it is"
PAUSE = "a pause of a campaign, between attempts or of a server"

# `time.sleep` is for these. Everything else waits with `tests.processes.until`.
ALLOWED = {
    "processes/waiting.py::until": "the poll itself",
    "servers.py::_start": "a poll of a module that Django's settings import",
    "contracts/test_caches.py::passing": CLOCK,
    "projections/test_batches.py::before": HANGS,
    "projections/test_catch_up.py::work": LATER,
    "projections/test_checkpoints.py::"
    "test_a_worker_that_stands_still_in_a_transaction_is_ended_by_the_server": HANGS,
    "projections/test_deadlines.py::test_it_cannot_be_caught_as_an_exception": HANGS,
    "projections/test_deadlines.py::test_somebody_elses_clock_is_left_alone": NOTHING,
    "projections/test_deadlines.py::test_what_is_done_in_time_is_not": NOTHING,
    "projections/test_deadlines.py::test_what_takes_too_long_is_interrupted": HANGS,
    "projections/test_deadlines.py::test_who_swallows_it_is_interrupted_again": HANGS,
    "projections/test_deadlines.py::work": NOTHING,
    "projections/test_declarations.py::catch_up_later": LATER,
    "projections/test_inline_bulk.py::"
    "test_a_value_that_an_open_transaction_has_taken_is_no_deadlock": NOTHING,
    "races/jobs.py::append_in_transactions": PAUSE,
    "reductions/test_reader.py::events": SLOW,
    "reductions/test_reader.py::other_process": LATER,
    "reductions/test_worker.py::test_a_connection_is_closed_when_there_was_nothing_to_do": CLOCK,
    "reliability/broken.py::set": SLOW,
    "reliability/read_models.py::sleeps": HANGS,
    "reliability/test_cache_lies.py::disturb": PAUSE,
    "reliability/test_cache_processes.py::events": SLOW,
    "reliability/test_cache_stampedes.py::events": SLOW,
    "reliability/test_projection_crowds.py::"
    "test_a_checkpoint_that_somebody_keeps_locked_ends_no_worker": NOTHING,
    "reliability/writers.py::_until_answered": PAUSE,
    "stores/test_interruptions.py::interruption": "the signal may be on its way to a thread",
    "test_ids.py::test_an_id_made_later_sorts_later": CLOCK,
    "test_logs.py::test_a_log_is_reduced_as_of_a_moment_by_when_events_were_recorded": CLOCK,
}


def sleeping(path: Path) -> set[str]:
    """Return the functions of a module that call ``sleep`` of ``time``, however it is imported."""
    found = set()

    def walk(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            assert "sleep" not in {each.name for each in node.names}, f"{path}: write time.sleep"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep":
            found.add(function)
        for each in ast.iter_child_nodes(node):
            walk(each, function)

    walk(ast.parse(path.read_text(encoding="utf-8")), "")
    return {f"{path.relative_to(ROOT).as_posix()}::{each}" for each in found}


def test_tests_wait_for_conditions_and_not_for_time_to_pass():
    found = set().union(*(sleeping(path) for path in ROOT.rglob("*.py")))
    assert found == set(ALLOWED)
