"""
Running an adoption: batches of rows are locked and become logs, each batch in one transaction.

Why no change of a row is lost. A row's genesis event, and the row's lock that it was read under,
are one transaction. A writer that changes the row first and appends to its log then, in one
transaction, comes before or after it. Before: its change is committed when the row is read, as the
lock makes the adoption wait and read again. After: its UPDATE waits for the lock, so its append
finds the log. (Where an adoption reads without the lock, a change in between is in neither.)

Why no row is adopted twice and none is left out. A log is stored only where it does not exist,
under its lock, and with a key of the row that one log of a type can have, so a process that begins
again, or beside another one, finds the stored logs. No progress is stored: the process after a
killed one looks at all rows.

Why an adoption ends no writer's transaction. While it holds locks it waits for no row: rows that
others have locked are left for later, and then locked alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Protocol

from django.db import connections, models, router
from django.db.models import QuerySet
from django.utils import timezone

from eventlogs import conf
from eventlogs.aggregates import Aggregate
from eventlogs.conf import MAX_KEY_LENGTH
from eventlogs.deciders import why_no_event
from eventlogs.events.codec import (
    EncodedEvent,
    codec_for,
    encode_metadata,
    request_fingerprints,
)
from eventlogs.events.metadata import ADOPTED
from eventlogs.exceptions import AdoptionFailed, EventLogError, TransactionMustRetry
from eventlogs.ids import LogId
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.operations.adoption.histories import CHANGED, DELETED, Change, History
from eventlogs.privacy.sealing import Sealing
from eventlogs.stores import ExportedClaim, ExportedEvent, StoredEvent
from eventlogs.stores.retries import run_in_transaction
from eventlogs.utils.bounds import check_int

BATCH: Final = 500  # rows of a transaction
MAX_BATCH: Final = 10_000
EVENTS_AT_ONCE: Final = 1_000  # stored by one call
AHEAD: Final = timedelta(minutes=1)  # by which another machine's clock may be ahead
MAX_PROBLEMS: Final = 20  # of a dry run, that are told


class Declaration(Protocol):
    """What ``Adoption`` says of a row; see there."""

    def event(self, row: Any) -> Any: ...
    def change(self, change: Change) -> Any: ...
    def log_id(self, row: Any) -> LogId: ...
    def recorded_at(self, row: Any) -> datetime: ...
    def metadata(self, row: Any) -> Mapping[str, Any]: ...
    def rows(self, using: str) -> QuerySet[Any]: ...


@dataclass(frozen=True, slots=True)
class Adopted:
    """
    The result of an adoption.

    ``logs`` were made, of ``events``. ``present`` rows had a log before, ``passed_over`` rows
    became no event. ``problems`` are those that a dry run found, 20 at most.
    """

    logs: int = 0
    events: int = 0
    present: int = 0
    passed_over: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entity:
    """A row, or what the history says of one that was deleted."""

    pk: Any
    row: Any
    log_id: LogId
    key: str


class Run:
    """One run of an adoption over a table."""

    def __init__(
        self,
        declaration: Declaration,
        model: type[models.Model],
        aggregate: type[Aggregate],
        history: History | None,
        *,
        using: str,
        batch_size: int = BATCH,
        tell: Callable[[int], object] | None = None,
    ) -> None:
        check_int("batch_size", batch_size, lowest=1, highest=MAX_BATCH)
        self._declaration = declaration
        self._model = model
        self._aggregate = aggregate
        self._history = history
        self._using = using
        self._source = router.db_for_write(model)
        self._store = EventLog.objects.store(using=using)
        self._batch_size = batch_size
        self._tell = tell or (lambda rows: None)
        self._codecs = {each.cls: codec_for(each) for each in aggregate.event_types}
        self._label = model._meta.label_lower
        self._counts: Counter[str] = Counter()
        self._problems: list[str] = []

    def run(self, *, dry_run: bool = False) -> Adopted:
        """Adopt all rows, and entities that only the history knows."""
        for pks in self._pages(self._keys_of_rows):
            self._adopt(pks, self._rows_by(pks), dry_run)
        if self._history is not None:
            for pks in self._pages(self._history_keys):
                gone = self._deleted(pks)
                self._adopt(list(gone), gone, dry_run, are_deleted=True)
        return Adopted(
            self._counts["logs"],
            self._counts["events"],
            self._counts["present"],
            self._counts["passed over"],
            tuple(self._problems),
        )

    # The pages of keys

    def _pages(self, keys_after: Callable[[Any], list[Any]]) -> Iterator[list[Any]]:
        after = None
        while pks := keys_after(after):
            yield pks
            after = pks[-1]

    def _keys_of_rows(self, after: Any) -> list[Any]:
        rows = self._declaration.rows(self._source)
        if after is not None:
            rows = rows.filter(pk__gt=after)
        return list(rows.order_by("pk").values_list("pk", flat=True)[: self._batch_size])

    def _history_keys(self, after: Any) -> list[Any]:
        assert self._history is not None
        return self._history.keys_after(self._source, after, self._batch_size)

    def _rows_by(self, pks: Sequence[Any]) -> dict[Any, Any]:
        rows = self._declaration.rows(self._source).filter(pk__in=pks).order_by("pk")
        return {row.pk: row for row in rows}

    def _deleted(self, keys: Sequence[Any]) -> dict[Any, Any]:
        """Return entities that have a history and no row, with the values of its last row."""
        assert self._history is not None
        pks = [self._history.key_in_model(key) for key in keys]
        there = self._model._base_manager.using(self._source).filter(pk__in=pks)
        left = set(pks) - set(there.values_list("pk", flat=True))
        if not left:
            return {}
        last = dict(self._history.changes(self._source, sorted(left)))
        names = {each.attname for each in self._model._meta.concrete_fields}
        return {
            pk: self._model(
                **{name: value for name, value in change.values.items() if name in names},
                pk=pk,
            )
            for pk, change in last.items()
        }

    # A batch

    def _adopt(
        self, pks: list[Any], rows: Mapping[Any, Any], dry_run: bool, *, are_deleted: bool = False
    ) -> None:
        entities = {pk: self._entity(row) for pk, row in rows.items()}
        missing = self._without_log(list(entities.values()))
        self._counts["present"] += len(entities) - len(missing)
        if dry_run:
            self._try(missing)
        elif are_deleted:
            self._adopt_deleted(missing)
        elif missing:
            done = self._in_transaction([each.pk for each in missing], skip_locked=True)
            for pk in [each.pk for each in missing if each.pk not in done]:
                self._in_transaction([pk], skip_locked=False)
        self._tell(len(pks))

    def _entity(self, row: Any) -> Entity:
        pk = row.pk
        with self._failing(pk):
            log_id = self._declaration.log_id(row)
            if not isinstance(log_id, LogId) or log_id.log_type != self._aggregate.log_type:
                raise AdoptionFailed(
                    self._label,
                    pk,
                    reason=f"log_id() must return a LogId of type {self._aggregate.log_type!r}",
                )
        return Entity(pk, row, log_id, key_of(self._label, pk))

    def _without_log(self, entities: Sequence[Entity]) -> list[Entity]:
        """Return the entities that have no log yet; refuse a log id that two rows share."""
        ids = {each.log_id.uuid: each for each in entities}
        keys = {each.key: each for each in entities}
        if len(ids) < len(entities):
            other = next(each for each in entities if ids[each.log_id.uuid] is not each)
            raise AdoptionFailed(self._label, other.pk, reason="another row has the same log id")
        logs = EventLog.objects.using(self._using).filter(pk__in=list(ids))
        types = dict(logs.values_list("pk", "log_type"))
        claims = IdempotencyKey.objects.using(self._using).filter(
            log_type=self._aggregate.log_type, key__in=list(keys)
        )
        claimed = dict(claims.values_list("key", "log_id"))
        unsure = [pk for pk in types if claimed.get(ids[pk].key) != pk]
        begun = Event.objects.using(self._using).filter(log_id__in=unsure, index=0)
        for uuid, metadata in begun.values_list("log_id", "metadata"):
            mark = metadata.get(ADOPTED) or {}
            if mark.get("model") == self._label and mark.get("pk") != str(ids[uuid].pk):
                raise AdoptionFailed(
                    self._label, ids[uuid].pk, reason="another row has the same log id"
                )
        for uuid, log_type in types.items():
            if log_type != self._aggregate.log_type:
                raise AdoptionFailed(
                    self._label,
                    ids[uuid].pk,
                    reason=f"its UUID is that of a log of type {log_type!r}: define log_id() with "
                    f"LogId.from_key()",
                )
        return [
            each for each in entities if each.log_id.uuid not in types and each.key not in claimed
        ]

    def _in_transaction(self, pks: Sequence[Any], *, skip_locked: bool) -> set[Any]:
        """Adopt rows in one transaction; return those that could be locked."""
        counts: Counter[str] = Counter()
        found: set[Any] = set()

        def batch() -> None:
            counts.clear()
            found.clear()
            rows = self._declaration.rows(self._source).filter(pk__in=pks).order_by("pk")
            entities = [self._entity(row) for row in self.locked(rows, skip_locked=skip_locked)]
            found.update(each.pk for each in entities)
            self._store_events(entities, counts)

        run_in_transaction(self._source, batch)
        self._counts.update(counts)
        return found

    def _adopt_deleted(self, entities: Sequence[Entity]) -> None:
        """Adopt entities without a row: there is nothing to lock, and nobody changes them."""
        counts: Counter[str] = Counter()

        def batch() -> None:
            counts.clear()
            self._store_events(entities, counts, are_deleted=True)

        if entities:
            run_in_transaction(self._using, batch)
            self._counts.update(counts)

    def locked(self, rows: QuerySet[Any], *, skip_locked: bool) -> QuerySet[Any]:
        """Return the rows under their locks: see the module's docstring."""
        features = connections[self._source].features
        if not features.has_select_for_update:
            return rows
        options: dict[str, Any] = {}
        if features.has_select_for_update_of:
            # Also the rows of the parents, whose columns are the row's as well.
            options["of"] = ("self", *parent_links(self._model))
        if features.has_select_for_no_key_update:
            options["no_key"] = True
        if features.has_select_for_update_skip_locked:
            options["skip_locked"] = skip_locked
        return rows.select_for_update(**options)

    def _store_events(
        self, entities: Sequence[Entity], counts: Counter[str], *, are_deleted: bool = False
    ) -> None:
        begun: set[LogId] = set()
        left_out: set[LogId] = set()
        named: set[LogId] = set()
        chunk: list[ExportedEvent] = []

        def flush() -> None:
            going_on = [each for each in chunk if each.event.log_id in begun]
            new = [
                each
                for each in chunk
                if each.event.log_id not in begun and each.event.log_id not in left_out
            ]
            if going_on:
                self._store.restore(going_on)
            stored = self._store.restore_new_logs(new)
            begun.update(stored)
            left_out.update({each.event.log_id for each in new} - stored)
            counts["events"] += len(going_on)
            counts["events"] += sum(each.event.log_id in stored for each in new)
            chunk.clear()

        for exported in self._events_of(entities, are_deleted):
            named.add(exported.event.log_id)
            chunk.append(exported)
            if len(chunk) >= EVENTS_AT_ONCE:
                flush()
        flush()
        counts["logs"] += len(begun)
        counts["present"] += len(left_out)
        counts["passed over"] += len(entities) - len(named)

    def _try(self, entities: Sequence[Entity]) -> None:
        for entity in entities:
            try:
                events = sum(1 for _ in self._events_of([entity], are_deleted=False))
            except AdoptionFailed as error:
                if len(self._problems) < MAX_PROBLEMS:
                    self._problems.append(str(error))
                continue
            self._counts["events"] += events
            self._counts["logs" if events else "passed over"] += 1

    # Events

    def _events_of(self, entities: Sequence[Entity], are_deleted: bool) -> Iterator[ExportedEvent]:
        """Yield the events of entities, those of one after another."""
        if self._history is None:
            for entity in entities:
                yield from self._genesis(entity)
            return
        by_pk = {each.pk: each for each in entities}
        changes = self._history.changes(self._source, list(by_pk))
        for pk, group in groupby(changes, key=itemgetter(0)):
            entity = by_pk.pop(pk)
            yield from self._history_of(entity, (change for _, change in group), are_deleted)
        for entity in by_pk.values():
            yield from self._genesis(entity)

    def _genesis(self, entity: Entity) -> Iterator[ExportedEvent]:
        with self._failing(entity.pk):
            event = self._declaration.event(entity.row)
            if event is None:
                return
            recorded_at = self._declaration.recorded_at(entity.row)
            metadata = self._declaration.metadata(entity.row)
            mark = {"model": self._label, "pk": str(entity.pk)}
            yield self._exported(entity, 0, event, recorded_at, metadata, mark)

    def _history_of(
        self, entity: Entity, changes: Iterable[Change], are_deleted: bool
    ) -> Iterator[ExportedEvent]:
        assert self._history is not None
        index, last_at = 0, None
        rows = self._history.rows_model._meta.label_lower
        for change in self._with_unseen(entity, changes, are_deleted):
            with self._failing(entity.pk):
                event = self._declaration.change(change)
                if event is None:
                    continue
                mark = {"model": self._label, "pk": str(entity.pk), "history": rows}
                if change.row is not None:
                    mark["history_pk"] = str(change.row.pk)
                # The clocks of several machines may disagree, and a log's times do not run
                # backwards.
                at = change.at if last_at is None else max(change.at, last_at)
                last_at = at
                metadata = dict(change.metadata)
                if change.user is not None:
                    metadata["user"] = (
                        change.user if isinstance(change.user, int) else str(change.user)
                    )
                yield self._exported(entity, index, event, at, metadata, mark)
                index += 1

    def _with_unseen(
        self, entity: Entity, changes: Iterable[Change], are_deleted: bool
    ) -> Iterator[Change]:
        last = None
        for last in changes:
            yield last
        unseen = None if are_deleted else self._unseen(entity, last)
        if unseen is not None:
            yield unseen

    def _unseen(self, entity: Entity, last: Change | None) -> Change | None:
        """Return the change that leads from the last row of a history to the table's row."""
        assert self._history is not None
        if last is None or not self._history.has_values:
            return None
        now = {name: getattr(entity.row, name) for name in last.values}
        if now == dict(last.values) and last.kind != DELETED:
            return None
        return Change(CHANGED, now, last.values, timezone.now())

    def _exported(
        self,
        entity: Entity,
        index: int,
        event: Any,
        recorded_at: Any,
        metadata: Mapping[str, Any],
        mark: Mapping[str, str],
    ) -> ExportedEvent:
        codec = self._codecs.get(type(event))
        if codec is None:
            why = why_no_event(event, self._aggregate.__qualname__)
            raise AdoptionFailed(self._label, entity.pk, reason=why)
        if not isinstance(recorded_at, datetime) or timezone.is_naive(recorded_at):
            raise AdoptionFailed(
                self._label, entity.pk, reason="its time is no datetime with a time zone"
            )
        if recorded_at > timezone.now() + AHEAD:
            raise AdoptionFailed(self._label, entity.pk, reason="its time is in the future")
        encoded = codec.encode(event, conf.max_event_bytes())
        text = _with_mark(metadata, mark)
        if codec.personal or conf.personal_metadata():
            sealing = Sealing(entity.log_id, [encoded], [codec.personal], text)
            if sealing.is_needed:
                sealing.find_keys(self._using)
                [encoded] = sealing.sealed(index, compares=True)
                text = sealing.sealed_metadata()
        stored = StoredEvent(
            entity.log_id,
            index,
            0,
            encoded.type,
            encoded.schema_version,
            encoded.data,
            text,
            entity.key if index == 0 else None,
            recorded_at,
        )
        claim = self._claim(encoded) if index == 0 else None
        return ExportedEvent(stored, claim, recorded_at if index == 0 else None)

    def _claim(self, encoded: EncodedEvent) -> ExportedClaim:
        # Not of the time of the row: keys are pruned by their age.
        return ExportedClaim(1, next(request_fingerprints([encoded])), timezone.now())

    def _failing(self, pk: Any) -> _Failing:
        return _Failing(self._label, pk)


class _Failing:
    """Turn what a declaration raises into an AdoptionFailed that names the row."""

    def __init__(self, label: str, pk: Any) -> None:
        self._label, self._pk = label, pk

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(
            error, AdoptionFailed | TransactionMustRetry
        ):
            return
        # The text of another error may quote the row.
        reason = str(error) if isinstance(error, EventLogError) else type(error).__qualname__
        raise AdoptionFailed(self._label, self._pk, reason=reason) from error


def key_of(label: str, pk: Any) -> str:
    """Return the idempotency key of a row's first event."""
    key = f"adopt:{label}:{pk}"
    if len(key) <= MAX_KEY_LENGTH and "\0" not in key:
        return key
    return f"adopt:{label}:{sha256(str(pk).encode(errors='replace')).hexdigest()}"[-MAX_KEY_LENGTH:]


def parent_links(model: type[models.Model], prefix: str = "") -> Iterator[str]:
    """Yield the paths of the one-to-one fields that lead to a model's parents."""
    for parent, link in model._meta.parents.items():
        if link is not None and link.model is model:
            yield f"{prefix}{link.name}"
            yield from parent_links(parent, f"{prefix}{link.name}__")


def _with_mark(metadata: Mapping[str, Any], mark: Mapping[str, str]) -> str:
    own = encode_metadata({"mark": dict(mark)}).removeprefix('{"mark":').removesuffix("}")
    rest = encode_metadata(dict(metadata)).removeprefix("{").removesuffix("}")
    return f'{{"{ADOPTED}":{own}{"," if rest else ""}{rest}}}'
