"""
Verifiers check stored data against the promises of docs/guarantees.md, and yield findings.

They check that indexes have no holes, versions count the events, times and positions do not run
backwards, keys point at their events, events can be decoded, and logs have the unique values that
their events hold. Memory is constant, nothing is locked, and appends continue meanwhile: a suspect
log is read again, in one statement, before it is a finding.

A project adds its own verifier by ``VERIFIERS.append(…)``, e.g. of a read model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, groupby, islice
from typing import Final, Protocol
from uuid import UUID

from django.db.models import Count, Exists, Max, Min, OuterRef, Q, QuerySet
from django.utils import timezone

from eventlogs.aggregates import Aggregate, aggregates, fold
from eventlogs.archives import listing
from eventlogs.caches.backends import GuardedCache, NoReductionCache, cache_for
from eventlogs.caches.entries import ENCODER, Entry, EntryCodec, Untrusted
from eventlogs.events.codec import EventReader
from eventlogs.exceptions import (
    LogCorrupted,
    ProjectionUnavailable,
    RegistrationError,
    UndecodableEvent,
    UnknownEventType,
    Unreachable,
)
from eventlogs.feed import scans
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LOG_TYPE, LogId
from eventlogs.models import ArchivedLog, ErasedLog, EventLog, IdempotencyKey, LogMove
from eventlogs.operations import unique_values
from eventlogs.operations.commands import command
from eventlogs.projections.base import RowProjection, declared
from eventlogs.projections.verify import Failure, Run
from eventlogs.reductions import key_proofs
from eventlogs.stores.erasing import NO_LOG_TYPE, gone
from eventlogs.stores.uuid_order import order_of
from eventlogs.utils.times import time_text
from eventlogs.utils.words import counted
from eventlogs.values import StoredEvent

INTERRUPTED: Final = timedelta(minutes=10)  # after which a move that has not ended is a finding
PAIRS: Final = 200  # (log, index) pairs looked up by one statement


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One problem: the check that found it, its subject, and a message.

    ``subject`` is a log id, or a key; ``message`` shows no payload data.
    """

    check: str
    subject: str
    message: str
    index: int | None = None


def _nobody(_: int) -> None:
    return None


@dataclass(slots=True)
class Scope:
    """
    The part of a database to verify.

    ``after`` skips the logs up to that one, ``log_types`` selects some types (empty: all).
    Without ``decode``, events are not decoded, and unique values are not compared. ``tell`` is
    called with the number of events checked since the last call; ``reached`` is the last log that
    is done: pass it as ``after`` to resume.
    """

    using: str
    after: LogId | None = None
    log_types: Collection[str] = ()
    decode: bool = True
    tell: Callable[[int], None] = _nobody
    reached: LogId | None = field(default=None)


class Verifier(Protocol):
    """Verifies one aspect of a database."""

    name: str

    def verify(self, scope: Scope) -> Iterator[Finding]:
        """Yield findings as they are found."""


class LogVerifier:
    """Logs against their events."""

    name = "logs"

    def verify(self, scope: Scope) -> Iterator[Finding]:
        """
        Walk over logs and events side by side, both in the order of the logs' UUIDs.

        With ``log_types``, check those logs one by one: events of other logs are not read, and
        events without a log are not found.
        """
        after = scope.after.uuid if scope.after is not None else None
        logs = chain.from_iterable(
            scans.logs_by_id(scope.using, after=after, log_types=scope.log_types)
        )
        reader = _Reader(scope)
        if scope.log_types:
            for each, events in scans.logs_with_events(scope.using, logs):
                yield from self._check(scope, each, iter(events), reader)
                scope.tell(each.version)
            return
        pages = scans.events_by_log(scope.using, after=after)
        log, order = next(logs, None), order_of(scope.using)
        for uuid, rows in groupby(_told(pages, scope), key=lambda event: event.log_id.uuid):
            while log is not None and order(log.log_id.uuid) < order(uuid):
                yield from self._check_again(scope, log)
                log = next(logs, None)
            if log is not None and log.log_id.uuid == uuid:
                yield from self._check(scope, log, rows, reader)
                log = next(logs, None)
            else:
                yield from self._orphans(scope, uuid, rows)
        while log is not None:
            yield from self._check_again(scope, log)
            log = next(logs, None)

    def _check(
        self, scope: Scope, log: LogRow, events: Iterator[StoredEvent], reader: _Reader
    ) -> Iterator[Finding]:
        subject = str(log.log_id)
        if not LOG_TYPE.match(log.log_id.log_type):
            yield Finding("ids", subject, "its log type is invalid, so no log id can name it")
        expected, last = 0, None
        for event in events:
            index, recorded_at = event.index, event.recorded_at
            if event.log_type != log.log_id.log_type:
                yield Finding(
                    "ids", subject, f"it is stored with the log type {event.log_type}", index
                )
            if index != expected:
                yield Finding(
                    "indexes",
                    subject,
                    f"event {index} stands where event {expected} should be",
                    index,
                )
            if last is not None and event.position <= last.position:
                yield Finding(
                    "positions", subject, "its position is before its predecessor's", index
                )
            if last is not None and recorded_at < last.recorded_at:
                yield Finding("times", subject, "it was recorded before its predecessor", index)
            if last is None and log.created_at > recorded_at:
                yield Finding("times", subject, "it was recorded before its log was created", index)
            yield from reader.read(event)
            expected, last = index + 1, event
        if expected != log.version:
            yield from self._check_again(scope, log)
        elif last is not None and log.updated_at != last.recorded_at:
            yield Finding("times", subject, "updated_at is not the time of its last event")
        scope.reached = log.log_id

    def _check_again(self, scope: Scope, log: LogRow) -> Iterator[Finding]:
        """Check a log and its events in one statement: appends continued since it was read."""
        found = (
            EventLog.objects.using(scope.using)
            .filter(pk=log.log_id.uuid)
            .annotate(Count("events"), Min("events__index"), Max("events__index"))
            .values_list("version", "events__count", "events__index__min", "events__index__max")
            .first()
        )
        if found is None:
            if gone(scope.using, log.log_id) is None:  # archived or erased since it was read
                yield Finding("versions", str(log.log_id), "the log's row has disappeared")
            return
        version, count, first, last = found
        if not version:
            yield Finding("versions", str(log.log_id), "the log's row has version 0")
        elif (count, first, last) != (version, 0, version - 1):
            held = f"the log is at version {version} and holds {counted(count, 'event')}"
            indexes = f", from {first} to {last}" if count else ""
            yield Finding("versions", str(log.log_id), held + indexes)
        scope.reached = log.log_id

    def _orphans(
        self, scope: Scope, uuid: UUID, events: Iterator[StoredEvent]
    ) -> Iterator[Finding]:
        count = sum(1 for _ in events)
        logs = EventLog.objects.using(scope.using).filter(pk=uuid)
        leaving = LogMove.objects.using(scope.using).filter(uuid=uuid, state=LogMove.LEAVING)
        left = scans.events_of(scope.using).filter(~Exists(logs), ~Exists(leaving), log_id=uuid)
        if left.exists():  # else the log was archived, erased or moved since, or is leaving
            yield Finding(
                "versions",
                str(uuid),
                f"{counted(count, 'event has', 'events have')} no log of this UUID",
            )


class _Reader:
    """Decodes events one by one; an unknown type is one finding, not one for each event."""

    def __init__(self, scope: Scope) -> None:
        self._reader = EventReader()
        self._decode = scope.decode
        self._unknown: set[str] = set()

    def read(self, event: StoredEvent) -> Iterator[Finding]:
        if not self._decode or event.type in self._unknown:
            return
        try:
            for _ in self._reader.records([event]):
                return
        except (UnknownEventType, RegistrationError):
            self._unknown.add(event.type)
            problem = f"no class is registered for {event.type!r} (reported once for this type)"
        except UndecodableEvent as error:
            problem = f"{event.type}: {error.reason}"
        except Exception as error:  # an upcaster is the project's own code
            problem = (
                f"{event.type} version {event.schema_version}: its upcaster raised "
                f"{type(error).__name__}"
            )
        yield Finding("decoding", str(event.log_id), problem, event.index)


class KeyVerifier:
    """Idempotency keys against the events of their appends."""

    name = "keys"

    def verify(self, scope: Scope) -> Iterator[Finding]:
        """Look up the first and the last event of each key's append."""
        for page in scans.keys_by_id(scope.using):
            for start in range(0, len(page), PAIRS // 2):
                yield from self._check(scope, page[start : start + PAIRS // 2])

    def _check(self, scope: Scope, keys: list[IdempotencyKey]) -> Iterator[Finding]:
        places = Q()
        for each in keys:
            places |= Q(log_id=each.log_id, index=each.first_index)
            places |= Q(log_id=each.log_id, index=each.first_index + each.count - 1)
        stored = {
            (log, index): (log_type, key)
            for log, index, log_type, key in scans.events_of(scope.using)
            .filter(places)
            .values_list("log_id", "index", "log_type", "idempotency_key")
        }
        archived = listing.archived_among(
            scope.using, {LogId.stored(each.log_type, each.log_id) for each in keys}
        )
        moved = moved_away(scope.using, {each.log_id for each in keys})
        for each in keys:
            last = each.first_index + each.count - 1
            if last < moved.get(each.log_id, 0):
                continue  # the keys of a log that was moved are in both databases
            if last < archived.get(LogId.stored(each.log_type, each.log_id), 0):
                continue  # compared with its events when they were archived
            for index in {each.first_index, each.first_index + each.count - 1}:
                event = stored.get((each.log_id, index))
                if event != (each.log_type, each.key):
                    yield Finding(
                        "keys",
                        str(LogId.stored(each.log_type, each.log_id)),
                        "an idempotency key points here, "
                        + ("but there is no event" if event is None else "but not this event's"),
                        index,
                    )


class UniqueVerifier:
    """Unique values against the events that declare them. It needs the events' classes."""

    name = "unique"

    def verify(self, scope: Scope) -> Iterator[Finding]:
        """Compare the logs whose aggregates declare unique fields, then look at each row."""
        if not scope.decode:
            return
        for page in unique_values.pages(scope.using, after=scope.after, log_types=scope.log_types):
            yield from self._compare(scope, page)
        declared = unique_values.scopes_declared()
        for rows in unique_values.rows_by_id(scope.using):
            ids = {LogId.stored(each.log_type, each.log_id): each.scope for each in rows}
            there = set(
                EventLog.objects.using(scope.using)
                .filter(pk__in=[each.uuid for each in ids])
                .values_list("log_type", "pk")
            )
            there.update(
                (each.log_type, each.uuid) for each in listing.archived_among(scope.using, ids)
            )
            for log_id, name in ids.items():
                if scope.log_types and log_id.log_type not in scope.log_types:
                    continue
                if (log_id.log_type, log_id.uuid) not in there:
                    yield self._finding(
                        log_id, f"{name}: the log does not exist, and still has a value"
                    )
                elif name not in declared:
                    yield self._finding(
                        log_id, f"{name}: it has a value, and no event class here has this scope"
                    )

    def _compare(self, scope: Scope, page: list[LogId]) -> Iterator[Finding]:
        claim = command("claim", using=scope.using)
        for each in unique_values.compare(scope.using, page):
            if each.unread:
                yield self._finding(each.log_id, f"its unique values: {each.unread}")
                continue
            owners = unique_values.owners(scope.using, each.missing)
            for value in each.missing:
                owner = owners.get(value)
                message = f"its value is not claimed: run {claim}"
                if owner == each.log_id:
                    continue  # claimed meanwhile
                if owner is not None:
                    message = (
                        f"its value belongs to {owner} as well: append another value to one of "
                        f"them, then run {claim}"
                    )
                yield self._finding(each.log_id, f"{value.scope}: {message}")
            for name in each.superfluous:
                message = f"it has a value that its events do not hold: run {claim}"
                yield self._finding(each.log_id, f"{name}: {message}")

    def _finding(self, log_id: LogId, message: str) -> Finding:
        return Finding("unique", str(log_id), message)


class CacheVerifier:
    """
    Cached reductions against a replay of their logs.

    Only entries that a reader would use are checked: an entry that is not signed, of other code,
    or not proven by its log is a miss for every reader, and no finding. A finding means that the
    fold is not pure: an ``apply`` that reads a clock, a setting or another row. The cache is that
    of the EVENTLOGS setting; caches of single managers are not checked.
    """

    name = "caches"

    def verify(self, scope: Scope) -> Iterator[Finding]:
        """Replay each log of which a reduction is cached."""
        cache = cache_for()
        if isinstance(cache.cache, NoReductionCache):
            return
        try:
            for aggregate in aggregates:
                if not scope.log_types or aggregate.log_type in scope.log_types:
                    yield from self._verify(scope, cache, aggregate)
        except Unreachable:
            yield Finding(
                "caches", "all logs", "the cache cannot be read, so its entries were not checked"
            )

    def _verify(
        self, scope: Scope, cache: GuardedCache, aggregate: type[Aggregate]
    ) -> Iterator[Finding]:
        codec: EntryCodec[Aggregate] = EntryCodec(aggregate, scope.using)
        if not codec.is_possible:
            return
        reader = EventReader(aggregate.event_types)
        after = scope.after.uuid if scope.after is not None else None
        for page in scans.logs_by_id(scope.using, after=after, log_types=[aggregate.log_type]):
            entries = self._entries(cache, codec, page)
            cached = [log for log in page if log.log_id in entries]
            for log, events in scans.logs_with_events(scope.using, cached):
                yield from self._compare(reader, entries[log.log_id], log.log_id, events)

    def _entries(
        self, cache: GuardedCache, codec: EntryCodec[Aggregate], page: list[LogRow]
    ) -> dict[LogId, Entry[Aggregate]]:
        keys = {codec.key(log.log_id): log.log_id for log in page}
        entries = {}
        for key, raw in cache.get_many(keys).items():
            with suppress(Untrusted):
                entries[keys[key]] = codec.decode(raw, keys[key])
        return entries

    def _compare(
        self,
        reader: EventReader,
        entry: Entry[Aggregate],
        log_id: LogId,
        events: Iterable[StoredEvent],
    ) -> Iterator[Finding]:
        last: StoredEvent | None = None

        def stored() -> Iterator[StoredEvent]:
            nonlocal last
            for event in islice(events, entry.head.version):
                last = event
                yield event

        aggregate = type(entry.aggregate)
        try:
            replay = fold(aggregate.without_events(log_id), reader.records(stored())).aggregate
        except (UnknownEventType, UndecodableEvent, LogCorrupted):
            return  # a finding of the logs
        except Exception as error:  # apply() is the project's own code
            reason = f"{aggregate.__qualname__}.apply() raised {type(error).__name__}"
            yield Finding("caches", str(log_id), reason)
            return
        if not entry.is_proven_by(last) or not key_proofs.are_there(entry.head.keys):
            return
        if replay != entry.aggregate and ENCODER.encode(replay) != ENCODER.encode(entry.aggregate):
            yield Finding(
                "caches",
                str(log_id),
                f"the {aggregate.__qualname__} that is cached at version {entry.head.version} "
                f"differs from a replay",
            )


def differences(run: Run, tell: Callable[[int], object] = _nobody) -> Iterator[Finding]:
    """
    Yield the differences between the rows of a read model and a replay of their logs.

    ``tell`` is called with numbers of logs.
    """
    name = run.projection.name
    try:
        for found in run.findings(tell):
            if isinstance(found, Failure):
                at = "" if found.position is None else f" at position {found.position}"
                why = f"its row in {name} is not compared: an event{at} fails with {found.error}"
            else:
                why = f"its row in {name} differs in {', '.join(found.fields)}"
                why += ", and was repaired" if found.is_repaired else ""
            yield Finding("projections", str(found.log_id), why)
    except ProjectionUnavailable as error:
        yield Finding("projections", name, str(error))


class ProjectionVerifier:
    """Rows of read models against a replay of their logs, as of their checkpoints."""

    name = "projections"

    def __init__(self, *, sample: int | None = None, repair: bool = False) -> None:
        """Check ``sample`` random logs, by default all; ``repair`` rows that differ."""
        self._sample = sample
        self._repair = repair

    def verify(self, scope: Scope) -> Iterator[Finding]:
        """Compare the rows of all read models that have one for each log."""
        for each in self.read_models(scope):
            if isinstance(each, Finding):
                yield each
            else:
                yield from differences(each)

    def read_models(self, scope: Scope) -> Iterator[Run | Finding]:
        """Yield the read models that can be compared, and findings of those that cannot."""
        for projection in declared(RowProjection, using=scope.using):
            if projection.has_shared_rows():
                continue
            try:
                yield Run(
                    projection,
                    sample=self._sample,
                    repair=self._repair,
                    after=scope.after,
                    log_types=scope.log_types,
                    using=scope.using,
                )
            except ProjectionUnavailable as error:
                yield Finding("projections", projection.name, str(error))


class ErasureVerifier:
    """
    Marks of erased, archived and moved logs against the rows that say what became of them.

    A log that was removed by hand has neither, or one of them only. Its events, keys and unique
    values, if any are left, are findings of the other verifiers.
    """

    name = "erased"

    def verify(self, scope: Scope) -> Iterator[Finding]:
        """Compare the tables in one statement each: what they lack is little."""
        marks: QuerySet[EventLog] = QuerySet(EventLog, using=scope.using).filter(
            log_type=NO_LOG_TYPE
        )
        stones = ErasedLog.objects.using(scope.using)
        archived = ArchivedLog.objects.using(scope.using).filter(pk=OuterRef("pk"))
        moves = LogMove.objects.using(scope.using).exclude(state=LogMove.ARRIVED)
        without = marks.filter(
            ~Exists(stones.filter(pk=OuterRef("pk"))),
            ~Exists(archived),
            ~Exists(moves.filter(uuid=OuterRef("pk"))),
        )
        for uuid in without.values_list("pk", flat=True):
            yield Finding(
                "erased",
                str(uuid),
                "a log of this UUID has disappeared without a tombstone: it was not erased by "
                "`eventlogs erase`",
            )
        for stone in stones.filter(~Exists(marks.filter(pk=OuterRef("pk")))):
            yield Finding(
                "erased",
                str(stone.log_id),
                "it was erased, and its row does not keep it from being created again",
            )
        rows = ArchivedLog.objects.using(scope.using)
        for row in rows.filter(~Exists(marks.filter(pk=OuterRef("pk")))):
            yield Finding(
                "archived",
                str(row.log_id),
                "it is archived, and its row does not keep it from being created again",
            )
        begun = moves.filter(state=LogMove.LEAVING, begun_at__lt=timezone.now() - INTERRUPTED)
        for move in begun.order_by("pk"):
            yield Finding(
                "moves",
                str(move.log_id),
                f"it is being moved to {move.other!r} since {time_text(move.begun_at)}, and takes "
                f"no events: run the move again, or end it with --abandon",
            )


def moved_away(using: str, uuids: Collection[UUID]) -> dict[UUID, int]:
    """Return those of some logs that were moved, or are leaving, and how many events they had."""
    found: dict[UUID, int] = {}
    for move in LogMove.objects.using(using).filter(uuid__in=uuids).order_by("pk"):
        found.pop(move.uuid, None)
        if move.state != LogMove.ARRIVED:
            found[move.uuid] = move.version
    return found


VERIFIERS: list[Verifier] = [
    LogVerifier(),
    KeyVerifier(),
    UniqueVerifier(),
    ErasureVerifier(),
]
"""What ``manage.py eventlogs verify`` runs; append a verifier of your own."""


def verify(scope: Scope, verifiers: Iterable[Verifier] = ()) -> Iterator[Finding]:
    """Yield the findings of VERIFIERS, then those of ``verifiers``."""
    for verifier in (*VERIFIERS, *verifiers):
        yield from verifier.verify(scope)


def _told(pages: Iterator[list[StoredEvent]], scope: Scope) -> Iterator[StoredEvent]:
    for page in pages:
        yield from page
        scope.tell(len(page))
