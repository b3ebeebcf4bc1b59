"""
Given, when, then: the tests of rules, without a database.

A story is the history of one log. Its events go through the real codec into a MemoryStore, and are
read, decoded and folded again for each step. So a test sees what production will see: an event
that cannot be stored is refused, and a value that does not survive is missing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Generic, TypeVar

from django.utils import timezone

from eventlogs.aggregates import Aggregate
from eventlogs.caches.backends import NoReductionCache
from eventlogs.deciders import Decider, check_decider, decided
from eventlogs.events.codec import EventReader
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.stores import ExportedEvent
from eventlogs.testing import clock, effects, texts
from eventlogs.testing.appends import check_aggregate_class, difference, encoded
from eventlogs.testing.effects import Reactions
from eventlogs.testing.memory import MemoryStore
from eventlogs.utils.twins import AsyncTwin
from eventlogs.values import EventRecord, Reduction, StoredEvent

A = TypeVar("A", bound=Aggregate)
E = TypeVar("E", bound=BaseException)

MAX_CALL: Final = 200  # characters of a call that a failure shows
OWN: Final = {__name__, "eventlogs.deciders"}  # modules between a test and its decider


def given(
    aggregate: type[A],
    /,
    *events: Any,
    at: datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    log_id: LogId | str | None = None,
) -> Story[A]:
    """
    Return the story of a log that has these events, none included.

    ``at``, an aware datetime, is the time at which these and all later events are recorded, until
    ``at()`` sets another one; by default it is the time of the call. ``metadata`` is a dict of JSON
    values that is stored with each of the events. ``log_id`` is the log's id; by default it is a
    new one.

    Raise TypeError for anything but an aggregate class, InvalidLogId for an id of another log type,
    InvalidEvent for an object that is not an event of the aggregate or cannot be stored, and
    ValueError for a naive datetime.
    """
    check_aggregate_class(aggregate)
    manager = LogManager(aggregate)
    own_id = manager.new_id() if log_id is None else manager.parse_id(log_id)
    return Story(aggregate, own_id).and_given(*events, at=at, metadata=metadata)


class Story(Generic[A]):
    """
    The history of one log, in memory. It never changes: each method returns another story.

    ``given`` returns one. ``state`` is the aggregate, ``reduction`` the same with its version;
    ``records`` are the EventRecords, decoded, ``events`` the events in them, ``log_id`` is the id
    of the log.
    """

    def __init__(
        self,
        aggregate: type[A],
        log_id: LogId,
        *,
        stored: Sequence[StoredEvent] = (),
        at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.aggregate = aggregate
        self.log_id = log_id
        self._stored = tuple(stored)
        self._at = at
        self._metadata = metadata

    def __repr__(self) -> str:
        events = ", ".join(map(texts.one_line, self.events))
        return f"<given {self.aggregate.__qualname__}: {events or 'no events'}>"

    # The history

    def and_given(
        self,
        *events: Any,
        at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Story[A]:
        """
        Return the story that continues with these events.

        ``at`` is the time of these and all later events. ``metadata`` is stored with them, by
        default that of ``with_metadata()``. Raise what ``given`` raises, and ValueError for a time
        before that of the last event.
        """
        story = self if at is None else self.at(at)
        if not events:
            return story
        story = story._goes_on(story._appended(events, metadata))
        _ = story.reduction  # an apply() that refuses an event is found here
        return story

    def at(self, moment: datetime) -> Story[A]:
        """
        Return the story in which further events are recorded at a moment, an aware datetime.

        Raise ValueError for a naive datetime, or one before the last event.
        """
        if not isinstance(moment, datetime) or timezone.is_naive(moment):
            raise ValueError(f"The time is {moment!r}. It must be a datetime with a time zone.")
        if self._history and moment < self._history[-1].recorded_at:
            raise ValueError(
                f"The time is {moment.isoformat()}, before that of the last event, "
                f"{self._history[-1].recorded_at.isoformat()}. Time does not run backwards within "
                f"a log: pass a later one."
            )
        return self._goes_on(self._history, at=moment)

    def with_metadata(self, /, **metadata: Any) -> Story[A]:
        """Return the story in which further events have this metadata: names and JSON values."""
        return self._goes_on(self._history, metadata=metadata)

    # The state

    @property
    def reduction(self) -> Reduction[A]:
        """The reduction of all events; at version 0 it is that of a log without events."""
        if not self._history:
            return self.aggregate.without_events(self.log_id)
        return self._manager(self._store()).reduce(self.log_id, fresh=True)

    @property
    def state(self) -> A:
        """The aggregate after all events; each access folds a new one."""
        return self.reduction.aggregate

    @property
    def records(self) -> list[EventRecord]:
        """The events as records, as a store returns them."""
        return self._decoded(self._history)

    @property
    def events(self) -> list[Any]:
        """The events, decoded from what was stored."""
        return [record.event for record in self.records]

    # Decisions

    def when(self, decider: Decider, /, *args: Any, **kwargs: Any) -> Decision[A]:
        """
        Call a decider with the state, append what it yields, and return the decision.

        A decider is a plain function of the aggregate, as ``execute`` takes it:
        ``when(repay, 30)`` calls ``repay(loan, 30)``. An error that it raises is kept, and so is
        InvalidEvent for an event that cannot be stored: ``raises()`` is for them, and every other
        method of the decision raises them. Raise TypeError for a decider that is async or no
        function.
        """
        classes = {each.cls for each in self.aggregate.event_types}
        check_decider(decider, classes)
        call = _call_of(decider, args, kwargs)
        state, history = self.state, self._history
        error: Exception | None = None
        try:
            events = decided(decider(state, *args, **kwargs), decider, classes)
            if events:
                history = self._appended(events, None)
        except Exception as raised:
            error = _without_kit(raised)
        # Not in a variable: see _without_kit.
        return _folded(
            Decision(
                self.aggregate,
                self.log_id,
                stored=history,
                at=self._at,
                metadata=self._metadata,
                call=call,
                error=error,
                before=len(self._history),
            )
        )

    # Projections and reactors, in the database

    def project(self, projection: Any, /, *, using: str | None = None) -> Any:
        """
        Store the events in the database, let a projection catch up, and return the log's row.

        It is read from the read model's table; it is None where the log has no row. If events of
        several logs change one row, it is the row of the last event that has a key. The events
        stay in the database, with the times that they have here: the test must be one that is
        rolled back, as Django's TestCase, or whose tables are emptied.

        Raise TypeError for anything but a projection with rows, or for one that does not read logs
        of this type, ProjectionFailed for an event that cannot be applied, of any log in the
        database, and ImportDiffers where the log has other events in the database: two stories
        with the same beginning need logs of their own.
        """
        return effects.project(projection, self.log_id, self._history, using=using)

    def react(self, reactor: Any, /, *, using: str | None = None) -> Reactions:
        """
        Store the events in the database, let a reactor react to them, and return what it did.

        The answer is a list of what its handlers returned; its ``sent`` are e-mails, its
        ``appended`` the records of events that were appended meanwhile. Other logs' events are
        left alone, and the reactor's checkpoint is not moved. After ``when()``, the reactor reacts
        to the decision's events only.

        Raise TypeError for anything but a reactor, or for one that does not read logs of this type,
        and ProjectionFailed, with the handler's own error as its cause, where a handler raises.
        """
        return effects.react(
            reactor, self.log_id, self._history, since=self._first_new, using=using
        )

    aproject = AsyncTwin(project)
    areact = AsyncTwin(react)

    # Parts

    @property
    def _history(self) -> tuple[StoredEvent, ...]:
        return self._stored

    @property
    def _first_new(self) -> int:
        return 0

    def _goes_on(
        self,
        history: Sequence[StoredEvent],
        *,
        at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Story[A]:
        return Story(
            self.aggregate,
            self.log_id,
            stored=history,
            at=at or self._at,
            metadata=self._metadata if metadata is None else metadata,
        )

    def _store(self) -> MemoryStore:
        store = MemoryStore(now=lambda: self._at or clock.now())
        store.restore([ExportedEvent(event) for event in self._history])
        return store

    def _manager(self, store: MemoryStore) -> LogManager[A]:
        return LogManager(
            self.aggregate, store=store, cache=NoReductionCache(), refresh_on_append=False
        )

    def _appended(
        self, events: Sequence[Any], metadata: Mapping[str, Any] | None
    ) -> tuple[StoredEvent, ...]:
        """Return the history with further events, which are appended to a store of its own."""
        store, log_id, version = self._store(), self.log_id, len(self._history)
        manager = self._manager(store)
        metadata = self._metadata if metadata is None else metadata
        if version:
            manager.append(log_id, *events, expected_version=version, metadata=metadata)
        else:
            manager.create(*events, log_id=log_id, metadata=metadata)
        return tuple(store.events(self.log_id, start=0, limit=version + len(events)))

    def _decoded(self, stored: Sequence[StoredEvent]) -> list[EventRecord]:
        return list(EventReader(self.aggregate.event_types).records(stored))


class Decision(Story[A]):
    """
    The story after a decider was called; ``when()`` returns it.

    ``then()`` and ``raises()`` check the result. As a story it continues with the events that were
    decided; ``decided`` has only these events.
    """

    def __init__(
        self,
        aggregate: type[A],
        log_id: LogId,
        *,
        stored: Sequence[StoredEvent],
        at: datetime | None,
        metadata: Mapping[str, Any] | None,
        call: str,
        error: Exception | None,
        before: int,
    ) -> None:
        super().__init__(aggregate, log_id, stored=stored, at=at, metadata=metadata)
        self._call = call
        self._error = error
        self._before = before
        self._is_asked = False

    def __del__(self) -> None:
        error = getattr(self, "_error", None)
        if error is not None and not self._is_asked:
            warnings.warn(
                f"{self._call} raised {type(error).__name__}, and the test did not check the "
                f"result. Call then() or raises() on what when() returns.",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        if self._error is not None:
            self._is_asked = True
            return f"<{self._call} raised {self._error!r}>"
        events = ", ".join(map(texts.one_line, self.decided))
        return f"<{self._call} decided: {events or 'nothing'}>"

    @property
    def has_raised(self) -> bool:
        """Whether the decider raised an error; to read this is not to check the result."""
        return self._error is not None

    @property
    def decided(self) -> list[Any]:
        """The events that were decided, decoded from what was stored."""
        return [record.event for record in self.records[self._before :]]

    def then(self, *events: Any) -> Decision[A]:
        """
        Assert that exactly these events were decided, in this order, and return the decision.

        Without events: that nothing was decided. Two events are equal here if a retry with one
        would be a replay of the other. Raise AssertionError, with the difference or with the
        decider's error as its cause, and InvalidEvent for what is no event of the aggregate.
        """
        __tracebackhide__ = True
        self._is_asked = True
        expected = encoded(self.aggregate, events)
        if self._error is not None:
            wanted = texts.indented(line for event in events for line in texts.lines_of(event))
            raise AssertionError(
                f"{self._call} raised {_error_text(self._error)}\n\n"
                f"It should have decided:\n\n{wanted or '    nothing'}\n{self._background()}"
            ) from self._error
        new = self._stored[self._before :]
        reader = EventReader(self.aggregate.event_types)
        if not reader.reads_as(new, expected):
            changes = difference(reader, events, expected, self.decided, new)
            what = "decided other events than expected"
            if not new:
                what = "decided nothing"
            elif not events:
                what = "decided events, and none was expected"
            raise AssertionError(
                f"{self._call} {what} (- expected, + decided):\n\n{changes}\n{self._background()}"
            )
        return self

    def raises(
        self,
        expected: type[E] | tuple[type[E], ...],
        *,
        match: str | re.Pattern[str] | None = None,
    ) -> E:
        """
        Assert that the decider raised an error of this class, and return the error.

        ``match`` is a regular expression that its text must have a match of (``re.search``). Raise
        AssertionError otherwise.
        """
        __tracebackhide__ = True
        self._is_asked = True
        name = _names(expected)
        if self._error is None:
            lines = [line for event in self.decided for line in texts.lines_of(event)]
            raise AssertionError(
                f"{self._call} should have raised {name}. It decided:\n\n"
                f"{texts.indented(lines) or '    nothing'}\n{self._background()}"
            )
        if not isinstance(self._error, expected):
            raise AssertionError(
                f"{self._call} should have raised {name}. It raised "
                f"{_error_text(self._error)}\n{self._background()}"
            ) from self._error
        if match is not None and re.search(match, str(self._error)) is None:
            pattern = match if isinstance(match, str) else match.pattern
            raise AssertionError(
                f"{self._call} raised {type(self._error).__name__} with another text than expected "
                f"(- expected pattern, + text):\n\n  - {pattern}\n  + {self._error}\n"
            ) from self._error
        return self._error

    @property
    def _history(self) -> tuple[StoredEvent, ...]:
        self._is_asked = True
        if self._error is not None:
            raise self._error
        return self._stored

    @property
    def _first_new(self) -> int:
        return self._before

    def _background(self) -> str:
        """Return what the decider was called with."""
        before = Story(self.aggregate, self.log_id, stored=self._stored[: self._before])
        lines = list(texts.history_of(before.events)) or ["no events"]
        return (
            f"\nGiven:\n\n{texts.indented(lines)}\n\nso that the state was:\n\n"
            f"{texts.indented(texts.lines_of(before.state))}\n"
        )


def _call_of(decider: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return a call as it would be written, without the aggregate."""
    while isinstance(decider, partial):
        args, kwargs = (*decider.args, *args), {**decider.keywords, **kwargs}
        decider = decider.func
    name = getattr(decider, "__qualname__", type(decider).__qualname__).rpartition("<locals>.")[2]
    parts = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
    call = f"{name}({', '.join(parts)})"
    return call if len(call) <= MAX_CALL else f"{call[: MAX_CALL - 2]}…)"


def _folded(decision: Decision[A]) -> Decision[A]:
    """Fold the events that were decided: an apply() that refuses one is found here."""
    if not decision.has_raised:
        _ = decision.reduction
    return decision


def _without_kit(error: Exception) -> Exception:
    """
    Leave the frames of this package out of an error's traceback, up to the decider's own.

    They can still be reached from there. If one of them had the decision in a variable, the error
    and the decision would refer to each other: a decision that nobody asks about would not warn
    before the next garbage collection.
    """
    traceback = error.__traceback__
    while traceback is not None:
        traceback = traceback.tb_next
        if traceback is None or traceback.tb_frame.f_globals.get("__name__") not in OWN:
            break
    return error.with_traceback(traceback)


def _error_text(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}."


def _names(expected: type[BaseException] | tuple[type[BaseException], ...]) -> str:
    classes = expected if isinstance(expected, tuple) else (expected,)
    return " or ".join(each.__name__ for each in classes)
