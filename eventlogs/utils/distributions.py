"""
Installed distributions (packages), and the digests of their files.

A distribution is known by its RECORD, which lists its files and their digests
(https://packaging.python.org/en/latest/specifications/recording-installed-packages/).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

REQUIREMENT: Final = re.compile(r"^Requires-Dist: *([\w.-]+)(.*)$", re.M)
EXTRA: Final = re.compile(r"\bextra\s*==")


@dataclass(frozen=True)
class Distribution:
    """An installed package: its directory of metadata, and its RECORD."""

    info: Path
    record: str

    @property
    def name(self) -> str:
        """Its name and version."""
        return self.info.name.removesuffix(".dist-info")

    @cached_property
    def is_local(self) -> bool:
        """Whether it was installed from a directory (PEP 610): it is the project's own."""
        try:
            return "dir_info" in json.loads((self.info / "direct_url.json").read_text())
        except (OSError, ValueError):
            return False

    @cached_property
    def digest(self) -> str:
        """A digest of the digests of its files."""
        # Files elsewhere are scripts, which name the interpreter's path. RECORD's own directory
        # says how it was installed.
        files = sorted(
            line
            for line in self.record.splitlines()
            if "sha256=" in line
            and ".dist-info/" not in line
            and not line.startswith(("..", "__editable__"))
        )
        return hashlib.sha256("\n".join(files).encode()).hexdigest()

    @cached_property
    def requires(self) -> list[str]:
        """The names of the distributions that it requires, whatever its extras are."""
        metadata = (self.info / "METADATA").read_text("utf-8", "replace").partition("\n\n")[0]
        return [name for name, rest in REQUIREMENT.findall(metadata) if not EXTRA.search(rest)]


def installed(name: str) -> Distribution | None:
    """Return the distribution of a name that an import would find first, or None."""
    for directory in sys.path:
        if (info := _infos(directory).get(_normal(name))) is not None:
            return _recorded(info)
    return None


def of_file(path: str) -> Distribution | None:
    """Return the distribution whose RECORD lists a file, or None."""
    directory = max(
        (each for each in sys.path if each and path.startswith(each + os.sep)), key=len, default=""
    )
    if not directory:
        return None
    file = Path(path).relative_to(directory).as_posix()
    infos = _infos(directory)
    top = re.split(r"[/.]", file)[0]
    likely = infos.get(_normal(top))
    for info in (*filter(None, (likely, _tops.get((directory, top)))), *infos.values()):
        found = _recorded(info)
        if found is not None and f"\n{file},sha256=" in found.record:
            _tops[directory, top] = info
            return found
    return None


@lru_cache(maxsize=256)
def _infos(directory: str) -> dict[str, Path]:
    """Return the metadata of the distributions in a directory, by their normalized names."""
    try:
        found = sorted(Path(directory).glob("*.dist-info"))
    except OSError:
        return {}
    return {_normal(each.name.partition("-")[0]): each for each in found}


@lru_cache(maxsize=2_048)
def _recorded(info: Path) -> Distribution | None:
    try:
        return Distribution(info, "\n" + (info / "RECORD").read_text("utf-8", "replace"))
    except OSError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


_tops: dict[tuple[str, str], Path] = {}  # metadata, by directory and top-level name
