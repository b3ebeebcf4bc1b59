"""
Exports and imports of logs as JSON lines; ``stores/export_lines.py`` has the form of the lines.

Events are in the order of positions. Tombstones of erased logs are behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, NamedTuple
from uuid import UUID

from eventlogs.conf import MAX_POSITION
from eventlogs.events.sealed import has_personal
from eventlogs.exceptions import ErasedElsewhere
from eventlogs.feed import scans
from eventlogs.ids import LogId
from eventlogs.operations import unique_values
from eventlogs.privacy.encryption import key_ids_in
from eventlogs.privacy.subject_logs import note_logs
from eventlogs.stores import BaseStore, ExportedEvent, Restored, tombstones
from eventlogs.stores.export_lines import MAX_LINE as MAX_LINE
from eventlogs.stores.export_lines import ends_of as ends_of
from eventlogs.stores.export_lines import event_line, read_lines, read_tombstones, tombstone_line
from eventlogs.stores.export_lines import footer as footer
from eventlogs.stores.export_lines import header as header
from eventlogs.stores.export_lines import last_position as last_position
from eventlogs.stores.export_lines import numbered_tombstones as numbered_tombstones
from eventlogs.stores.export_lines import read_events as read_events
from eventlogs.stores.export_lines import read_footer as read_footer
from eventlogs.stores.export_lines import read_header as read_header
from eventlogs.stores.restore import batched
from eventlogs.stores.tombstones import Tombstone
from eventlogs.stores.unique_values import Taken
from eventlogs.values import StoredEvent

SEAL_LOG_TYPE: Final = "eventlogs_seal"  # of the log of seals, whose positions are a database's own

BATCH: Final = 1_000  # events of one transaction of an import
MOST_NAMED: Final = 1_000  # logs in an error
MAX_BATCH_CHARACTERS: Final = 8_000_000  # of their JSON; a batch with more ends early


@dataclass
class Imported:
    """
    The counts of an import so far.

    ``taken`` are unique values of imported events that belong to other logs, ``erased`` the logs
    that were erased in this database, and ``archived`` those that are in its archives: both were
    left out. ``seals`` are seals of the other database,
    which were left out as well. ``tombstones`` is how many were stored, and
    ``differing_tombstones`` how many logs were erased here at another version: they stay so.
    """

    stored: int = 0
    present: int = 0
    taken: list[Taken] = field(default_factory=list)
    erased: set[LogId] = field(default_factory=set)
    archived: set[LogId] = field(default_factory=set)
    seals: int = 0
    tombstones: int = 0
    differing_tombstones: int = 0


class Lines(NamedTuple):
    """Lines, an event each, and the last position that they cover."""

    lines: list[str]
    position: int


def export_pages(
    using: str,
    *,
    after: int = 0,
    until: int,
    log_types: Collection[str] = (),
    logs: Collection[LogId] = (),
) -> Iterator[Lines]:
    """
    Yield pages of lines, in the order of positions.

    ``until`` is a settled position of the feed. Memory stays constant.
    """
    if logs:
        kept = [log for log in logs if not log_types or log.log_type in log_types]
        stretches = scans.events_of_logs(using, kept, after=after, until=until)
    else:
        stretches = scans.events_by_position(using, after=after, until=until, log_types=log_types)
    return _pages(using, stretches)


def export_pages_of_a_moment(
    using: str, *, log_types: Collection[str] = (), logs: Collection[LogId] = ()
) -> Iterator[Lines]:
    """
    Yield pages of lines, in the order of positions, all as of one moment.

    For databases without a feed: one transaction stays open, until the last page is read. The
    last position says nothing about later commits; do not resume an export from it.
    """
    with scans.a_moment(using):
        if logs:
            kept = [log for log in logs if not log_types or log.log_type in log_types]
            stretches = scans.events_of_logs(using, kept, until=MAX_POSITION)
        else:
            stretches = scans.events_of_a_moment(using, log_types=log_types)
        yield from _pages(using, stretches)


def _pages(using: str, stretches: Iterator[scans.Stretch]) -> Iterator[Lines]:
    for events, position in stretches:
        yield Lines([event_line(each) for each in scans.exported(using, events)], position)


def tombstone_pages(
    using: str, *, log_types: Collection[str] = (), logs: Collection[LogId] = ()
) -> Iterator[list[str]]:
    """
    Yield pages of lines, an erased log each, in the order of UUIDs.

    Read them after the events: then a log that is erased meanwhile lacks no event without having a
    tombstone. A tombstone has no position, so an export from a position on has all of them, too.
    """
    for page in tombstones.pages(using, log_types=log_types, logs=logs):
        yield [tombstone_line(each) for each in page]


def import_tombstones(
    store: BaseStore,
    exports: Iterable[Callable[[], Iterable[bytes]]],
    *,
    imported: Imported | None = None,
) -> Imported:
    """
    Store the tombstones of exports, whose events are to be imported after it.

    Each export is a function that returns its lines; it is called twice. All tombstones are looked
    at before one is stored. A batch of 1,000 is a transaction; memory is constant.

    From then on the logs are LogErased, and ``import_lines`` leaves out events of them. So exports
    that follow each other bring no log back that was erased between two of them.

    Raise ErasedElsewhere if logs are here that were erased in the exported database, and
    CannotImportErased for a role that may not erase: nothing was changed then. Raise InvalidExport
    for a tombstone that cannot be read.
    """
    imported = imported if imported is not None else Imported()
    exports = list(exports)
    there: dict[LogId, None] = {}
    for some in batched(_tombstones(exports), BATCH):
        there.update(dict.fromkeys(tombstones.alive(_database(store), some)))
        if len(there) >= MOST_NAMED:
            break
    if there:
        raise ErasedElsewhere(tuple(there)[:MOST_NAMED])
    for some in batched(_tombstones(exports), BATCH):
        _bury(store, some, imported)
    return imported


def _tombstones(exports: Iterable[Callable[[], Iterable[bytes]]]) -> Iterator[Tombstone]:
    for lines_of in exports:
        for each in read_tombstones(lines_of()):
            if each.log_id.log_type != SEAL_LOG_TYPE:
                yield each


def _bury(store: BaseStore, some: Iterable[Tombstone], imported: Imported) -> None:
    kept = [each for each in some if each.log_id.log_type != SEAL_LOG_TYPE]
    if kept:
        done = tombstones.restore(_database(store), kept)
        imported.tombstones += done.stored
        imported.differing_tombstones += done.differing


def _database(store: BaseStore) -> str:
    if store.using is None:
        raise NotImplementedError(f"{type(store).__qualname__} cannot restore tombstones.")
    return store.using


def import_lines(
    store: BaseStore,
    lines: Iterable[bytes],
    *,
    imported: Imported | None = None,
    with_tombstones: bool = True,
) -> Imported:
    """
    Restore the events of an export that the database lacks, and return the counts.

    A batch of about 1,000 events is a transaction; a batch ends where an append ends, so that
    no reader sees half of one. To resume an interrupted import, import the file again from its
    start: stored events are compared and skipped. ``imported`` is up to date after each batch.

    The unique values of imported events are claimed. One that belongs to another log at the end
    stays there, and is in ``imported.taken``: history is restored as it was. Append another value
    to one of the two logs, then call ``eventlogs.operations.unique_values.claim()``.

    A log that was erased in this database is left out, and is in ``imported.erased``: an export
    from before the erasure does not bring it back. A log that is archived here is left out, too,
    and is in ``imported.archived``: it is not compared.

    The log of seals is left out, and its events are counted in ``imported.seals``: a seal stands
    over positions, and imported events get other ones.

    Tombstones of erased logs are stored where they stand, which is behind the events. Where the
    lines can be read twice, call ``import_tombstones`` first, and leave them out here by
    ``with_tombstones=False``: then a log that was erased while the export ran is left out, too.

    Raise what ``import_tombstones`` raises for tombstones; the batches before them are stored.
    Raise InvalidExport for a line that cannot be read and for a file that ends too early, and
    ImportDiffers if the database has other events; the batches before it are stored.
    """
    imported = imported if imported is not None else Imported()
    for are_events, found in groupby(read_lines(lines), key=_is_event):
        if are_events:
            events = (each for each in found if isinstance(each, ExportedEvent))
            for batch in _batches(events):
                _restore(store, batch, imported)
        elif with_tombstones:
            stones = (each for each in found if isinstance(each, Tombstone))
            for some in batched(stones, BATCH):
                _bury(store, some, imported)
    if imported.taken and store.using is not None:
        # A later event of the import may have moved a value from one log to another.
        logs = sorted({each.log_id for each in imported.taken})
        imported.taken = unique_values.settle_all(store.using, logs)
    return imported


def _is_event(line: ExportedEvent | Tombstone) -> bool:
    return isinstance(line, ExportedEvent)


def _restore(store: BaseStore, batch: list[ExportedEvent], imported: Imported) -> None:
    kept = [each for each in batch if each.event.log_id.log_type != SEAL_LOG_TYPE]
    imported.seals += len(batch) - len(kept)
    if not kept:
        return
    if store.using is not None:
        note_subjects(store.using, kept)
    done: Restored = store.restore(kept)
    imported.stored += done.stored
    imported.present += done.present
    imported.taken += done.taken
    imported.erased |= done.erased
    imported.archived |= done.archived


def note_subjects(using: str, batch: Iterable[ExportedEvent]) -> None:
    """Note which logs have data of which subjects: who is forgotten later has to be found here."""
    keys: dict[LogId, set[UUID]] = {}
    for exported in batch:
        event = exported.event
        if has_personal(event):
            found = key_ids_in(event.data) | key_ids_in(event.metadata)
            keys.setdefault(event.log_id, set()).update(found)
    for log_id, key_ids in keys.items():
        note_logs(using, key_ids, log_id)


def batches(lines: Iterable[bytes]) -> Iterator[list[ExportedEvent]]:
    """Yield the events of an export in batches."""
    return _batches(read_events(lines))


def _batches(events: Iterable[ExportedEvent]) -> Iterator[list[ExportedEvent]]:
    batch: list[ExportedEvent] = []
    characters = 0
    for exported in events:
        event = exported.event
        full = len(batch) >= BATCH or characters >= MAX_BATCH_CHARACTERS
        if full and (
            not _goes_on(batch[-1].event, event) or characters >= 8 * MAX_BATCH_CHARACTERS
        ):
            yield batch
            batch, characters = [], 0
        batch.append(exported)
        characters += len(event.data) + len(event.metadata)
    if batch:
        yield batch


def _goes_on(last: StoredEvent, event: StoredEvent) -> bool:
    """Return whether two events may be of one append, whose events all have one time."""
    return (
        event.log_id == last.log_id
        and event.recorded_at == last.recorded_at
        and event.idempotency_key == last.idempotency_key
    )
