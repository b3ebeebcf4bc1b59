"""
One release of a project, as a process: what two of them do side by side is told to each.

    python -m tests.projections.release DATABASE FOLDER

The project is the module ``bookings`` in FOLDER. Each line of the standard input is a Python
expression in its names; its value is answered as a line of JSON, or the error that it raised.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds that an answer may take


class Release:
    """A process with one release; a context manager."""

    def __init__(self, database: str, folder: Path, source: str) -> None:
        """Begin with ``source`` as the module ``bookings``, written to ``folder``."""
        folder.mkdir(exist_ok=True)
        (folder / "bookings.py").write_text(source, encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, database, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def do(self, expression: str) -> Any:
        """Return the value of an expression there; a text ``Error: …`` where it raised one."""
        self.begin(expression)
        return self.answer()

    def begin(self, expression: str) -> None:
        """Let it evaluate an expression; ``answer`` waits for the value."""
        assert self._process.stdin
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        assert ready, "a release does not answer"
        line = self._process.stdout.readline()
        assert line, "a release has died"
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
    """Let something run beside what is asked, until the process ends."""
    threading.Thread(target=work, daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
