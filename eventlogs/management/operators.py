"""Who runs a command, for the history of what was done with projections."""

from __future__ import annotations

import getpass


def operator() -> str:
    """Return the name of the system's user, or "" where it has none, as in many containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the latter two before Python 3.13
        return ""
