"""
Writing the file of an archive, and reading it back.

``make`` commits the file's row in the state "writing", writes the logs to a temporary file, stores
that and its manifest, and returns what was written. ``compare`` reads the file from the storage,
frame by frame as later readers do, and compares each event with its source.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID, uuid4

from django.db import transaction
from django.utils import timezone

from eventlogs.archives import storage
from eventlogs.archives.frames import Damaged, Reader, Writer, Written, file_digest
from eventlogs.exceptions import ArchiveUnavailable
from eventlogs.feed import scans
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.models import ArchiveFile
from eventlogs.operations.archiving import manifests
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.restore import ExportedEvent
from eventlogs.utils.times import utc_text

LogsWithEvents = Iterable[tuple[LogId, Iterable[ExportedEvent]]]

CHUNK = 2_000  # events of short logs that are read together


class Made(NamedTuple):
    """A file that was written, and the logs in it."""

    file: ArchiveFile
    logs: dict[UUID, Written]


def make(using: str, log_type: str, source: LogsWithEvents) -> Made:
    """
    Write an archive of some logs; nothing relies on it yet.

    Raise RuntimeError inside of a transaction, and ArchiveUnavailable if the storage refuses it.
    """
    now = timezone.now().astimezone(UTC)
    name = f"{log_type}/{now:%Y/%m}/{uuid4()}.jsonl.gz"
    with transaction.atomic(using=using, durable=True):
        file = ArchiveFile.objects.using(using).create(
            name=name, log_type=log_type, created_at=UTCNow()
        )
    logs: dict[UUID, Written] = {}
    with tempfile.TemporaryFile() as out:
        writer = Writer(out)
        for log_id, events in source:
            logs[log_id.uuid] = writer.add(log_id, events)
        file.size, file.digest = writer.end()
        file.logs, file.events = len(logs), writer.events
        out.seek(0)
        storage.save(name, out)
    manifest = manifests.signed(_manifest(file, logs.values(), now))
    storage.save(name + manifests.SUFFIX, io.BytesIO(manifests.text_of(manifest)))
    return Made(file, logs)


def _manifest(file: ArchiveFile, logs: Iterable[Written], now: datetime) -> manifests.Manifest:
    return manifests.Manifest(
        file=file.name,
        size=file.size,
        sha256=bytes(file.digest or b"").hex(),
        log_type=file.log_type,
        logs=file.logs,
        events=file.events,
        root=manifests.root_of(logs),
        time=utc_text(now, timespec="seconds"),
    )


def compare(made: Made, source: LogsWithEvents) -> set[UUID]:
    """
    Read a file back, and return the logs whose source has other events than the file.

    Raise ArchiveUnavailable if the file is not what was written.
    """
    name = made.file.name
    changed = set()
    try:
        with storage.open_file(name) as stream:
            if file_digest(stream) != (made.file.size, made.file.digest):
                raise Damaged("it is not the file that was written")
            reader = Reader(stream)
            for log_id, events in source:
                log = made.logs[log_id.uuid]
                if not _is_same(_read_back(reader, log), iter(events)):
                    changed.add(log_id.uuid)
    except FileNotFoundError as error:
        raise ArchiveUnavailable(
            name, reason="it is not in the storage that has just stored it"
        ) from error
    except Damaged as damage:
        raise ArchiveUnavailable(name, reason=f"{damage}. Check the storage") from None
    except OSError as error:
        raise ArchiveUnavailable(name, reason="it cannot be read back") from error
    if manifests.read(name).sha256 != bytes(made.file.digest or b"").hex():
        raise ArchiveUnavailable(name, reason="its manifest is not what was written")
    return changed


def _read_back(reader: Reader, log: Written) -> Iterator[ExportedEvent]:
    for page in reader.frames(log.log_id, log.frames, version=log.version, digest=log.digest):
        yield from page


def _is_same(one: Iterator[ExportedEvent], other: Iterator[ExportedEvent]) -> bool:
    # Each is read to its end, so that what is wrong in the file is found in any case.
    same = True
    for mine in one:
        same = mine == next(other, None) and same
    return next(other, None) is None and same


def from_tables(using: str, logs: Iterable[LogRow]) -> LogsWithEvents:
    """
    Yield logs with their events as an export has them: short ones many at a time, others in pages.

    The events of one have to be read before the next is asked for.
    """
    short: list[LogRow] = []
    events = 0
    for log in logs:
        if short and events + log.version > CHUNK:
            yield from _short(using, short)
            short, events = [], 0
        if log.version > CHUNK:
            yield log.log_id, _long(using, log.log_id)
        else:
            short.append(log)
            events += log.version
    if short:
        yield from _short(using, short)


def _short(using: str, logs: list[LogRow]) -> LogsWithEvents:
    found: dict[LogId, list[ExportedEvent]] = {each.log_id: [] for each in logs}
    events = scans.read(
        scans.events_of(using)
        .filter(log_id__in=[each.log_id.uuid for each in logs])
        .order_by("log_id", "index")
    )
    for exported in scans.exported(using, events):
        if exported.event.log_id in found:
            found[exported.event.log_id].append(exported)
    for log in logs:
        yield log.log_id, found.pop(log.log_id)


def _long(using: str, log_id: LogId) -> Iterator[ExportedEvent]:
    for page in scans.events_of_log(using, log_id.uuid):
        yield from scans.exported(using, page)
