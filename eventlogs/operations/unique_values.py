"""
Unique values against the events that declare them: compare them, and claim what is missing.

``verify`` compares. ``claim`` corrects the rows by the events: for events that were stored
before their class declared ``Unique``, after another ``normalize``, and after an import.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby, islice
from typing import Final, NamedTuple
from uuid import UUID

from django.db import connections, router
from django.db.models import F, Q, QuerySet

from eventlogs.aggregates import aggregates
from eventlogs.archives import listing
from eventlogs.archives.read_through import pages_through
from eventlogs.events import unique_values as declarations
from eventlogs.events.unique import UniqueValue
from eventlogs.events.unique_values import UniqueReader, Unread, Values
from eventlogs.exceptions import ArchiveUnavailable, KeyUnavailable
from eventlogs.feed import scans
from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.models import UniqueValue as UniqueRow
from eventlogs.stores import store_for, unique_values
from eventlogs.stores.retries import run_in_transaction
from eventlogs.stores.unique_values import Settled, Taken
from eventlogs.stores.uuid_order import order_of
from eventlogs.values import StoredEvent

__all__ = ["Claimed", "claim"]

LOGS: Final = 200  # compared at once
LOCKED: Final = 50  # logs that are locked at once
LOOKS: Final = 20  # times that a log is compared while others append to it


def _nobody(_: int) -> None:
    return None


@dataclass
class Claimed:
    """
    The result of ``claim``.

    ``logs`` is the number of logs that were compared, ``changed`` of those whose rows were changed.
    ``taken`` are values that two logs hold: their events' log, the scope, and the log that the
    value belongs to. ``unread`` are the logs that were left out, because one of their events
    cannot be read.
    """

    logs: int = 0
    changed: int = 0
    taken: list[Taken] = field(default_factory=list)
    unread: list[LogId] = field(default_factory=list)
    reached: LogId | None = None


def claim(
    *,
    using: str | None = None,
    log_types: Collection[str] = (),
    after: LogId | None = None,
    claimed: Claimed | None = None,
    tell: Callable[[int], object] = _nobody,
) -> Claimed:
    """
    Claim the unique values that stored events hold, and release those that they do not hold.

    ``using`` is the database, by default the one that logs are written to; ``log_types`` are those
    to look at, by default all whose aggregate declares unique fields; ``after`` skips the logs up
    to that one. ``tell`` is called with numbers of logs; ``claimed`` is up to date after each page.

    If two logs hold a value, it belongs to the one that has claimed it, or else to the one with
    the lower UUID; the other is in ``taken``. Append another value to one of the two, then call
    it again. Appends continue meanwhile; each log is locked only while its rows are changed.
    Calling it again is safe, and changes nothing that is right.
    """
    alias = using or router.db_for_write(EventLog)
    claimed = claimed if claimed is not None else Claimed()
    for page in pages(alias, after=after, log_types=log_types):
        found = compare(alias, page)
        claimed.unread += [each.log_id for each in found if each.unread]
        wrong = [each.log_id for each in found if each.is_wrong and not each.unread]
        for start in range(0, len(wrong), LOCKED):
            settled = settle(alias, wrong[start : start + LOCKED])
            claimed.changed += len(settled.changed)
            claimed.taken += settled.taken
        claimed.logs += len(page)
        claimed.reached = page[-1]
        tell(len(page))
    return claimed


class Compared(NamedTuple):
    """The unique values of a log, in declared scopes: those of its events, and of its rows."""

    log_id: LogId
    events: Values
    rows: dict[str, set[UUID]]
    unread: str = ""  # why the events' values are not known

    @property
    def missing(self) -> list[UniqueValue]:
        """The values that its events hold, and its rows do not."""
        return [
            UniqueValue(scope, digest)
            for scope, digest in self.events.items()
            if digest is not None and digest not in self.rows.get(scope, ())
        ]

    @property
    def superfluous(self) -> list[str]:
        """The scopes in which its rows hold a value that its events do not."""
        return [scope for scope, digests in self.rows.items() if digests - {self.events.get(scope)}]

    @property
    def is_wrong(self) -> bool:
        """Whether the rows are not what the events say."""
        return bool(self.unread or self.missing or self.superfluous)


def pages(
    using: str, *, after: LogId | None = None, log_types: Collection[str] = ()
) -> Iterator[list[LogId]]:
    """
    Yield the logs whose aggregates declare unique fields, in the order of their UUIDs.

    Archived logs are among them.
    """
    types = {event_type for event_type, _ in declarations.declared()}
    wanted = {each.log_type for each in aggregates if types & set(each.event_types)}
    if log_types:
        wanted &= set(log_types)
    if not wanted:
        return
    start = after.uuid if after is not None else None
    stored = (
        each.log_id
        for page in scans.logs_by_id(using, after=start, log_types=wanted)
        for each in page
    )
    archived = listing.ids_in_order(using, after=start, log_types=wanted)
    order = order_of(using)
    ids = merge(stored, archived, key=lambda each: order(each.uuid))
    while page := list(islice(ids, LOGS)):
        yield page


def rows_by_id(using: str) -> Iterator[list[UniqueRow]]:
    """Yield pages of the rows, in the order of their ids."""
    last = 0
    while page := list(UniqueRow.objects.using(using).filter(pk__gt=last).order_by("pk")[:LOGS]):
        yield page
        last = page[-1].pk


def compare(using: str, log_ids: Sequence[LogId]) -> list[Compared]:
    """
    Return the unique values of logs, those of events beside those of rows.

    Nothing is locked. A log that looks wrong is looked at again, between two looks at its version:
    if that is the same, nobody appended in between.
    """
    found = _compare(using, log_ids)
    return [_again(using, each) if each.is_wrong else each for each in found]


def _again(using: str, compared: Compared) -> Compared:
    log_id = compared.log_id
    versions = (
        EventLog.objects.using(using).filter(pk=log_id.uuid).values_list("version", flat=True)
    )
    for _ in range(LOOKS):
        before = versions.first()
        [compared] = _compare(using, [log_id])
        if not compared.is_wrong or versions.first() == before:
            break
    return compared


def _compare(using: str, log_ids: Sequence[LogId], *, needs_keys: bool = False) -> list[Compared]:
    rows, scopes = unique_values.of_logs(using, log_ids), scopes_declared()
    values: dict[UUID, Values] = {}
    unread: dict[UUID, str] = {}
    reader = UniqueReader(strict=True)
    for log, events in groupby(_events_of(using, log_ids), key=lambda each: each.log_id.uuid):
        try:
            values[log] = reader.read(events)
        except Unread as error:
            if needs_keys and isinstance(error.__cause__, KeyUnavailable):
                raise error.__cause__ from None
            unread[log] = str(error)
    for log_id in listing.archived_among(using, log_ids):
        try:
            values[log_id.uuid] = reader.read(_archived_events(using, log_id))
        except Unread as error:
            if needs_keys and isinstance(error.__cause__, KeyUnavailable):
                raise error.__cause__ from None
            unread[log_id.uuid] = str(error)
        except ArchiveUnavailable as error:
            if needs_keys:
                raise
            unread[log_id.uuid] = str(error)
    return [
        Compared(
            each,
            values.get(each.uuid, {}),
            {scope: digests for scope, digests in rows[each].items() if scope in scopes},
            unread.get(each.uuid, ""),
        )
        for each in log_ids
    ]


def _events_of(using: str, log_ids: Sequence[LogId]) -> Iterator[StoredEvent]:
    """Yield the events that may have unique values, log by log, a page at a time."""
    events = scans.events_of(using).filter(
        log_id__in=[each.uuid for each in log_ids], type__in=sorted(declarations.names_declared())
    )
    later = events
    while page := scans.read(later.order_by("log_id", "index")[: scans.PAGE]):
        yield from page
        if len(page) < scans.PAGE:
            return
        log, index = page[-1].log_id.uuid, page[-1].index
        later = events.filter(Q(log_id__gt=log) | Q(log_id=log, index__gt=index))


def _archived_events(using: str, log_id: LogId) -> Iterator[StoredEvent]:
    """Yield the events of an archived log that may have unique values."""
    names = declarations.names_declared()
    for page in pages_through(store_for(using), log_id, start=0):
        yield from (each for each in page if each.type in names)


def settle(using: str, log_ids: Sequence[LogId], *, needs_keys: bool = False) -> Settled:
    """
    Claim and release values, so that logs have those of their events, in one transaction.

    A log of which an event cannot be read keeps what it has. With ``needs_keys``, raise
    KeyUnavailable or ArchiveUnavailable where that is so for want of a key, or of an archive.

    Right because: the logs are locked, in the order of their UUIDs. The row of each log that is
    changed is written again, as it is: an append that has waited for its lock, and has read the
    log's values before it, notices the change (see append_under_rules.sql). An archived log has its
    mark there, which keeps it where it is.
    """

    def attempt() -> Settled:
        logs: QuerySet[EventLog] = QuerySet(EventLog, using=using)
        some = logs.filter(pk__in=[each.uuid for each in log_ids]).order_by("pk")
        no_key = connections[using].features.has_select_for_no_key_update
        locked = set(some.select_for_update(no_key=no_key).values_list("pk", flat=True))
        wanted: dict[LogId, Values] = {}
        some_locked = [each for each in log_ids if each.uuid in locked]
        for each in _compare(using, some_locked, needs_keys=needs_keys):
            if not each.unread:
                wanted[each.log_id] = {**dict.fromkeys(each.superfluous), **each.events}
        settled = unique_values.settle(using, wanted)
        changed = [each.uuid for each in settled.changed]
        logs.filter(pk__in=changed).update(version=F("version"))
        return settled

    return run_in_transaction(using, attempt)


def owners(using: str, values: Sequence[UniqueValue]) -> dict[UniqueValue, LogId]:
    """Return the logs that values belong to; a value that is free is left out."""
    return unique_values.owners(using, values)


def forget(using: str, log_id: LogId) -> None:
    """Release all values of a log that is erased."""
    unique_values.delete_all(using, log_id)


def settle_all(using: str, log_ids: Sequence[LogId], *, needs_keys: bool = False) -> list[Taken]:
    """Do what ``settle`` does, for any number of logs; return the values that others have."""
    taken: list[Taken] = []
    for start in range(0, len(log_ids), LOCKED):
        taken += settle(using, log_ids[start : start + LOCKED], needs_keys=needs_keys).taken
    return taken


def scopes_declared() -> set[str]:
    """Return the scopes that event classes of this process declare."""
    return {field.unique.scope for _, found in declarations.declared() for field in found}
