"""
The state of each loaded module's file at the time at which the module was loaded.

A deployment may replace files under a running process, which continues with the code that it has
loaded. Code that reads a module's file later must know whether it is still the loaded file.

``look`` records the state of the files of all modules that are new since the last call. It is
called at each registration of an event or an aggregate, and so soon after their modules were
loaded. A file that changed after the previous call (by its ctime, which no program can set) may
have changed after it was loaded: its state is CHANGED, and stays so.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final, NamedTuple

SLACK: Final = 2.0  # seconds by which the clock of a file system may be late or imprecise


class State(NamedTuple):
    """The file system's record of a file, which is equal as long as the file is not changed."""

    device: int = 0
    inode: int = 0
    size: int = 0
    modified: int = 0
    changed: int = 0


CHANGED: Final = State()
"""The state of a file that may have changed after it was loaded, or that does not exist."""


def state_of(path: str) -> State:
    """Return the state of a file, or CHANGED if it does not exist."""
    try:
        found = os.stat(path)  # noqa: PTH116 - runs at each reduction, and Path is slower
    except OSError:
        return CHANGED
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def spec_of(name: str) -> ModuleSpec | None:
    """Return the spec of a loaded module, without running the code of a lazily loaded one."""
    try:
        spec = object.__getattribute__(sys.modules[name], "__dict__").get("__spec__")
    except (KeyError, AttributeError):
        return None
    return spec if isinstance(spec, ModuleSpec) else None


def file_of(name: str, spec: ModuleSpec | None) -> str | None:
    """Return the path of a module's file, or of the archive that contains it, or None."""
    if name == "__main__":
        path = getattr(sys.modules["__main__"], "__file__", None)
        return None if path is None else str(Path(path).absolute())
    if spec is None or not spec.has_location:
        return None
    return getattr(spec.loader, "archive", None) or spec.origin


def look() -> None:
    """Record the state of the files of all modules that were loaded since the last call."""
    global _count, _looked
    count, now = len(sys.modules), time.time()
    if count == _count:
        return
    links: dict[str, float] = {}
    for name in list(sys.modules):
        if name not in _loaded and (path := file_of(name, spec_of(name))) is not None:
            state, directory = state_of(path), path.rpartition(os.sep)[0]
            if directory not in links and state != CHANGED:
                links[directory] = _newest_link(directory)
            if state == CHANGED or max(state.changed / 1e9, links[directory]) >= _looked:
                state = CHANGED
            _loaded[name] = state
    _count, _looked = count, max(_looked, now - SLACK)


def loaded(name: str) -> State:
    """Return the state of a module's file at the time of loading, or CHANGED."""
    return _loaded.get(name, CHANGED)


def is_doubtful(name: str) -> bool:
    """Return whether a module's file may have changed after it was loaded."""
    return name in _loaded and _loaded[name] == CHANGED


def is_older_than_process(path: str) -> bool:
    """Return whether a file has not changed since this process began."""
    return 0 < state_of(path).changed / 1e9 < BEGAN


def _newest_link(directory: str) -> float:
    """Return the ctime of the newest symbolic link in the path of a directory, 0 for none."""
    found = [each.lstat() for each in (Path(directory), *Path(directory).parents)]
    return max((each.st_ctime for each in found if stat.S_ISLNK(each.st_mode)), default=0.0)


def _began() -> float:
    """Return the time at which this process began, in seconds since the epoch."""
    latest = time.time() - time.process_time()
    try:
        # Add two ticks: the kernel rounds down, and no interpreter imports a module earlier.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) + 2
        seconds = ticks / os.sysconf("SC_CLK_TCK")  # from the boot to the start of the process
        # Read both clocks in succession. Each pause between them, such as that of a busy machine
        # during the read of a file, makes the result earlier, and files written just before the
        # process began would count as changed. In the other order it would be too late: unsafe.
        now = time.time()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - seconds
    except (OSError, ValueError, IndexError, AttributeError):
        return latest  # not Linux: a little later than the true time
    return now - age if 0 <= age < 3_600 else latest


BEGAN: Final = _began()
_loaded: dict[str, State] = {}
_looked, _count = BEGAN, -1
look()
