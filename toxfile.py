"""
A plugin of tox, found by its name: which interpreters and processors there are.

tox and uv look on PATH only. Interpreters of pyenv and uv that nobody activated are added to it
here, and variables tell tox.ini what was found: OLDEST_PYTHON and NEWEST_PYTHON are the ends, and
TEST_PROCESSES how many processes share the tests of one environment.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

MINORS = (11, 12, 13, 14)  # of Python 3: those that setup.cfg names


def installed_elsewhere() -> list[Path]:
    """Return the directories of interpreters that are installed but perhaps not on PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python")).expanduser()
    wanted = [f"3.{minor}.*" for minor in MINORS] + [f"cpython-3.{minor}.*" for minor in MINORS]
    return [path for name in wanted for home in (pyenv, uv) for path in home.glob(f"{name}/bin")]


def runs(python: str) -> bool:
    """Return whether an interpreter starts: pyenv's shims exist, but need not."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


# First on PATH, because a shim that does not run would hide the interpreter behind it.
os.environ["PATH"] = os.pathsep.join([*map(str, installed_elsewhere()), os.environ["PATH"]])
# An environment whose interpreter is missing is skipped, and said to be, not downloaded.
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")

found = [python for python in (f"python3.{minor}" for minor in MINORS) if runs(python)]
os.environ["OLDEST_PYTHON"] = found[0] if found else "python3"
os.environ["NEWEST_PYTHON"] = found[-1] if found else "python3"

# One more than there are processors, because many tests wait; but a database server takes only so
# many connections, and a test of races has a dozen.
os.environ.setdefault("TEST_PROCESSES", str(min((os.cpu_count() or 1) + 1, 4)))
