"""
The history of archived logs, recomputed from their files.

The table of archived logs only says where the events of a log are. Its digests prove nothing here:
a person who owns the tables can replace them together with the file. A log that cannot be read from
its file is yielded too, and says why: whatever is wrong with one file, the other logs are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

from eventlogs.archives import storage
from eventlogs.archives.frames import Damaged, Reader
from eventlogs.archives.reading import exported_pages
from eventlogs.exceptions import ArchiveUnavailable, LogNotFound
from eventlogs.models import ArchivedLog
from eventlogs.seals.history import Past
from eventlogs.seals.leaves import pages_by_key
from eventlogs.stores.restore import ExportedEvent

OPEN: Final = 8  # files that are kept open: the logs of one are near each other


class ArchivedPasts:
    """The archived logs of a database, in the order of their UUIDs, as of some positions."""

    def __init__(
        self, using: str, positions: Sequence[int], *, tell: Callable[[int], None]
    ) -> None:
        """``tell`` is called with the number of events that were read since the last call."""
        self._using = using
        self._positions = positions
        self._tell = tell
        self._readers: dict[int, Reader] = {}  # by their archives, the one used last at the end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:
            for each in self._readers.values():
                stack.callback(each.close)

    def __iter__(self) -> Iterator[Past]:
        rows = ArchivedLog.objects.using(self._using).select_related("archive")
        for page in pages_by_key(rows):
            for row in page:
                past = self._past(row)
                if past is not None:
                    yield past

    def _past(self, row: ArchivedLog) -> Past | None:
        """Return an archived log, or None if it is not archived any more."""
        try:
            return self._fold(row, self._kept_frames(row))
        except (ArchiveUnavailable, Damaged, OSError, ArithmeticError, LookupError):
            self._forget(row.archive_id)
        except (TypeError, ValueError):
            pass
        # Again, by the way that all readers take: it finds an archive that was written anew since,
        # and says what is wrong.
        try:
            return self._fold(row, exported_pages(row, using=self._using))
        except LogNotFound:
            return None
        except ArchiveUnavailable as error:
            return self._unread(row, error.archive or row.archive.name, error.reason)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            reason = (
                "its row in eventlogs_archivedlog does not say where its events are in the file"
            )
            return self._unread(row, row.archive.name, reason)

    def _fold(self, row: ArchivedLog, pages: Iterable[list[ExportedEvent]]) -> Past:
        # Whether a log is chained is told by its row, as it is of a log in the tables.
        past = Past(row.log_id, self._positions, row.head is not None, False)
        for page in pages:
            for each in page:
                past.add(each.event, each.digest)
            self._tell(len(page))
        return past.end()

    def _unread(self, row: ArchivedLog, name: str, reason: str) -> Past:
        past = Past(row.log_id, self._positions, row.head is not None, False).end()
        past.unread = f"its archive {name} cannot be used: {reason}"
        return past

    def _kept_frames(self, row: ArchivedLog) -> Iterator[list[ExportedEvent]]:
        reader = self._readers.pop(row.archive_id, None)
        if reader is None:
            reader = Reader(storage.open_file(row.archive.name))
        self._readers[row.archive_id] = reader
        if len(self._readers) > OPEN:
            self._forget(next(iter(self._readers)))
        frames: Sequence[Any] = row.frames
        yield from reader.frames(row.log_id, frames, version=row.version, digest=bytes(row.digest))

    def _forget(self, archive: int) -> None:
        reader = self._readers.pop(archive, None)
        if reader is not None:
            reader.close()
