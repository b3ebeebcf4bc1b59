"""The directory of databases that end with the tests: in memory, where there is room for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

IN_MEMORY = Path("/dev/shm")  # Linux; in containers it is often small, or runs no programs
ENOUGH = 4 * 2**30  # bytes
VARIABLE = "EVENTLOGS_TEST_SCRATCH"


def scratch() -> str:
    """
    Return the directory. All processes of a run have the same one.

    Each test that commits empties tables, for which PostgreSQL removes and creates files. In memory
    the tests need half as much time of the system.
    """
    return os.environ.setdefault(VARIABLE, str(IN_MEMORY) if has_room(IN_MEMORY) else on_disk())


def on_disk() -> str:
    """Return the directory for files that are to be on a disk."""
    # A path of a socket has about 100 characters at most, and macOS' own prefix is long.
    return tempfile.gettempdir() if len(tempfile.gettempdir()) < 40 else "/tmp"


def has_room(directory: Path) -> bool:
    """Return whether a directory in memory can have databases, and programs of servers."""
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        return False
    may_run = not os.statvfs(directory).f_flag & os.ST_NOEXEC
    return may_run and shutil.disk_usage(directory).free >= ENOUGH
