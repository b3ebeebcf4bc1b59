"""
Files of seals, leaves and proofs.

A file of seals is only appended to, one line at a time, under a lock, and synced to the disk. A
line that a killed process has left unfinished is cut off before the next one is written: nobody was
told of that seal. A whole seal without a line feed stays, and gets one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from django.core.files import locks

from eventlogs.exceptions import InvalidSeal
from eventlogs.seals.documents import Seal, seal_of, seals_in
from eventlogs.seals.leaves import Leaf, leaves_in

PART = ".part"  # suffix of an incomplete file


class SealFile:
    """A file of seals that is locked: the last seal in it, and a way to append more."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        whole, number, line, rest = 0, 0, b"", b""
        for each in stream:
            if not each.endswith(b"\n"):
                rest = each
                break
            whole, number, line = whole + len(each), number + 1, each
        self.last: Seal | None = seal_of(line, number) if number else None
        unended = _seal_or_none(rest)
        if unended is None:
            stream.truncate(whole)
        stream.seek(0, os.SEEK_END)
        if unended is not None:
            self.last = unended
            stream.write(b"\n")

    def append(self, seal: Seal) -> None:
        """Append a seal, and return when it is on the disk."""
        self._stream.write(seal.line.encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.last = seal


def _seal_or_none(line: bytes) -> Seal | None:
    """Return the seal of a line that has no end, written by hand or by another program."""
    try:
        return seal_of(line)
    except InvalidSeal:
        return None


@contextmanager
def locked(path: Path) -> Iterator[SealFile]:
    """Open a file of seals, which is created if it is missing, and lock it for this process."""
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(number, "r+b") as stream:
        locks.lock(stream, locks.LOCK_EX)
        try:
            yield SealFile(stream)
        finally:
            locks.unlock(stream)


@contextmanager
def leaves_file(path: Path) -> Iterator[BinaryIO]:
    """
    Open a new file for leaves, which gets its name when it is complete.

    Raise FileExistsError if there is one of this name.
    """
    part = path.with_name(path.name + PART)
    if path.exists():
        raise FileExistsError(17, "it exists already", str(path))
    with part.open("wb") as stream:  # a killed process may have left one
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)


def read_seals(path: Path) -> list[Seal]:
    """Return the seals of a file; raise InvalidSeal for a line that is none."""
    with path.open("rb") as stream:
        return list(seals_in(stream))


def read_leaves(path: Path) -> Iterator[Leaf]:
    """Yield the leaves of a file; raise InvalidSeal for a line that is none."""
    with path.open("rb") as stream:
        yield from leaves_in(stream)
