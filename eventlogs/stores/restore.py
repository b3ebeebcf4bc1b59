"""
Restoring exported logs, those of this database or of another one.

It is not an append: the times are the export's, and no version is expected. But it takes the same
locks and keeps the same guarantees: indexes without a hole, versions that count the events,
recorded_at that never decreases within a log. Events that are stored already are compared, never
written again, so a second restore of an export changes nothing; if one of them differs, nothing is
restored.

Events are inserted and versions raised by the store, in the SQL of its database. Everything else
uses the ORM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from django.apps import apps
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Q, QuerySet

from eventlogs import conf
from eventlogs.conf import MAX_VERSION
from eventlogs.events import chain
from eventlogs.events.codec import EXACT_JSON
from eventlogs.events.unique_values import UniqueReader, Values
from eventlogs.exceptions import ImportDiffers
from eventlogs.ids import LogId
from eventlogs.stores import stored_types, unique_values
from eventlogs.stores.claims import insert_missing
from eventlogs.stores.columns import STORED_WITH_LOG, events_of_rows
from eventlogs.stores.erasing import NO_LOG_TYPE
from eventlogs.values import StoredEvent

T = TypeVar("T")

RANGES: Final = 100  # logs whose events are looked up by one statement
RAISED: Final = 100  # logs whose versions are raised by one statement

WHEN: Final = "WHEN %s THEN %s"
# Right because: the caller has locked the rows, and each of them is named in the first two CASEs.
RAISE_VERSIONS: Final = """
UPDATE {table}
SET version = version + CASE id {cases} END,
    updated_at = {greatest}(updated_at, CASE id {cases} END){heads}
WHERE id IN ({ids})
"""


@dataclass(frozen=True, slots=True)
class ExportedClaim:
    """The idempotency key of an append, which travels with the append's first event."""

    count: int  # events of the append
    fingerprint: bytes
    created_at: datetime


class ExportedEvent(NamedTuple):
    """A stored event as an export holds it, with the rows that travel beside it."""

    event: StoredEvent
    claim: ExportedClaim | None = None  # with the first event of an append that has a key
    log_created_at: datetime | None = None  # with event 0; by default its recorded_at
    digest: bytes | None = None  # in a log that is chained


class Restored(NamedTuple):
    """
    The result of a batch: how many events were stored, and how many were there before.

    ``taken`` are unique values of restored events that belong to other logs, and stayed there.
    ``erased`` are logs that were erased here, ``archived`` those that are in archives of this
    database: their events were left out.
    """

    stored: int
    present: int
    taken: tuple[unique_values.Taken, ...] = ()
    erased: frozenset[LogId] = frozenset()
    archived: frozenset[LogId] = frozenset()


class Known(NamedTuple):
    """What a store knows of a log before it restores to it."""

    log_type: str
    version: int
    last_recorded_at: datetime | None
    head: bytes | None = None  # the digest of its last event, in a log that is chained


class Plan(NamedTuple):
    """
    Events divided into those to store, in order, and those that are there already.

    ``present`` is to be compared first; ``refusal`` says what is wrong with the others.
    """

    new: list[ExportedEvent]
    present: list[StoredEvent]
    refusal: ImportDiffers | None = None


def plan(events: Iterable[ExportedEvent], known: dict[UUID, Known]) -> Plan:
    """Divide events into new and present ones, up to the first that does not follow the others."""
    versions = {log: each.version for log, each in known.items()}
    times = {log: each.last_recorded_at for log, each in known.items()}
    new: list[ExportedEvent] = []
    present: list[StoredEvent] = []
    for exported in events:
        event = exported.event
        log = event.log_id.uuid
        version, last = versions[log], times[log]
        reason = ""
        if known[log].log_type != event.log_type:
            reason = "its UUID is that of another type's log"
        elif event.index < known[log].version:
            present.append(event)
            continue
        elif event.index != version or version >= MAX_VERSION:
            reason = f"event {version} has to come next"
        elif last is not None and event.recorded_at < last:
            reason = "it is older than the event before it"
        if reason:
            refusal = ImportDiffers(event.log_id, index=event.index, reason=reason)
            return Plan(new, present, refusal)
        new.append(exported)
        versions[log], times[log] = version + 1, event.recorded_at
    return Plan(new, present)


def chained(new: Iterable[ExportedEvent], known: dict[UUID, Known]) -> list[ExportedEvent]:
    """
    Return events with the digests to store, None in logs that are not chained.

    Raise ImportDiffers for one whose digest in the export is another one: the export was changed,
    or a part of it is missing.
    """
    heads = {log: each.head for log, each in known.items()}
    done = []
    for each in new:
        event = each.event
        log = event.log_id.uuid
        head = heads[log]
        if head is not None:
            head = heads[log] = chain.digest(head, event)
            if each.digest not in (None, head):
                raise ImportDiffers(
                    event.log_id,
                    index=event.index,
                    reason="it does not fit the digest that was exported with it",
                )
        done.append(each._replace(digest=head))
    return done


def compare(event: StoredEvent, stored: StoredEvent | None) -> None:
    """Raise ImportDiffers where an exported event is not the one that is stored at its place."""
    if stored is None:
        raise ImportDiffers(event.log_id, index=event.index, reason="it is missing here")
    for part, same in (
        ("type", event.type == stored.type),
        ("schema version", event.schema_version == stored.schema_version),
        ("time", event.recorded_at == stored.recorded_at),
        ("idempotency key", event.idempotency_key == stored.idempotency_key),
        ("data", same_json(event.data, stored.data)),
        ("metadata", same_json(event.metadata, stored.metadata)),
    ):
        if not same:
            raise ImportDiffers(
                event.log_id, index=event.index, reason=f"its {part} is another one here"
            )


def same_json(one: str, other: str) -> bool:
    """Return whether two texts are the same JSON: each database writes it in its own way."""
    return one == other or EXACT_JSON.decode(one) == EXACT_JSON.decode(other)


def restore(
    using: str,
    events: Sequence[ExportedEvent],
    insert: Callable[[Sequence[ExportedEvent]], None],
) -> Restored:
    """
    Store the events that are missing, in one transaction.

    ``insert`` writes events in order, and raises the versions of their logs.

    Right because: the rows of the logs are locked, in the order of their ids, before anything
    is compared, so that no append and no other restore comes in between. A new log's row is
    inserted first, which makes a concurrent creator wait. It never stays at version 0: either its
    event 0 is in the batch, or the batch is refused and rolled back.
    """
    if not events:
        return Restored(0, 0)
    with transaction.atomic(using=using):
        known = _lock(using, events)
        events, gone = without_erased(events, known)
        archived = _archived(using, gone)
        new, present, refusal = plan(events, known)
        _compare(using, present)
        if refusal is not None:
            raise refusal
        taken: list[unique_values.Taken] = []
        if new:
            insert(chained(new, known))
            _restore_keys(using, new)
            taken = unique_values.settle(using, values_of(each.event for each in new)).taken
    return Restored(len(new), len(present), tuple(taken), gone - archived, archived)


def without_erased(
    events: Iterable[ExportedEvent], known: dict[UUID, Known]
) -> tuple[list[ExportedEvent], frozenset[LogId]]:
    """
    Leave out the events of erased and archived logs, and name these logs.

    An old export has them still.
    """
    kept: list[ExportedEvent] = []
    erased: set[LogId] = set()
    for each in events:
        log_id = each.event.log_id
        if known[log_id.uuid].log_type == NO_LOG_TYPE:
            erased.add(log_id)
        else:
            kept.append(each)
    return kept, frozenset(erased)


def _archived(using: str, log_ids: Collection[LogId]) -> frozenset[LogId]:
    """Return those of some logs that are archived here."""
    found: set[LogId] = set()
    for some in batched(sorted(log_ids), RANGES):
        held = rows(using, "ArchivedLog").filter(pk__in=[each.uuid for each in some])
        pairs = set(held.values_list("log_type", "pk"))
        found.update(each for each in some if (each.log_type, each.uuid) in pairs)
    return frozenset(found)


def values_of(events: Iterable[StoredEvent]) -> dict[LogId, Values]:
    """
    Return the unique values that events, in order, give to their logs.

    A value that a log had for a time within the batch is not claimed. Nor is a value refused: an
    import restores what has happened, and a value that two logs have is reported after it.
    """
    reader = UniqueReader()
    found: dict[LogId, Values] = {}
    for event in events:
        for scope, digest in reader.values_of(event):
            found.setdefault(event.log_id, {})[scope] = digest
    return found


def restore_new_logs(
    using: str,
    events: Sequence[ExportedEvent],
    insert: Callable[[Sequence[ExportedEvent]], None],
) -> frozenset[LogId]:
    """
    Store the events of the logs that do not exist, in one transaction, and return their ids.

    Right because: it takes the locks of ``restore``, so a log that is at version 0 under them is
    new. Keys are looked at before any log is locked, since a log must not stay at version
    0. A key that is taken in between makes ``_restore_keys`` refuse the whole batch.
    """
    events = without_taken_keys(events, _taken_keys(using, events))
    if not events:
        return frozenset()
    with transaction.atomic(using=using):
        known = _lock(using, events)
        new = of_new_logs(events, known)
        if new:
            insert(chained(new, known))
            _restore_keys(using, new)
            # A value that another log has stays there, and `verify` reports it, as after an import.
            unique_values.settle(using, values_of(each.event for each in new))
    return frozenset(each.event.log_id for each in new)


def without_taken_keys(
    events: Sequence[ExportedEvent], taken: Collection[tuple[str, str]]
) -> Sequence[ExportedEvent]:
    """Leave out the logs whose first event has a key that is among ``taken`` (type and key)."""
    first: dict[LogId, StoredEvent] = {}
    for event, *_ in events:
        first.setdefault(event.log_id, event)
    out = {
        log_id
        for log_id, event in first.items()
        if (event.log_type, event.idempotency_key) in taken
    }
    return [each for each in events if each.event.log_id not in out] if out else events


def of_new_logs(events: Iterable[ExportedEvent], known: dict[UUID, Known]) -> list[ExportedEvent]:
    """
    Return the events of logs that do not exist, and were neither erased nor archived.

    Raise ImportDiffers where another type's log has the UUID, or events do not follow each other.
    """
    fresh = []
    kept, _ = without_erased(events, known)
    for exported in kept:
        event = exported.event
        log = known[event.log_id.uuid]
        if log.log_type != event.log_type:
            raise ImportDiffers(
                event.log_id, index=event.index, reason="its UUID is that of another type's log"
            )
        if not log.version:
            fresh.append(exported)
    new, _, refusal = plan(fresh, known)
    if refusal is not None:
        raise refusal
    return new


def _taken_keys(using: str, events: Iterable[ExportedEvent]) -> set[tuple[str, str]]:
    keys = {
        (event.log_type, event.idempotency_key)
        for event, *_ in events
        if event.idempotency_key is not None
    }
    held = rows(using, "IdempotencyKey").filter(
        log_type__in={log_type for log_type, _ in keys}, key__in={key for _, key in keys}
    )
    return keys & set(held.values_list("log_type", "key"))


def _lock(using: str, events: Iterable[ExportedEvent]) -> dict[UUID, Known]:
    first: dict[UUID, ExportedEvent] = {}
    for each in events:
        first.setdefault(each.event.log_id.uuid, each)
    model = apps.get_model("eventlogs", "EventLog")
    claims = [
        model(
            id=log,
            log_type=event.log_type,
            version=0,
            created_at=created_at or event.recorded_at,
            updated_at=event.recorded_at,
            head=chain.FIRST if digest is not None or conf.chain() else None,
        )
        for log, (event, _, created_at, digest) in sorted(first.items())
    ]
    insert_missing(using, claims)
    no_key = connections[using].features.has_select_for_no_key_update
    locked = (
        rows(using, "EventLog")
        .filter(pk__in=list(first))
        .order_by("pk")
        .select_for_update(no_key=no_key)
        .values_list("pk", "log_type", "version", "updated_at", "head")
    )
    return {
        log: Known(log_type, version, updated_at if version else None, head and bytes(head))
        for log, log_type, version, updated_at, head in locked
    }


def _compare(using: str, present: Sequence[StoredEvent]) -> None:
    by_log: dict[LogId, list[StoredEvent]] = {}
    for event in present:
        by_log.setdefault(event.log_id, []).append(event)
    for some in batched(by_log.items(), RANGES):
        ranges = Q()
        for log_id, events in some:
            indexes = [event.index for event in events]
            ranges |= Q(log_id=log_id.uuid, index__gte=min(indexes), index__lte=max(indexes))
        found = rows(using, "Event").filter(ranges).values_list(*STORED_WITH_LOG)
        stored = {(each.log_id, each.index): each for each in events_of_rows(found)}
        for _, events in some:
            for event in events:
                compare(event, stored.get((event.log_id, event.index)))


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of at most ``size`` items (itertools.batched is Python 3.12's)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _restore_keys(using: str, new: Iterable[ExportedEvent]) -> None:
    claimed = {
        (event.log_type, event.idempotency_key): (event, claim)
        for event, claim, *_ in new
        if claim is not None and event.idempotency_key is not None
    }
    if not claimed:
        return
    model = apps.get_model("eventlogs", "IdempotencyKey")
    insert_missing(
        using,
        [
            model(
                log_type=log_type,
                key=key,
                log_id=event.log_id.uuid,
                first_index=event.index,
                count=claim.count,
                fingerprint=claim.fingerprint,
                created_at=claim.created_at,
            )
            for (log_type, key), (event, claim) in claimed.items()
        ],
    )
    holders = rows(using, "IdempotencyKey").filter(
        log_type__in={log_type for log_type, _ in claimed}, key__in={key for _, key in claimed}
    )
    for log_type, key, log, first_index in holders.values_list(
        "log_type", "key", "log_id", "first_index"
    ):
        wanted, _ = claimed.get((log_type, key), (None, None))
        if wanted is not None and (wanted.log_id.uuid, wanted.index) != (log, first_index):
            raise ImportDiffers(
                wanted.log_id,
                index=wanted.index,
                reason=f"its idempotency key is that of event {first_index} of "
                f"{LogId.stored(log_type, log)} here",
            )


def note_restored(connection: BaseDatabaseWrapper, events: Iterable[ExportedEvent]) -> None:
    """Note the types and versions of restored events, in the transaction that stores them."""
    found: dict[str, set[tuple[str, int]]] = {}
    for event, *_ in events:
        found.setdefault(event.log_type, set()).add((event.type, event.schema_version))
    for log_type, pairs in found.items():
        stored_types.note(connection, log_type, list(pairs))


def raise_versions(using: str, new: Iterable[ExportedEvent]) -> None:
    """Count restored events into their logs' versions and heads, many logs at a time."""
    counts: Counter[UUID] = Counter()
    last: dict[UUID, datetime] = {}
    heads: dict[UUID, bytes] = {}
    for event, _, _, digest in new:
        counts[event.log_id.uuid] += 1
        last[event.log_id.uuid] = event.recorded_at
        if digest is not None:
            heads[event.log_id.uuid] = digest
    connection = connections[using]
    meta = apps.get_model("eventlogs", "EventLog")._meta
    id_of = partial(meta.get_field("id").get_db_prep_value, connection=connection)
    time_of = partial(meta.get_field("updated_at").get_db_prep_value, connection=connection)
    greatest = "MAX" if connection.vendor == "sqlite" else "GREATEST"
    for some in batched(counts.items(), RAISED):
        ids = [id_of(log) for log, _ in some]
        added = [each for id_, (_, count) in zip(ids, some, strict=True) for each in (id_, count)]
        times = [
            each
            for id_, (log, _) in zip(ids, some, strict=True)
            for each in (id_, time_of(last[log]))
        ]
        cases = " ".join([WHEN] * len(some))
        chained = [each for log, _ in some if log in heads for each in (id_of(log), heads[log])]
        cases_of_heads = " ".join([WHEN] * (len(chained) // 2))
        with connection.cursor() as cursor:
            cursor.execute(
                RAISE_VERSIONS.format(
                    table=connection.ops.quote_name(meta.db_table),
                    greatest=greatest,
                    cases=cases,
                    heads=f", head = CASE id {cases_of_heads} ELSE head END" if chained else "",
                    ids=", ".join(["%s"] * len(some)),
                ),
                [*added, *times, *chained, *ids],
            )


def rows(using: str, model: str) -> QuerySet[Any]:
    """Return a plain queryset: those of the models refuse to write. By name: they import stores."""
    return QuerySet(apps.get_model("eventlogs", model), using=using)
