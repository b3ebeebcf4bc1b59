"""
Aggregates: the state that a log's events fold into.

Nothing here uses a database. ``fold`` is the one function that applies events to an aggregate,
so a test can fold a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar
from weakref import WeakKeyDictionary

from django.utils import timezone

import eventlogs
from eventlogs.events.registry import EventType, registry
from eventlogs.exceptions import LogCorrupted, RegistrationError
from eventlogs.ids import LogId, check_log_type
from eventlogs.utils import loaded_modules
from eventlogs.values import EventRecord, LogState, Reduction, RetiredEvent

if TYPE_CHECKING:
    from eventlogs import LogManager

__all__ = ["ANY", "Aggregate", "LogState", "Reduction", "fold"]

A = TypeVar("A", bound="Aggregate")


class Anything(Enum):
    """The type of ``ANY``."""

    ANY = "ANY"

    def __repr__(self) -> str:
        return "ANY"


ANY: Final = Anything.ANY
"""Pass it as ``expected_version`` to append at any version."""


class LogsDescriptor:
    """``Payment.logs``: the default LogManager of an aggregate class."""

    def __init__(self) -> None:
        self._managers: WeakKeyDictionary[type[Aggregate], LogManager[Any]] = WeakKeyDictionary()

    def __get__(self, instance: object, owner: type[A]) -> LogManager[A]:
        manager = self._managers.get(owner)
        if manager is None:
            # Loaded by the package on first use, because LogManager imports this module.
            manager = self._managers[owner] = eventlogs.LogManager(owner)
        return manager


class Aggregate:
    """
    The base of aggregate classes.

    A subclass names its log type and events, can be created without arguments (the state of a
    log without events), and changes itself in ``apply``::

        @dataclass
        class Payment(Aggregate, log_type="payment", events=[Requested, Captured]):
            captured: int = 0

            def apply(self, record):
                match record.event:
                    case Captured(amount=amount):
                        self.captured += amount

    ``events`` are the event classes that may be appended to its logs. A subclass without
    ``log_type`` is a base class. ``version``, an int, is part of the fingerprint under which
    reductions are cached: increase it if ``apply`` computes another state although the code that
    the class uses has not changed.

    Raise RegistrationError for a log type that ids cannot contain, for missing events, and for a
    class among ``events`` without ``@event``; then the class is not registered.
    """

    log_type: ClassVar[str]
    event_types: ClassVar[tuple[EventType, ...]]
    aggregate_version: ClassVar[int] = 1
    logs: ClassVar[LogsDescriptor] = LogsDescriptor()

    def __init_subclass__(
        cls,
        *,
        log_type: str | None = None,
        events: Sequence[type] | None = None,
        version: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        # dataclass(slots=True) makes the class a second time, without these arguments.
        if log_type is not None:
            cls.log_type = check_log_type(log_type)
        if events is not None:
            cls.event_types = tuple(_event_type(cls, event) for event in events)
        if version is not None:
            cls.aggregate_version = version
        if "log_type" in vars(cls):
            if not getattr(cls, "event_types", ()):
                raise RegistrationError(
                    f"{cls.__qualname__} has a log type but no events. "
                    f"Pass events=[…], the event classes that may be appended to its logs."
                )
            aggregates.add(cls)

    @classmethod
    def without_events(cls, log_id: LogId) -> Reduction[Self]:
        """
        Return the reduction of a log without events: version 0 and a new aggregate.

        Every fold starts there: ``fold(Payment.without_events(log_id), records)``.
        """
        return Reduction(log_id, 0, cls(), timezone.now())

    def summary(self) -> str:
        """
        Return the state in one line, for lists of logs; override it to choose what is shown.

        By default it consists of the fields and their values. Only the first 120 characters are
        shown.
        """
        names = [field.name for field in fields(self)] if is_dataclass(self) else list(vars(self))
        return ", ".join(
            f"{name}: {getattr(self, name)}" for name in names if not name.startswith("_")
        )

    def apply(self, record: EventRecord) -> None:
        """
        Apply one event to this aggregate.

        The result must depend on the aggregate and the record only: no I/O, no clock, no random
        numbers. It is called once for each event, in order, and must not refuse one: a stored
        event has happened.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must define apply(self, record).")


class AggregateRegistry:
    """The aggregate classes of a process, by log type, in the order of their definition."""

    def __init__(self) -> None:
        self._by_log_type: dict[str, list[type[Aggregate]]] = {}
        self._changes: dict[str, object] = {}

    @property
    def stamp(self) -> object:
        """An object that is replaced with each change."""
        return self._changes.get("last")

    def add(self, cls: type[Aggregate]) -> None:
        """Register a class; it replaces an earlier one of the same module and name."""
        self._changes["last"] = object()
        loaded_modules.look()
        classes = self._by_log_type.setdefault(cls.log_type, [])
        classes[:] = [*_latest(classes), cls]

    def of(self, log_type: str) -> tuple[type[Aggregate], ...]:
        """Return the aggregate classes of this log type."""
        return tuple(_latest(self._by_log_type.get(log_type, ())))

    def __iter__(self) -> Iterator[type[Aggregate]]:
        for classes in list(self._by_log_type.values()):
            yield from _latest(classes)


def _latest(classes: Iterable[type[Aggregate]]) -> list[type[Aggregate]]:
    """
    Return the class that was defined last for each module and name.

    This cannot be done when a class is added: ``dataclass(slots=True)`` creates a second class, and
    sets its name and module only after it was added.
    """
    places = {(each.__module__, each.__qualname__): each for each in classes}
    return list(places.values())


aggregates = AggregateRegistry()


def fold(start: Reduction[A], records: Iterable[EventRecord]) -> Reduction[A]:
    """
    Fold ``records``, in order, from ``start``; ``start.aggregate`` is changed in place.

    Events of a retired type count towards the version, but are not applied. Raise LogCorrupted
    for a record that does not follow the one before it. Errors of ``apply`` are not caught. After
    an error ``start.aggregate`` is not usable.
    """
    aggregate = start.aggregate
    apply = aggregate.apply
    version = start.version
    record = None
    for record in records:
        if record.index != version:
            raise LogCorrupted(start.log_id, expected_index=version, actual_index=record.index)
        if record.event.__class__ is not RetiredEvent:
            apply(record)
        version += 1
    if record is None:
        return start
    return Reduction(start.log_id, version, aggregate, timezone.now(), record.position)


def _event_type(aggregate: type, cls: type) -> EventType:
    event_type = registry.by_class(cls) if isinstance(cls, type) else None
    if event_type is None:
        raise RegistrationError(
            f"{cls!r} is in the events of {aggregate.__qualname__}, but has no event type. "
            f"Put @event('…') above its @dataclass."
        )
    return event_type
