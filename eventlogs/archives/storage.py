"""
Where archives are kept: one of the project's STORAGES, by Django's interface of file storages.

A file is written once, under a name that was never used, and is not changed any more. A storage on
this machine's disk is flushed to it (``fsync``) before anything relies on the file: the file and
the directories that name it. Other storages must have stored a file when ``save`` returns.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

from django.core.files import File
from django.core.files.storage import InvalidStorageError, Storage, storages

from eventlogs import conf
from eventlogs.exceptions import ArchiveUnavailable


def archive_storage() -> Storage:
    """Return the storage of archives; raise ArchiveUnavailable if the settings name none."""
    alias = conf.archive_storage()
    if alias is None:
        raise ArchiveUnavailable(
            "", reason="EVENTLOGS['ARCHIVE_STORAGE'] is not set. Set it to an alias in STORAGES"
        )
    try:
        found: Storage = storages[alias]
    except InvalidStorageError as error:
        raise ArchiveUnavailable(
            "",
            reason=f"EVENTLOGS['ARCHIVE_STORAGE'] is {alias!r}, which is no usable storage. "
            "Correct it, or add it to STORAGES",
        ) from error
    return found


def save(name: str, content: IO[bytes]) -> None:
    """
    Store a file under exactly this name, for good.

    Raise ArchiveUnavailable if the storage refuses it, gives it another name, or has it on a disk
    of this machine that does not confirm it.
    """
    storage = archive_storage()
    try:
        saved = storage.save(name, File(content, name))
    except Exception as error:  # each storage has its own
        raise ArchiveUnavailable(name, reason="it cannot be written") from error
    if saved != name:
        storage.delete(saved)
        raise ArchiveUnavailable(
            name, reason=f"the storage has stored it as {saved}. Let it keep the names of archives"
        )
    try:
        _flush(storage, name)
    except OSError as error:
        raise ArchiveUnavailable(name, reason="the disk does not confirm it") from error


def open_file(name: str) -> IO[bytes]:
    """
    Open a file for reading in any order.

    Raise FileNotFoundError if it is not there, and ArchiveUnavailable if it cannot be opened.
    """
    storage = archive_storage()
    try:
        found: Any = storage.open(name, "rb")
    except FileNotFoundError:
        raise
    except Exception as error:
        if not _exists(storage, name):
            raise FileNotFoundError(name) from error
        raise ArchiveUnavailable(name, reason="it cannot be read") from error
    stream: IO[bytes] = found
    return stream


def delete(name: str) -> None:
    """Delete a file, if it is there. Raise ArchiveUnavailable if the storage refuses it."""
    storage = archive_storage()
    try:
        storage.delete(name)
    except FileNotFoundError:
        return
    except Exception as error:
        raise ArchiveUnavailable(name, reason="it cannot be deleted") from error


def _exists(storage: Storage, name: str) -> bool:
    try:
        return storage.exists(name)
    except Exception:
        return True


def _flush(storage: Storage, name: str) -> None:
    try:
        path = Path(storage.path(name))
    except NotImplementedError:
        return
    _fsync(path)
    if os.name == "posix":  # elsewhere a directory cannot be opened
        root = Path(storage.path(""))
        for directory in path.parents:
            _fsync(directory)
            if directory == root:
                break


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
