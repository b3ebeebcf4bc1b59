"""
One release of a project, as a process that evaluates the expressions of a test.

The project is the module ``bookings`` in a folder. The test sends Python expressions in its names,
and gets the value of each as JSON, or the error that it raised.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import Any, Self

from eventlogs.projections import releases
from tests.overriding import override
from tests.processes import Place, Processes
from tests.processes.forks import Signal


class Release:
    """A process with one release, among the processes of a test; a context manager."""

    def __init__(self, processes: Processes, folder: Path, source: str) -> None:
        """Begin with ``source`` as the module ``bookings``, written to ``folder``."""
        folder.mkdir(exist_ok=True)
        (folder / "bookings.py").write_text(source, encoding="utf-8")
        self._process = processes.start(evaluate, str(folder), dict(os.environ))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()

    def do(self, expression: str) -> Any:
        """Return the value of an expression there; a text ``Error: …`` where it raised one."""
        self.begin(expression)
        return self.answer()

    def begin(self, expression: str) -> None:
        """Start the evaluation of an expression; ``answer`` waits for the value."""
        self._process.tell(expression)

    def answer(self) -> Any:
        answer = self._process.heard()
        assert answer, self._process.story()
        return json.loads(answer)


def evaluate(place: Place, folder: str, environ: dict[str, str]) -> None:
    """Import the project, and answer expressions until the test ends."""
    # Processes of one release may share this mark, if they are forks of one. These are of two.
    override(releases, MARK=secrets.token_hex(8))
    os.environ.update(environ)
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    names: dict[str, Any] = {"__name__": "console", "background": background}
    exec("from bookings import *", names)
    while (expression := place.hear()) is not Signal.END:
        try:
            value = eval(expression, names)
        except BaseException as error:
            value = f"{type(error).__name__}: {error}"
        place.say(json.dumps(value, default=str))


def background(work: Any) -> None:
    """Run a function in a thread, until the process ends."""
    threading.Thread(target=work, daemon=True).start()
