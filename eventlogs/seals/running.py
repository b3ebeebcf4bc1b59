"""
Making a seal and keeping it: in a file, in the log of seals, or in both. For commands and tasks.

Seals name the one before them. With a log of seals that is the log's last one, and a file follows
the log: it gets the seals that it lacks. Without the log it is the file's last one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from django.db import router
from django.utils.module_loading import import_string

from eventlogs.exceptions import SealUnavailable
from eventlogs.models import EventLog
from eventlogs.seals.documents import Seal
from eventlogs.seals.files import SealFile, leaves_file, locked
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.making import make_seal


def seal(
    *,
    using: str | None = None,
    output: str | Path | None = None,
    append: bool = False,
    leaves: str | Path | None = None,
) -> Seal:
    """
    Make a seal of a database, keep it, and return it.

    ``output`` is a file of seals, to which it is appended. ``append`` appends it to the log of
    seals as well, from which a reactor can send it away. ``leaves`` is a new file for its leaves.

    Raise what ``make_seal`` raises, ConcurrentAppend if another process has appended a seal
    meanwhile, InvalidSeal if the file's last line is no seal, and OSError for a file that cannot be
    written. After an error there is no seal, but after an OSError it may be in the log of seals:
    the next call writes it to the file. The leaves are on the disk before the seal is kept, so
    after an error there may be leaves without a seal.
    """
    using = using or router.db_for_write(EventLog)
    with ExitStack() as stack:
        file = stack.enter_context(locked(Path(output))) if output is not None else None
        write: Callable[[Leaf], None] | None = None
        complete = stack.enter_context(ExitStack())
        if leaves is not None:
            stream = complete.enter_context(leaves_file(Path(leaves)))

            def write(leaf: Leaf) -> None:
                stream.write(leaf.text + b"\n")

        # Only here: the import declares the log of seals.
        log = import_string("eventlogs.seals.appended.SealLog")(using) if append else None
        previous, version = log.last() if log is not None else (None, 0)
        if log is None and file is not None:
            previous = file.last
        if log is not None and file is not None:
            _catch_up(file, log)
        made = make_seal(using=using, previous=previous, tell=write)
        # First the leaves: they cannot be made again later, and a seal can.
        complete.close()
        if log is not None:
            log.append(made, version=version)
        if file is not None:
            file.append(made)
    return made


def _catch_up(file: SealFile, log: Any) -> None:
    """Write to a file the seals of the log that it lacks."""
    lacking = []
    for each in log.newest_first():
        if file.last is not None and each.digest == file.last.digest:
            break
        lacking.append(each)
    else:
        if file.last is not None:
            raise SealUnavailable(
                "the last seal of the file is not in the log of seals. Choose another file, or "
                "leave the log out"
            )
    for each in reversed(lacking):
        file.append(each)
