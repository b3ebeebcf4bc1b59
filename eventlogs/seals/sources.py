"""Where the events of an attestation come from: a database, or exports of it."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

from django.db import connections
from django.db.models import Count, Max
from django.utils.module_loading import import_string

from eventlogs.exceptions import InvalidExport
from eventlogs.feed import scans
from eventlogs.ids import LogId
from eventlogs.models import ArchivedLog, ArchiveFile, ErasedLog, EventLog
from eventlogs.operations import jsonl
from eventlogs.seals.archived import ArchivedPasts
from eventlogs.seals.attesting import Source
from eventlogs.seals.history import Past, Stored, pasts, pasts_of_export, pasts_of_parts
from eventlogs.seals.leaves import erased_logs, last_archived, pages_by_key
from eventlogs.stores import digested_events

LAST_LINE: Final = 1_000  # bytes at the end of an export in which its last line is


def _nobody(_: int) -> None:
    return None


class DatabaseSource(Source):
    """
    The events of a database and of its archives, log by log.

    Memory is constant, and nothing is locked. A log in the tables is read from there, as all
    readers do, even if there is a row of it among the archived logs.
    """

    def __init__(self, using: str, *, tell: Callable[[int], None] = _nobody) -> None:
        """``tell`` is called with the number of events that were read since the last call."""
        self._using = using
        self._tell = tell
        last = scans.events_of(using).aggregate(last=Max("position"))["last"] or 0
        self.end = max(last, last_archived(using))

    def pasts(self, positions: Sequence[int]) -> Iterator[Past]:
        """Yield the logs in the order of UUIDs, recomputed as of some positions."""
        live = self._live(positions)
        with ArchivedPasts(self._using, positions, tell=self._tell) as archived:
            # Of equal ones, ``merge`` yields those of the first iterator first.
            for _, found in groupby(merge(live, archived, key=_order), key=_order):
                yield next(found)

    def _live(self, positions: Sequence[int]) -> Iterator[Past]:
        unchained = self._unchained()
        if connections[self._using].vendor == "postgresql":
            parts = import_string("eventlogs.seals.postgresql.parts")
            return pasts_of_parts(parts(self._using, self._tell), positions, unchained=unchained)
        return pasts(self._events(), positions, unchained=unchained)

    def erased(self) -> Iterator[ErasedLog]:
        """Yield the rows of logs that were erased."""
        return erased_logs(self._using)

    def erasures(self) -> int:
        """Return how many logs were erased up to now."""
        return ErasedLog.objects.using(self._using).count()

    def moves(self) -> tuple[int, ...]:
        """Return numbers that change when logs are archived, or brought back."""
        logs = ArchivedLog.objects.using(self._using).count()
        files = ArchiveFile.objects.using(self._using).aggregate(Count("pk"), Max("pk"))
        return logs, files["pk__count"], files["pk__max"] or 0

    def _unchained(self) -> Iterator[UUID]:
        for page in pages_by_key(EventLog.objects.using(self._using).filter(head__isnull=True)):
            for each in page:
                yield each.pk

    def _events(self) -> Iterator[Stored]:
        for page in digested_events.by_log(self._using):
            yield from page
            self._tell(len(page))


def _order(past: Past) -> bytes:
    return past.log_id.uuid.bytes


class _Ends(NamedTuple):
    after: int
    until: int


class ExportSource(Source):
    """
    The events of exports: one from the beginning, or several that follow each other.

    It keeps about 500 bytes in memory for each log. An export does not have the logs that were
    erased or archived: where logs are missing, a seal is undecided. Those that were archived are
    read from the files of their archives.
    """

    knows_erased = False

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        archives: Sequence[Path] = (),
        tell: Callable[[int], None] = _nobody,
    ) -> None:
        """
        ``archives`` are files of archives: of the logs in them, those that no export has are read.

        ``tell`` is called with the number of events that were read since the last call.

        Raise InvalidExport if the first one does not begin at position 0, or if another one does
        not begin where the one before it ends.
        """
        self._paths = paths
        self._archives = archives
        self._tell = tell
        ends = [_ends(each) for each in paths]
        if ends[0].after:
            raise InvalidExport(1, "it does not begin at position 0")
        for before, each in pairwise(ends):
            if each.after != before.until:
                raise InvalidExport(1, "it does not begin where the export before it ends")
        self.end = ends[-1].until

    def pasts(self, positions: Sequence[int]) -> Iterator[Past]:
        """Yield the logs in the order of UUIDs, recomputed as of some positions."""
        return pasts_of_export(self._events(), positions, tell=self._tell)

    def _events(self) -> Iterator[Stored]:
        seen: dict[LogId, int] = {}  # events of each log
        for path in self._paths:
            with path.open("rb") as stream:
                for exported in jsonl.read_events(stream):
                    if self._archives:
                        seen[exported.event.log_id] = exported.event.index + 1
                    yield exported.event, exported.digest
        for path in self._archives:
            yield from _archived(path, seen)


def _archived(path: Path, seen: dict[LogId, int]) -> Iterator[Stored]:
    """
    Yield the events of an archive that were not seen before, and note them.

    Of a log that was archived between two exports, the first one may have the beginning.
    """
    try:
        with gzip.open(path) as stream:
            for exported in jsonl.read_events(stream):
                event = exported.event
                if event.index >= seen.get(event.log_id, 0):
                    seen[event.log_id] = event.index + 1
                    yield event, exported.digest
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InvalidExport(
            1, f"{path.name} is not the file of an archive, or a part of it"
        ) from None


def _ends(path: Path) -> _Ends:
    """Return where an export begins and ends, from its first and last line."""
    with path.open("rb") as stream:
        header = jsonl.read_header(stream.readline())
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - LAST_LINE))
        *_, last = stream.readlines()
    return _Ends(header.after, jsonl.read_footer(last).until)
