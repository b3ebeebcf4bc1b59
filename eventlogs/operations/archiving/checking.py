"""Checking archives: each file is read from its beginning to its end, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from django.db import router

from eventlogs import conf
from eventlogs.archives import storage
from eventlogs.archives.frames import Damaged, Reader, Written, file_digest
from eventlogs.archives.reading import in_file
from eventlogs.exceptions import ArchiveUnavailable
from eventlogs.models import ArchivedLog, ArchiveFile, EventLog
from eventlogs.operations.archiving import manifests
from eventlogs.seals.keys import Trusted


class Checked(NamedTuple):
    """An archive that was checked. ``problem`` is "" if nothing is wrong with it."""

    name: str
    logs: int
    events: int
    is_signed: bool
    problem: str = ""


def check(*, using: str | None = None) -> Iterator[Checked]:
    """
    Read all archives of a database, and compare them with the tables and with their manifests.

    Of each: the SHA-256 of the file, all events of all logs against the digests in the tables, and
    the manifest with its signature, if the project has keys of seals. Memory is that of one frame,
    and of the rows of one archive. Nothing is changed. What a file lacks is in ``problem``, and is
    no error. Raise ArchiveUnavailable if the settings name no storage.
    """
    alias = using or router.db_for_write(EventLog)
    storage.archive_storage()
    trusted = Trusted() if conf.has_seal_keys() else None
    complete = ArchiveFile.objects.using(alias).filter(state=ArchiveFile.COMPLETE).order_by("pk")
    last = 0
    # One at a time: a file that is written anew meanwhile has a higher key, and comes later.
    while (file := complete.filter(pk__gt=last).first()) is not None:
        last = file.pk
        rows = list(ArchivedLog.objects.using(alias).filter(archive=file))
        is_signed = False
        try:
            manifest = manifests.read(file.name)
            is_signed = bool(manifest.signature)
            problem = _problem(file, rows, manifest, trusted)
        except ArchiveUnavailable as error:
            problem = error.reason
        except FileNotFoundError:
            problem = "the file is not in the storage"
        except Damaged as damage:
            problem = str(damage)
        if not complete.filter(pk=last).exists():
            continue  # another process has replaced it: its logs are in one that comes later
        yield Checked(file.name, len(rows), sum(each.version for each in rows), is_signed, problem)


def _problem(
    file: ArchiveFile,
    rows: list[ArchivedLog],
    manifest: manifests.Manifest,
    trusted: Trusted | None,
) -> str:
    with storage.open_file(file.name) as stream:
        if file_digest(stream) != (file.size, bytes(file.digest or b"")):
            raise Damaged("the file was changed")
        reader = Reader(stream)
        for row in sorted(rows, key=in_file):
            for _ in reader.frames(
                row.log_id, row.frames, version=row.version, digest=bytes(row.digest)
            ):
                pass
    expected = (file.name, file.size, bytes(file.digest or b"").hex(), file.logs, file.events)
    if expected != (
        *(manifest.file, manifest.size, manifest.sha256),
        *(manifest.logs, manifest.events),
    ):
        return "its manifest was changed"
    if len(rows) == file.logs:
        logs = [Written(each.log_id, each.version, bytes(each.digest)) for each in rows]
        if manifests.root_of(logs) != manifest.root:
            return "its logs are not those of its manifest"
    if trusted is not None and manifest.signature:
        return trusted.why_not(manifest) or ""
    return ""
