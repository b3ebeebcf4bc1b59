"""A process that forgets a person by the command, and is killed at a step of it."""

from __future__ import annotations

import signal
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from typing import Any

from django.core.management import execute_from_command_line

from tests.processes import Place
from tests.processes.stops import Stop, order, passing

SUFFIXES = ("before", "after")
STEPS = (
    "the key is destroyed",
    "entries are deleted",
    "errors are cleared",
    "unique values are released",
    "a row is made anew",
    "the receipt is written",
)


def install(stack: ExitStack) -> None:
    """Wrap the steps, and declare the read models."""
    from django.conf import settings

    from eventlogs.caches import backends
    from eventlogs.operations import erasure, receipts, unique_values
    from eventlogs.privacy import DatabaseKeyStore
    from eventlogs.projections import rebuild
    from tests.guests import SETTINGS
    from tests.operations.guest_rows import KNOWN

    cache = "redis" if "redis" in settings.CACHES else "default"
    settings.EVENTLOGS = {**SETTINGS, "CACHE": cache}
    stack.enter_context(KNOWN.declared())
    _around(DatabaseKeyStore, "destroy", STEPS[0])
    _around(backends, "forget_many", STEPS[1])
    _around(erasure, "forget_failures", STEPS[2])
    _around(unique_values, "settle_all", STEPS[3])
    _around(rebuild, "rebuild_log", STEPS[4])
    _around(receipts, "write", STEPS[5])


def _around(owner: Any, name: str, step: str) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        passing(f"before {step}")
        answer = original(*args, **options)
        passing(f"after {step}")
        return answer

    setattr(owner, name, wrapped)


def run(place: Place, arguments: list[str], step: str | None, time: int) -> tuple[object, str]:
    """
    Run ``manage.py *arguments``; return its exit code and its output.

    The process is killed when it comes to ``step`` for the ``time``-th time.
    """
    if step:
        order(Stop(step, time, signal.SIGKILL), lambda step: None)
    code: object = 0
    with ExitStack() as stack, redirect_stdout(StringIO()) as output:
        install(stack)
        try:
            execute_from_command_line(["manage.py", *arguments])
        except SystemExit as end:
            code = end.code
    return code, output.getvalue()
