"""
Observers: how appends, reductions and projections are seen from outside.

``eventlogs.signals``, ``eventlogs.contrib.prometheus`` and ``eventlogs.contrib.opentelemetry``
register an Observer here, so the code that is observed imports none of them. Without one, an append
or a reduction pays for one truth test of ``observers``.

An operation has a beginning and an end: Append, Reduce, RefreshRun, Batch, Reaction. EventFailed,
EventParked, EventSkipped and CacheUse are facts of one moment. None holds payload data, except for
the record of a Reaction. The error of an observer is logged, and changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from django.db import connections, transaction

from eventlogs.ids import LogId
from eventlogs.values import EventRecord, LogState

logger = logging.getLogger("eventlogs.observers")

# Outcomes of an append.
APPENDED: Final = "appended"
REPLAYED: Final = "replayed"  # the idempotency key was known: nothing was stored
CONFLICT: Final = "conflict"  # another writer was faster
REFUSED: Final = "refused"  # any other answer of ours: a name that is taken, data that is invalid
FAILED: Final = "failed"  # the database, an inline projection, or code of the project

# Outcomes of a reduction, beside "hit" and "miss".
UNCACHED: Final = "uncached"  # the cache was not asked
NOT_FOUND: Final = "not_found"  # the log does not exist


@dataclass(slots=True, eq=False, kw_only=True)
class Operation:
    """Something that begins and ends; ``error`` is what it raised."""

    seconds: float = field(default=0.0, init=False)
    error: BaseException | None = field(default=None, init=False)


@dataclass(slots=True, eq=False, kw_only=True)
class Append(Operation):
    """
    One call of ``append`` or ``create``, or one attempt of ``execute``.

    ``using`` is the alias of the database, None for a store in memory. ``index`` is that of the
    first event, and ``state`` what the call returned, if its outcome is "appended".
    """

    aggregate: type[Any]
    log_id: LogId
    using: str | None
    is_create: bool
    events: int
    event_types: tuple[str, ...]  # each name once
    outcome: str = FAILED
    state: LogState | None = None

    @property
    def index(self) -> int:
        """The index of the first event."""
        return 0 if self.state is None else self.state.version - self.events


@dataclass(slots=True, eq=False, kw_only=True)
class Reduce(Operation):
    """
    One reduction of a log to its current state.

    ``outcome`` is "hit", "miss" (``reason`` is a word of ``eventlogs.caches.statistics()``),
    "uncached", "not_found" or "failed"; ``events`` is how many events were folded.
    """

    aggregate: type[Any]
    log_id: LogId
    using: str
    outcome: str = FAILED
    reason: str = ""
    events: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class RefreshRun(Operation):
    """A job of a refresher that reads a log: "written", "removed", "unneeded" or "failed"."""

    aggregate: type[Any]
    log_id: LogId
    using: str
    outcome: str = FAILED


@dataclass(slots=True, eq=False, kw_only=True)
class Batch(Operation):
    """
    One batch of one partition of a projection, or one look at events that are to be retried.

    ``events`` is how many were applied; ``outcome`` is "applied", or "failed" where the batch
    itself could not be applied. Events that fail by themselves are EventFailed and EventParked.
    """

    projection: type[Any]
    using: str
    is_retry: bool
    read: int = 0  # events that the batch has; unknown (0) of retries
    events: int = 0
    outcome: str = FAILED


@dataclass(slots=True, eq=False, kw_only=True)
class Reaction(Operation):
    """One call of a reactor's handler."""

    projection: type[Any]
    record: EventRecord
    using: str


@dataclass(frozen=True, slots=True)
class HeldEvent:
    """An event that a projection could not apply; ``error`` is the name of a class."""

    projection: type[Any]
    using: str
    log_id: LogId
    index: int
    position: int
    event_type: str
    error: str


class EventFailed(HeldEvent):
    """An attempt has failed. The event will be tried again, or is parked."""

    __slots__ = ()


class EventParked(HeldEvent):
    """An event was parked after its last attempt: its log waits for a person."""

    __slots__ = ()


class EventSkipped(HeldEvent):
    """A person has skipped an event."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class CacheUse:
    """One use of the cache of reductions: what the signal ``cache_used`` sends."""

    aggregate: type[Any]
    outcome: str
    reason: str


Fact = HeldEvent | CacheUse


class Observer:
    """The base of observers: each method does nothing. They are called in the caller's thread."""

    is_blocking = False  # whether ``committed`` may use the database, or wait

    def begin(self, operation: Operation) -> Any:
        """Take note of a beginning, and return what ``end`` or ``drop`` get."""

    def end(self, operation: Operation, token: Any) -> None:
        """Take note of an end."""

    def drop(self, operation: Operation, token: Any) -> None:
        """Forget a beginning: the call begins again in another thread."""

    def committed(self, append: Append) -> None:
        """Take note that the events of an append are committed."""

    def happened(self, fact: Fact) -> None:
        """Take note of a fact; of one in the database, after it was committed."""


observers: Final[list[Observer]] = []
"""The registered observers. Only ``register`` and ``unregister`` change it."""


def register(observer: Observer) -> None:
    """Register an observer, if it is not registered yet."""
    if observer not in observers:
        observers.append(observer)


def unregister(observer: Observer) -> None:
    """Unregister an observer, if it is registered."""
    if observer in observers:
        observers.remove(observer)


Observed = TypeVar("Observed", bound=Operation)


class Observation:
    """An operation that has begun."""

    __slots__ = ("_begun", "_since", "operation")

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self._begun: list[tuple[Observer, Any]] = []
        self._since = time.perf_counter()
        for observer in tuple(observers):
            try:
                self._begun.append((observer, observer.begin(operation)))
            except Exception as error:
                _log(observer, error)

    def end(self, error: BaseException | None = None) -> None:
        """Tell the observers that the operation has ended."""
        operation = self.operation
        operation.seconds = time.perf_counter() - self._since
        operation.error = error
        while self._begun:
            observer, token = self._begun.pop()
            try:
                observer.end(operation, token)
            except Exception as failure:
                _log(observer, failure)

    def drop(self) -> None:
        """Tell the observers to forget the operation."""
        while self._begun:
            observer, token = self._begun.pop()
            try:
                observer.drop(self.operation, token)
            except Exception as error:
                _log(observer, error)


@contextmanager
def observed(operation: Observed) -> Iterator[Observed]:
    """Observe a block, which sets the facts of ``operation``."""
    observation = Observation(operation)
    try:
        yield operation
    except BaseException as error:
        observation.end(error)
        raise
    observation.end()


def tell(fact: Fact) -> None:
    """Tell the observers a fact."""
    for observer in tuple(observers):
        try:
            observer.happened(fact)
        except Exception as error:
            _log(observer, error)


def tell_committed(append: Append, among: Iterable[Observer]) -> None:
    """Tell observers that the events of an append are committed."""
    for observer in tuple(among):
        try:
            observer.committed(append)
        except Exception as error:
            _log(observer, error)


def tell_after_commit(fact: HeldEvent) -> None:
    """Tell the observers a fact when the open transaction has committed."""
    after_commit(fact.using, lambda: tell(fact))


def after_commit(using: str | None, function: Callable[[], None]) -> None:
    """
    Call a function after the commit of the open transaction, or at once without one.

    Where Django does not know when it commits (autocommit is off, without ``atomic()``), the
    function is not called.
    """
    if using is None:
        function()
        return
    connection = connections[using]
    if connection.in_atomic_block:
        # Robust: the application's own hooks run, even where this one fails.
        transaction.on_commit(function, using=using, robust=True)
    elif connection.autocommit if connection.connection else connection.settings_dict["AUTOCOMMIT"]:
        function()


def _log(observer: Observer, error: Exception) -> None:
    # Not the text, which may quote data.
    logger.error("%s failed: %s", type(observer).__qualname__, type(error).__name__)
