"""What a project writes: projection classes, their names and their handlers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from django.db import models, router, transaction
from django.utils import timezone

from eventlogs.aggregates import Aggregate, Reduction
from eventlogs.events import EventRecord, registry
from eventlogs.exceptions import ProjectionFailed, RegistrationError
from eventlogs.feed import Feed
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.models import Checkpoint, Event
from eventlogs.projections import checkpoints, rows

BATCH: Final = 1_000  # events that are applied in one transaction
NAP: Final = 0.02  # seconds between two looks of wait_for()

F = TypeVar("F", bound=Callable[..., Any])
P = TypeVar("P", bound="type[BaseProjection]")


class Lag(NamedTuple):
    """How far a projection is behind: in positions, and by the age of the next event."""

    positions: int
    age: timedelta


class BaseProjection:
    """What all projections can do; each reads the feed of the database events go to."""

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    log_types: ClassVar[Iterable[str] | None] = None
    model: ClassVar[type[models.Model]]

    @classmethod
    def catch_up(cls) -> int:
        """
        Apply all that is settled, and return the number of events.

        Batches of at most 1,000 events are one transaction each, with their rows and the
        checkpoint. Raise ProjectionFailed where a handler raises: the batches before its own
        stay applied, and the next call begins there. Raise FeedUnavailable as the feed does.
        """
        projection, feed, applied, more = cls(), Feed(cls._using()), 0, True
        while more:
            with transaction.atomic(using=feed.using):
                count, more = projection._advance(checkpoints.lock(cls.name, feed.using), feed)
            applied += count
        return applied

    @classmethod
    def rebuild(cls) -> int:
        """
        Empty the read model, apply all events anew, and return their number.

        It is one transaction: readers see the old rows until it commits, and a kill leaves
        them. Others that apply events wait for it meanwhile. Errors are those of ``catch_up``.
        """
        projection, feed, applied, more = cls(), Feed(cls._using()), 0, True
        with transaction.atomic(using=feed.using):
            checkpoint = checkpoints.lock(cls.name, feed.using)
            cls.model._base_manager.using(feed.using).all().delete()
            checkpoint.position = 0
            while more:
                count, more = projection._advance(checkpoint, feed)
                applied += count
        return applied

    @classmethod
    def lag(cls) -> Lag:
        """Return how far the rows are behind what is settled; zeros where they are not."""
        using = cls._using()
        after = checkpoints.position(cls.name, using)
        page = Feed(using).read(
            after, limit=1, types=cls._types(), log_types=cls._log_types(), decode=False
        )
        if not page:
            return Lag(0, timedelta())
        return Lag(page.settled - after, timezone.now() - page[0].recorded_at)

    @classmethod
    def wait_for(cls, position: int, timeout: float = 5.0) -> bool:
        """
        Wait until ``position`` is applied, at most ``timeout`` seconds; return whether it is.

        Nothing is applied here: another process does that.
        """
        end = time.monotonic() + timeout
        while checkpoints.position(cls.name, cls._using()) < position:
            if time.monotonic() >= end:
                return False
            time.sleep(NAP)
        return True

    def _advance(self, checkpoint: Checkpoint, feed: Feed) -> tuple[int, bool]:
        found = feed.read_rows(
            checkpoint.position, limit=BATCH, types=self._types(), log_types=self._log_types()
        )
        records = list(feed.records(found.rows))
        if records:
            rows.write(self.model, self._rows(records, feed.using), feed.using)
        checkpoint.position = found.next_after
        checkpoint.save(using=feed.using, update_fields=["position"])
        return len(records), found.more

    def _rows(self, records: list[EventRecord], using: str) -> list[Any]:
        raise NotImplementedError

    @classmethod
    def _types(cls) -> list[str] | None:
        return None

    @classmethod
    def _log_types(cls) -> list[str] | None:
        return None if cls.log_types is None else list(cls.log_types)

    @classmethod
    def _using(cls) -> str:
        if not cls.name:
            raise RegistrationError(f"{cls.__qualname__} has no name: decorate it, @projection().")
        using = router.db_for_write(Event)
        if router.db_for_write(cls.model) != using:
            raise RegistrationError(
                f"{cls.model.__qualname__} is in another database than the events: rows and "
                f"checkpoint could not be committed together. Route it to {using!r}."
            )
        return using


class Projection(BaseProjection):
    """A read model with one row for each log, changed by methods with ``@handles``."""

    ASYNC: Final = "async"
    mode: ClassVar[str] = ASYNC
    _handlers: ClassVar[Mapping[type, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the handlers."""
        super().__init_subclass__(**kwargs)
        if cls.mode != cls.ASYNC:
            raise RegistrationError(f"{cls.__qualname__}: mode must be Projection.ASYNC.")
        own = {
            event: name
            for name, value in vars(cls).items()
            for event in getattr(value, "_eventlogs_handles", ())
        }
        cls._handlers = {**cls._handlers, **own}

    @classmethod
    def _types(cls) -> list[str]:
        return registry.names_of(cls._handlers)

    def _rows(self, records: list[EventRecord], using: str) -> list[Any]:
        touched = rows.load(self.model, (record.log_id for record in records), using)
        for record in records:
            handler = getattr(self, self._handlers[type(record.event)])
            try:
                handler(touched[record.log_id], record)
            except Exception as error:
                raise ProjectionFailed(self.name, record.log_id, record.position) from error
        return list(touched.values())


class ReductionProjection(BaseProjection):
    """A read model with one row for each log of an aggregate, made of its reduction."""

    aggregate: ClassVar[type[Aggregate]]

    def to_row(self, reduction: Reduction[Any]) -> Any:
        """Return the row, or its fields: by default those named like the aggregate's."""
        return {
            field.attname: getattr(reduction.aggregate, field.attname)
            for field in self.model._meta.concrete_fields
            if not field.primary_key and hasattr(reduction.aggregate, field.attname)
        }

    @classmethod
    def _log_types(cls) -> list[str]:
        return [cls.aggregate.log_type]

    def _rows(self, records: list[EventRecord], using: str) -> list[Any]:
        last = {record.log_id: record.position for record in records}
        manager = LogManager(self.aggregate, using=using)
        return [self._row(manager, log_id, position) for log_id, position in last.items()]

    def _row(self, manager: LogManager[Any], log_id: LogId, position: int) -> Any:
        try:
            row = self.to_row(manager.reduce(log_id, fresh=True))
        except Exception as error:
            raise ProjectionFailed(self.name, log_id, position) from error
        if isinstance(row, Mapping):
            return self.model(pk=log_id, **row)
        row.pk = log_id
        return row


projections: dict[str, type[BaseProjection]] = {}


def projection(name: str, *, version: int = 1) -> Callable[[P], P]:
    """
    Name a projection class; its checkpoint is kept under that name, of at most 100 characters.

    Raise RegistrationError for a name that another class has.
    """

    def register(cls: P) -> P:
        known = projections.get(name)
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RegistrationError(f"Projection {name!r} is {known.__qualname__} already.")
        if not 1 <= len(name) <= 100:
            raise RegistrationError("A projection's name has 1 to 100 characters.")
        cls.name, cls.version = name, version
        projections[name] = cls
        return cls

    return register


def handles(*events: type) -> Callable[[F], F]:
    """Let a method ``(self, row, record)`` change the row of a log for events of a class."""

    def mark(method: F) -> F:
        method._eventlogs_handles = events  # type: ignore[attr-defined]
        return method

    return mark
