"""Where the events of an attestation come from: a database, or exports of it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from django.db import connections
from django.db.models import Count, Max, QuerySet
from django.utils.module_loading import import_string

from eventlogs.conf import MAX_POSITION
from eventlogs.exceptions import InvalidExport
from eventlogs.feed import scans
from eventlogs.ids import LogId
from eventlogs.models import ArchivedLog, ArchiveFile, ErasedLog, EventLog, LogMove
from eventlogs.operations import jsonl
from eventlogs.seals.archived import ArchivedPasts
from eventlogs.seals.attesting import Erased, Source
from eventlogs.seals.history import Past, Stored, pasts, pasts_of_export, pasts_of_parts
from eventlogs.seals.leaves import last_archived, moved_logs, pages_by_key
from eventlogs.stores import digested_events, tombstones
from eventlogs.stores.tombstones import Tombstone


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

    def erased(self) -> Iterator[Erased]:
        """Yield the logs that were erased or moved away, in the order of UUIDs."""
        last = None
        for each in merge(self._buried(), self._moved(), key=_uuid_of):
            if each.row.pk != last:  # a log that was moved, and then erased, is erased
                yield each
            last = each.row.pk

    def _buried(self) -> Iterator[Erased]:
        for page in tombstones.pages(self._using):
            for each in page:
                yield Erased(_row(each), each.created_at, MAX_POSITION)

    def _moved(self) -> Iterator[Erased]:
        for row in moved_logs(self._using):
            marks: QuerySet[EventLog] = QuerySet(EventLog, using=self._using).filter(pk=row.pk)
            created_at = marks.values_list("created_at", flat=True).first()
            yield Erased(row, created_at, MAX_POSITION)

    def erasures(self) -> int:
        """Return how many logs were erased or moved away up to now."""
        moves = LogMove.objects.using(self._using).filter(state=LogMove.LEFT)
        return ErasedLog.objects.using(self._using).count() + moves.count()

    def moves(self) -> tuple[int, ...]:
        """Return numbers that change when logs are archived or brought back, or begin to move."""
        logs = ArchivedLog.objects.using(self._using).count()
        files = ArchiveFile.objects.using(self._using).aggregate(Count("pk"), Max("pk"))
        moves = LogMove.objects.using(self._using).aggregate(Count("pk"), Max("pk"))
        return (
            *(logs, files["pk__count"], files["pk__max"] or 0),
            *(moves["pk__count"], moves["pk__max"] or 0),
        )

    def _unchained(self) -> Iterator[UUID]:
        for page in pages_by_key(EventLog.objects.using(self._using).filter(head__isnull=True)):
            for each in page:
                yield each.pk

    def _events(self) -> Iterator[Stored]:
        for page in digested_events.by_log(self._using):
            yield from page
            self._tell(len(page))


def _uuid_of(erased: Erased) -> bytes:
    return erased.row.pk.bytes


def _order(past: Past) -> bytes:
    return past.log_id.uuid.bytes


def _order_of(stone: _Stone) -> tuple[bytes, int]:
    return stone.tombstone.log_id.uuid.bytes, stone.export


def _log_of(stone: _Stone) -> bytes:
    return stone.tombstone.log_id.uuid.bytes


def _what(stone: _Stone) -> tuple[LogId, int, bytes]:
    return stone.tombstone.log_id, stone.tombstone.events, stone.tombstone.digest


def _row(tombstone: Tombstone) -> ErasedLog:
    return ErasedLog(
        id=tombstone.log_id.uuid,
        log_type=tombstone.log_id.log_type,
        count=tombstone.events,
        digest=tombstone.digest,
        erased_by=tombstone.erased_by,
        reason=tombstone.reason,
        erased_at=tombstone.erased_at,
    )


class _Stone(NamedTuple):
    """A tombstone, the number of the export that has it, and that of its line."""

    tombstone: Tombstone
    export: int
    line: int


class ExportSource(Source):
    """
    The events of exports: one from the beginning, or several that follow each other.

    It keeps about 500 bytes in memory for each log that has events in them, and nothing for the
    tombstones of those that were erased. An export does not have logs that were archived, and one
    of an older release has no tombstones: where logs are missing, a seal is undecided. Logs that
    were archived are read from the files of their archives.
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
        self._ends = [jsonl.ends_of(each) for each in paths]
        if self._ends[0].after:
            raise InvalidExport(1, "it does not begin at position 0")
        for before, each in pairwise(self._ends):
            if each.after != before.until:
                raise InvalidExport(1, "it does not begin where the export before it ends")
        self.end = self._ends[-1].until

    def pasts(self, positions: Sequence[int]) -> Iterator[Past]:
        """Yield the logs in the order of UUIDs, recomputed as of some positions."""
        return pasts_of_export(self._events(), positions, tell=self._tell)

    def erased(self) -> Iterator[Erased]:
        """
        Yield the logs of the tombstones, in the order of UUIDs.

        Each export has all tombstones of its time. So a log that was not erased in an export has
        all of its events up to the end of that one, unless it was archived.

        Raise InvalidExport where tombstones are not in the order of UUIDs, or two exports have
        another one of the same log.
        """
        files = [self._stones(number) for number, each in enumerate(self._ends) if each.erased]
        for _, found in groupby(merge(*files, key=_order_of), key=_log_of):
            first, *others = found
            for each in others:
                if _what(each) != _what(first):
                    raise InvalidExport(
                        each.line, "an export before it has another tombstone of the log"
                    )
            until = self._ends[first.export - 1].until if first.export else 0
            yield Erased(_row(first.tombstone), first.tombstone.created_at, until)

    def _stones(self, number: int) -> Iterator[_Stone]:
        last = b""
        with self._paths[number].open("rb") as stream:
            for line, each in jsonl.numbered_tombstones(stream):
                if each.log_id.uuid.bytes <= last:
                    raise InvalidExport(line, "the tombstones are not in the order of UUIDs")
                last = each.log_id.uuid.bytes
                yield _Stone(each, number, line)

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
