"""
Reading a log wherever it is: in the tables, or in its archive; also while it leaves the database.

The tables are read first, so a log that is not archived costs nothing more. Only where nothing is
found there, the log is looked for among the archived ones. It may be moved between two looks: taken
out after the first one, or brought back before the second. So a log that is in neither place is
looked for once more, where the project has archives, or routers that may move logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from django.db import router

from eventlogs import conf
from eventlogs.archives.reading import archived_log, archived_store
from eventlogs.exceptions import LogErased, LogNotFound
from eventlogs.ids import LogId
from eventlogs.stores.base import STREAM_PAGE, BaseStore
from eventlogs.stores.leaving import leaving_store
from eventlogs.values import StoredEvent

T = TypeVar("T")
_Pages = Iterator[Sequence[StoredEvent]]

LOOKS: Final = 10  # while the log is moved to and fro


def read_through(store: BaseStore, log_id: LogId, read: Callable[[BaseStore], T]) -> T:
    """
    Return what ``read`` finds in a database's store, or in the archive of the log.

    ``read`` returns something empty, or raises LogNotFound, where a store does not have the log.
    Raise ArchiveUnavailable if the log is archived, and its archive cannot be read, and LogMoved if
    it was moved to another database.
    """
    looks = 0
    while True:
        looks += 1
        missing: LogNotFound | None = None
        try:
            found = read(store)
        except LogErased:
            raise
        except LogNotFound as error:
            missing = error
        else:
            if found:
                return found
        if store.using is None:
            break
        archive = archived_store(store.using, log_id)
        if archive is not None:
            try:
                return read(archive)
            except LogNotFound:
                if looks == LOOKS or archived_log(store.using, log_id) is not None:
                    raise
            continue
        leaving = leaving_store(store.using, log_id)
        if leaving is not None:
            found = read(leaving)
            # Not if the events were taken out, or the move was abandoned, while they were read.
            if leaving_store(store.using, log_id) is not None or looks == LOOKS:
                return found
        elif looks > 1 or (conf.archive_storage() is None and not router.routers):
            break
    if missing is not None:
        raise missing
    return found


def pages_through(
    store: BaseStore, log_id: LogId, *, start: int
) -> Iterator[Sequence[StoredEvent]]:
    """Yield a log's events, a page at a time, from wherever it is; it may be moved meanwhile."""
    if store.using is None:
        yield from store.pages(log_id, start=start)
        return
    while True:
        size = 0
        for page in store.pages(log_id, start=start):
            yield page
            size = len(page)
            start = page[-1].index + 1
        if size % STREAM_PAGE:
            return  # a page that is not full is the last one
        first = start
        for page in _rest(store, log_id, start):
            yield page
            start = page[-1].index + 1
        if start == first:
            return


def _rest(store: BaseStore, log_id: LogId, start: int) -> _Pages:
    """Yield the events behind the last full page, of a log that was perhaps moved since."""

    def begun(place: BaseStore) -> tuple[Sequence[StoredEvent], _Pages] | None:
        pages = place.pages(log_id, start=start)
        first = next(pages, None)
        return None if first is None else (first, pages)

    found = read_through(store, log_id, begun)
    if found is not None:
        first, others = found
        yield first
        yield from others
