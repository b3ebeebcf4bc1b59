"""
The classes that users subclass, and the decorator that declares them.

Each class says how events change its read model; its operations come from ``operations.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from django.db import models

from eventlogs.aggregates import Aggregate, fold
from eventlogs.conf import MAX_PROJECTION_NAME_LENGTH
from eventlogs.context import caused_by
from eventlogs.events import used_keys
from eventlogs.events.codec import EventReader
from eventlogs.events.metadata import is_adopted
from eventlogs.exceptions import KeyUnavailable, LogCorrupted, RegistrationError
from eventlogs.feed import scans
from eventlogs.feed.reader import HEARTBEAT
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.observers import Reaction, observed, observers
from eventlogs.projections import inline
from eventlogs.projections.base import Failed, RowProjection, projections
from eventlogs.projections.defaults import fill
from eventlogs.projections.operations import Operations, ReactorOperations, RowOperations
from eventlogs.projections.rows import Rows
from eventlogs.stores.participants import registered
from eventlogs.values import EventRecord, Reduction

MAX_REDUCTIONS: Final = 5_000  # that a worker keeps in memory
SHORT: Final = 200  # events of a log up to which it is read together with others

P = TypeVar("P", bound=type[Operations])


class Projection(RowOperations):
    """
    A read model whose rows are changed by methods with ``@handles``.

    By default there is one row for each log, whose primary key is a LogIdField.
    """

    _rows: Rows

    def key(self, record: EventRecord) -> Hashable | None:
        """
        Return the primary key of the row that an event changes; None passes over the event.

        By default it is the log's id. With another one, such as a day, events of several logs
        change one row. Then ``partitions`` must be 1, and the mode ASYNC.
        """
        return record.log_id

    def delete(self, row: Any) -> None:
        """Let a handler delete its row; a later event of the log begins with a new one."""
        self._rows.delete(row)

    def change(self, records: Sequence[EventRecord], using: str, *, blank: bool = False) -> None:
        keys: list[Hashable | None]
        if self.has_shared_rows():
            keys = [self.call_handler("key", record) for record in records]
        else:
            keys = [record.log_id for record in records]
        loaded = () if blank else (key for key in keys if key is not None)
        rows = self._rows = Rows(self.model, loaded, using)
        handlers = self.event_handlers
        for key, record in zip(keys, records, strict=True):
            name = handlers.get(type(record.event))
            if key is not None and name is not None:
                self.call_handler(name, record, rows[key])
        rows.write()

    def row_of(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        rows = self._rows = Rows(self.model, (), using)
        for record in records:
            name = self.event_handlers.get(type(record.event))
            if name is not None and self.key(record) is not None:
                self.call_handler(name, record, rows[log_id])
        return rows.get(log_id)

    @classmethod
    def has_shared_rows(cls) -> bool:
        return cls.key is not Projection.key

    @classmethod
    def check_declaration(cls) -> None:
        super().check_declaration()
        if cls.has_shared_rows() and (cls.partitions != 1 or cls.mode == cls.INLINE):
            raise RegistrationError(
                f"{cls.__qualname__} has a key() of its own, so events of several logs change one "
                f"row: it must be Projection.ASYNC, with partitions = 1."
            )


class ReductionProjection(RowOperations):
    """A read model with one row for each log of an aggregate, made of its reduction."""

    aggregate: ClassVar[type[Aggregate]]
    folds_whole_logs = True

    def __init__(self, *, model: type[models.Model] | None = None) -> None:
        """Keep the rows in another table than the model's, where ``model`` says so."""
        super().__init__(model=model)
        # Of logs that had events lately. A reduction of a version never changes, so it stays valid
        # when the transaction is rolled back; unless it was made of personal data, which may be
        # forgotten. Such reductions are not kept.
        self._reductions: OrderedDict[LogId, Reduction[Any]] = OrderedDict()

    def to_row(self, reduction: Reduction[Any]) -> Any:
        """
        Return the row, or its fields: by default those named like the aggregate's.

        None says that there is to be no row.
        """
        return {
            field.attname: getattr(reduction.aggregate, field.attname)
            for field in self.model._meta.concrete_fields
            if not field.primary_key and hasattr(reduction.aggregate, field.attname)
        }

    def change(self, records: Sequence[EventRecord], using: str, *, blank: bool = False) -> None:
        by_log: dict[LogId, list[EventRecord]] = {}
        for record in records:
            by_log.setdefault(record.log_id, []).append(record)
        rows = Rows(self.model, (), using)
        gone: list[LogId] = []
        for log_id, reduction in self._reductions_of(by_log, using):
            try:
                row = self._row(reduction, using)
            except KeyUnavailable:  # of this process' settings: no event has caused it
                raise
            except (Exception, SystemExit) as error:
                raise Failed(by_log[log_id][0].position, error) from error
            if row is None:
                gone.append(log_id)
            else:
                rows.put(row)
        if gone:
            self.model._base_manager.using(using).filter(pk__in=gone).delete()
        rows.write()

    def row_of(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        version = max((record.index + 1 for record in records), default=None)
        if version is None:
            return None
        reduction = LogManager(self.aggregate, using=using).reduce(log_id, version=version)
        return self._row(reduction, using)

    def row_in_memory(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        return self._row(fold(self.aggregate.without_events(log_id), records), using)

    def _reductions_of(
        self, by_log: dict[LogId, list[EventRecord]], using: str
    ) -> Iterator[tuple[LogId, Reduction[Any]]]:
        """Yield the reductions as of the last records: not later ones, which are not settled."""
        missing: list[LogId] = []
        for log_id, records in by_log.items():
            kept = self._reductions.pop(log_id, None)
            if kept is None and records[0].index == 0:
                kept = self.aggregate.without_events(log_id)
            if kept is None or kept.version != records[0].index:
                missing.append(log_id)
                continue
            try:
                reduction = fold(kept, records)
            except LogCorrupted:  # records were left out: parked or skipped ones
                missing.append(log_id)
                continue
            except KeyUnavailable:  # of this process' settings: no event has caused it
                raise
            except (Exception, SystemExit) as error:
                raise Failed(records[0].position, error) from error
            yield log_id, self._keep(reduction)
        for log_id, reduction in self._load(missing, by_log, using):
            yield log_id, self._keep(reduction)

    def _load(
        self, log_ids: list[LogId], by_log: dict[LogId, list[EventRecord]], using: str
    ) -> Iterator[tuple[LogId, Reduction[Any]]]:
        """Yield reductions: of long logs one by one, as they are cached; of short ones at once."""
        manager, reader = LogManager(self.aggregate, using=using), EventReader()
        short: list[LogRow] = []
        for log_id in log_ids:
            last = by_log[log_id][-1]
            version = last.index + 1
            if version <= SHORT:
                short.append(LogRow(log_id, version, last.recorded_at, last.recorded_at))
                continue
            try:
                reduction = manager.reduce(log_id)
                if reduction.version != version:
                    reduction = manager.reduce(log_id, version=version)
            except KeyUnavailable:  # of this process' settings: no event has caused it
                raise
            except (Exception, SystemExit) as error:
                raise Failed(by_log[log_id][0].position, error) from error
            yield log_id, reduction
        for log, events in scans.logs_with_events(using, short):
            stored = [each for each in events if each.index < log.version]
            try:
                start = self.aggregate.without_events(log.log_id)
                yield log.log_id, fold(start, reader.records(stored))
            except KeyUnavailable:  # of this process' settings: no event has caused it
                raise
            except (Exception, SystemExit) as error:
                raise Failed(by_log[log.log_id][0].position, error) from error

    def _keep(self, reduction: Reduction[Any]) -> Reduction[Any]:
        # Nothing was noted yet by a batch without personal data; outside of a worker, nobody notes.
        if used_keys.noted() != set():
            return reduction
        self._reductions[reduction.log_id] = reduction
        if len(self._reductions) > MAX_REDUCTIONS:
            self._reductions.popitem(last=False)
        return reduction

    def _row(self, reduction: Reduction[Any], using: str) -> Any:
        row = self.to_row(reduction)
        if row is None:
            return None
        if isinstance(row, Mapping):
            row = self.model(**row)
        row.pk = reduction.log_id
        return fill(row, using)

    @classmethod
    def event_types_read(cls) -> list[str] | None:
        return None

    @classmethod
    def log_types_read(cls) -> list[str]:
        return [cls.aggregate.log_type]

    @classmethod
    def check_declaration(cls) -> None:
        super().check_declaration()
        if not hasattr(cls, "aggregate"):
            raise RegistrationError(
                f"{cls.__qualname__} needs aggregate = …, a subclass of Aggregate."
            )


class Reactor(ReactorOperations):
    """
    Side effects of events: e-mails, webhooks, publishing. Methods ``(self, record)`` react.

    A handler is called **at least once** for each event, in the order of its log: again where
    its worker dies before the checkpoint is moved, or where it raised. Pass ``record.id`` on, so
    that the receiver recognizes a repetition. It is called outside of a transaction.
    Events that it appends have the event's id as ``causation_id``, and its correlation id. A
    reactor has no rows and is never rebuilt: a rebuild sends no e-mail a second time.

    No handler is called for events that were adopted from a table: they describe the past.

    ``start`` is where a reactor begins that has never run: ``Reactor.BEGINNING`` (the
    default) reacts to the whole history, ``Reactor.NOW`` only to what comes after its first run.
    """

    BEGINNING: Final = "beginning"
    NOW: Final = "now"
    start: ClassVar[str] = BEGINNING
    is_transactional = False

    @classmethod
    def starts_now(cls) -> bool:
        return cls.start == cls.NOW

    def apply(self, records: Sequence[EventRecord], using: str) -> None:
        for record in records:
            name = self.event_handlers.get(type(record.event))
            if name is not None and not is_adopted(record.metadata):
                with caused_by(record.id, record.metadata):
                    if not observers:
                        self.call_handler(name, record)
                        continue
                    reaction = Reaction(projection=type(self), record=record, using=using)
                    with observed(reaction):
                        self.call_handler(name, record)

    @classmethod
    def check_declaration(cls) -> None:
        super().check_declaration()
        if cls.mode != cls.ASYNC:
            raise RegistrationError(f"{cls.__qualname__}: a reactor cannot be inline.")
        if cls.start not in (cls.BEGINNING, cls.NOW):
            raise RegistrationError(
                f"{cls.__qualname__}: start must be Reactor.BEGINNING or Reactor.NOW."
            )


def projection(name: str, *, version: int = 1) -> Callable[[P], P]:
    """
    Name a projection or reactor; its checkpoint is kept under that name.

    The name has 1 to 100 characters. Increase ``version`` where rows must be rebuilt: a system
    check asks for it then.

    Raise RegistrationError for a name that another class has, a class that has another name, and
    a class that cannot work.
    """

    def register(cls: P) -> P:
        known = projections.get(name)
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RegistrationError(f"Projection {name!r} is {known.__qualname__} already.")
        if not 1 <= len(name) <= MAX_PROJECTION_NAME_LENGTH:
            raise RegistrationError("A projection's name has 1 to 100 characters.")
        if name == HEARTBEAT:
            raise RegistrationError(f"{name!r} is the checkpoint of Feed.heartbeat(): rename it.")
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version < 2**31:
            raise RegistrationError(f"{name!r}: version must be an int from 1. Count it up by one.")
        if cls.name != name and projections.get(cls.name) is cls:
            raise RegistrationError(f"{cls.__qualname__} is projection {cls.name!r} already.")
        _check_handlers(cls)
        cls.name, cls.version = name, version
        cls.check_declaration()
        projections[name] = cls
        registered.pop(name, None)
        if issubclass(cls, RowProjection) and cls.mode == cls.INLINE:
            registered[name] = inline.participant(cls)
        return cls

    return register


def _check_handlers(cls: type[Operations]) -> None:
    """Raise RegistrationError for a handler that would replace an attribute of this package."""
    for kind in (Projection, ReductionProjection, Reactor):
        for name in cls.event_handlers.values():
            if issubclass(cls, kind) and hasattr(kind, name):
                raise RegistrationError(
                    f"{cls.__qualname__}.{name}() handles events, but {kind.__qualname__}.{name} "
                    f"has another purpose. Give the handler another name."
                )
