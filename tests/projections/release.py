"""
One release of a project, as a process that evaluates the expressions of a test.

    python -m tests.projections.release DATABASE FOLDER

The project is the module ``bookings`` in FOLDER. Each line of the standard input is a Python
expression in its names; its value is answered as a line of JSON, or the error that it raised.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.processes import Program


class Release(Program):
    """A process with one release; a context manager."""

    def __init__(self, database: str, folder: Path, source: str) -> None:
        """Begin with ``source`` as the module ``bookings``, written to ``folder``."""
        folder.mkdir(exist_ok=True)
        (folder / "bookings.py").write_text(source, encoding="utf-8")
        super().__init__(
            *("-m", __name__, database, folder),
            stdin=subprocess.PIPE,
            environ={"PYTHONDONTWRITEBYTECODE": "1"},
        )

    def do(self, expression: str) -> Any:
        """Return the value of an expression there; a text ``Error: …`` where it raised one."""
        self.begin(expression)
        return self.answer()

    def begin(self, expression: str) -> None:
        """Start the evaluation of an expression; ``answer`` waits for the value."""
        self.write_line(expression)

    def answer(self) -> Any:
        line = self.line()
        assert line, self.story()
        return json.loads(line)


def main(database: str, folder: str) -> None:
    import django
    from django.conf import settings

    answers, sys.stdout = sys.stdout, sys.stderr
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    settings.DATABASES["default"]["NAME"] = database
    django.setup()
    sys.path.insert(0, folder)
    names: dict[str, Any] = {"__name__": "console", "background": background}
    exec("from bookings import *", names)
    for line in sys.stdin:
        try:
            value = eval(line, names)
        except BaseException as error:
            value = f"{type(error).__name__}: {error}"
        print(json.dumps(value, default=str), file=answers, flush=True)


def background(work: Any) -> None:
    """Run a function in a thread, until the process ends."""
    threading.Thread(target=work, daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
