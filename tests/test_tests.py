"""Rules for the tests themselves: they wait for conditions, not for time to pass."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import conftest

ROOT = Path(__file__).resolve().parent

CLOCK = "the clock has to move on"
SLOW = "stands for something slow"
HANGS = "a handler that hangs has to be interrupted"
NOTHING = "what must not happen would happen in this time"
LATER = "the other side has to be waiting when this happens; nothing shows that it is"
PAUSE = "a pause of a campaign, between attempts or of a server"
CACHED = "MariaDB keeps its list of transactions for 0.1 seconds after each look"

# These may sleep: functions, and programs by the names that they are assigned to. Everything else
# waits with `tests.processes.until`.
ALLOWED = {
    "locks.py::a_session_waits": CACHED,
    "processes/waiting.py::until": "the poll itself",
    "servers.py::_start": "a poll of a module that Django's settings import",
    "projections/test_batches.py::before": HANGS,
    "projections/test_deadlines.py::test_the_interruption_cannot_be_caught_as_an_exception": HANGS,
    "projections/test_deadlines.py::test_a_timer_of_other_code_is_kept": NOTHING,
    "projections/test_deadlines.py::test_code_that_ends_in_time_is_not_interrupted": NOTHING,
    "projections/test_deadlines.py::test_code_that_takes_too_long_is_interrupted": HANGS,
    "projections/test_deadlines.py::"
    "test_code_that_swallows_the_interruption_is_interrupted_again": HANGS,
    "projections/test_deadlines.py::work": NOTHING,
    "projections/test_publisher.py::test_a_publish_that_takes_too_long_is_interrupted": HANGS,
    "projections/test_inline_bulk.py::"
    "test_a_unique_value_of_an_open_transaction_causes_no_deadlock": NOTHING,
    "projections/test_releases.py::SLEEPY": SLOW,
    "races/jobs.py::append_in_transactions": PAUSE,
    "reductions/test_reader.py::events": SLOW,
    "reductions/test_reader.py::other_process": LATER,
    "reductions/test_worker.py::test_a_connection_is_closed_when_there_was_nothing_to_do": CLOCK,
    "reductions/test_past.py::"
    "test_a_log_is_reduced_as_of_a_moment_by_when_events_were_recorded": CLOCK,
    "reductions/test_worker.py::script": SLOW,
    "reliability/broken.py::set": SLOW,
    "reliability/read_models.py::sleeps": HANGS,
    "reliability/test_projection_lost_connections.py::terminate": CACHED,
    "sessions.py::": HANGS,
    "reliability/test_cache_corruption.py::disturb": PAUSE,
    "reliability/test_cache_processes.py::events": SLOW,
    "reliability/test_cache_stampedes.py::events": SLOW,
    "reliability/test_projection_changing_workers.py::"
    "test_a_locked_checkpoint_ends_no_worker": NOTHING,
    "reliability/test_feed_replicas.py::write": PAUSE,
    "reliability/writers.py::_until_answered": PAUSE,
    "stores/test_interruptions.py::interruption": "the signal may be on its way to a thread",
    "test_ids.py::test_an_id_made_later_sorts_later": CLOCK,
    "test_servers.py::script": HANGS,
    "utils/test_loaded_modules.py::SLOW_READ": SLOW,
}


IN_A_TEXT = re.compile(r"\bsleep\(|pg_sleep\(|\bsleep \d")  # a program, SQL, a shell's command


def sleeping(path: Path) -> set[str]:
    """Return the functions, programs and statements of a module that sleep."""
    found = set()

    def walk(node: ast.AST, place: str) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                place = node.name
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_text(value):
                place = name
            case ast.ImportFrom(module="time" | "asyncio") if "sleep" in ast.unparse(node):
                raise AssertionError(f"{path}: write time.sleep or asyncio.sleep")
            case ast.Call(func=ast.Attribute(attr="sleep"), args=[ast.Constant(value=0)]):
                return  # yields to other threads
        is_call = isinstance(node, ast.Attribute) and node.attr == "sleep"
        is_wait = (
            isinstance(node, ast.Attribute)
            and node.attr == "wait"
            and ast.unparse(node.value).endswith("Event()")
        )
        is_text = isinstance(node, ast.Constant) and IN_A_TEXT.search(str(node.value))
        if is_call or is_wait or is_text:
            found.add(place)
        for each in ast.iter_child_nodes(node):
            walk(each, place)

    walk(ast.parse(path.read_text(encoding="utf-8")), "")
    return {f"{path.relative_to(ROOT).as_posix()}::{each}" for each in found}


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@pytest.mark.parametrize("name", ["SLOW", "ONCE", "RARELY_ON_SQLITE", "FIRST"])
def test_the_lists_of_tests_name_tests_that_there_are(name):
    for entry in getattr(conftest, name):
        path, _, test = entry.partition("::")
        assert (ROOT / path).exists(), entry
        assert f"def {test}" in (ROOT / path).read_text() if test else True, entry


def test_only_slow_tests_are_rarely_on_sqlite():
    assert [each for each in conftest.RARELY_ON_SQLITE if not each.startswith(conftest.SLOW)] == []


def test_tests_wait_for_conditions_and_not_for_time_to_pass():
    modules = set(ROOT.rglob("*.py")) - {Path(__file__).resolve()}
    found = set().union(*map(sleeping, modules))
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "def f(): time.sleep(1)",
        "async def f(): await asyncio.sleep(1)",
        "def f(): run('import time; time.sleep(1)')",
        "f = 'SELECT pg_sleep(1)'",
        "f = f'{x}; exec sleep 60'",
        "def f(): threading.Event().wait(1)",
    ],
)
def test_sleep_is_found(source, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_tests.ROOT", tmp_path)
    (tmp_path / "m.py").write_text(source)

    assert sleeping(tmp_path / "m.py") == {"m.py::f"}
