"""
Tools for the tests of projects.

``given(Loan, Granted(100)).when(repay, 30).then(Repaid(30))`` tests rules without a database,
``assert_appends`` checks what a block of code appends, and ``check_aggregate`` whether an aggregate
keeps the rules that eventlogs relies on. ``MemoryStore`` and ``RecordingCache`` need no server.

``eventlogs.testing.plugin`` is a plugin for pytest, ``strategies`` has strategies for Hypothesis,
``contracts`` has the suites that stores, caches and refreshers must pass.

Names are loaded when they are first used: pytest imports the plugin before Django is set up.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventlogs.testing.aggregate_checks import check_aggregate
    from eventlogs.testing.appends import assert_appends, assert_no_appends
    from eventlogs.testing.catching_up import acatch_up, catch_up
    from eventlogs.testing.clock import freeze_recorded_at
    from eventlogs.testing.memory import MemoryStore
    from eventlogs.testing.recording import RecordingCache
    from eventlogs.testing.stories import given

__all__ = [
    "MemoryStore",
    "RecordingCache",
    "acatch_up",
    "assert_appends",
    "assert_no_appends",
    "catch_up",
    "check_aggregate",
    "freeze_recorded_at",
    "given",
]

HOMES = {
    "MemoryStore": "memory",
    "RecordingCache": "recording",
    "acatch_up": "catching_up",
    "assert_appends": "appends",
    "assert_no_appends": "appends",
    "catch_up": "catching_up",
    "check_aggregate": "aggregate_checks",
    "freeze_recorded_at": "clock",
    "given": "stories",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
