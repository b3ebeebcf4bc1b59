"""
The files that this process' modules were loaded from, as they were when that happened.

A deployment may replace files under a running process, which goes on with the code that it
has loaded. Whoever reads a module's file later must know whether it still is the file that was
loaded. ``look`` is called whenever an event or an aggregate is registered, and so soon after
their modules were loaded; it writes down the state of the files of all modules that are new. A
file that changed (by its ctime, which nobody can set) after the look before may have changed
after it was loaded, too: then its state is CHANGED, for good.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final, NamedTuple

SLACK: Final = 2.0  # seconds by which clocks of file systems may be behind, or coarse


class State(NamedTuple):
    """What the file system says of a file; equal for as long as nobody touches the file."""

    device: int = 0
    inode: int = 0
    size: int = 0
    modified: int = 0
    changed: int = 0


CHANGED: Final = State()
"""The state of a file that may have changed after it was loaded, or that is gone."""


def state_of(path: str) -> State:
    """Return the state of a file, or CHANGED where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - at each reduction
    except OSError:
        return CHANGED
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def spec_of(name: str) -> ModuleSpec | None:
    """Return the spec of a loaded module, without the code that lazy modules run on access."""
    try:
        spec = object.__getattribute__(sys.modules[name], "__dict__").get("__spec__")
    except (KeyError, AttributeError):
        return None
    return spec if isinstance(spec, ModuleSpec) else None


def file_of(name: str, spec: ModuleSpec | None) -> str | None:
    """Return the path of a module's file (of the archive that it is in), or None."""
    if name == "__main__":
        path = getattr(sys.modules["__main__"], "__file__", None)
        return None if path is None else str(Path(path).absolute())
    if spec is None or not spec.has_location:
        return None
    return getattr(spec.loader, "archive", None) or spec.origin


def look() -> None:
    """Write down the state of the files of all modules that were loaded since the last look."""
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
    """Return the state in which a loaded module's file was when it was loaded, or CHANGED."""
    return _loaded.get(name, CHANGED)


def is_doubtful(name: str) -> bool:
    """Return whether a module's file may have changed after it was loaded."""
    return name in _loaded and _loaded[name] == CHANGED


def is_older_than_process(path: str) -> bool:
    """Return whether a file is as it was when this process began."""
    return 0 < state_of(path).changed / 1e9 < BEGAN


def _newest_link(directory: str) -> float:
    """Return when the newest of the links on the way to a directory was made; 0 for none."""
    found = [each.lstat() for each in (Path(directory), *Path(directory).parents)]
    return max((each.st_ctime for each in found if stat.S_ISLNK(each.st_mode)), default=0.0)


def _began() -> float:
    """Return when this process began, in seconds since the epoch."""
    now = time.time()
    latest = now - time.process_time()
    try:
        # Two ticks later than it says: it is cut off, and no interpreter imports that soon.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) + 2
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return latest  # not Linux: what was loaded before eventlogs may be a little older
    return now - age if 0 <= age < 3_600 else latest


BEGAN: Final = _began()
_loaded: dict[str, State] = {}
_looked, _count = BEGAN, -1
look()
