"""
Appends while an observer is registered: what ``LogManager`` calls instead of its own method then.

An append of async code that is joined with others is encoded in the event loop's thread, with a
Note as its store. It ends here when the statement for all of them has ended; if it has to be
stored alone, it is dropped, and begins again in the thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

from django.core.exceptions import SynchronousOnlyOperation

from eventlogs.exceptions import (
    ConcurrentAppend,
    ConstraintViolated,
    EventLogError,
    IdempotentReplay,
    ProjectionFailed,
    TransactionMustRetry,
)
from eventlogs.ids import LogId
from eventlogs.observers import (
    APPENDED,
    CONFLICT,
    FAILED,
    REFUSED,
    REPLAYED,
    Append,
    Observation,
    Observer,
    after_commit,
    observers,
    tell_committed,
)
from eventlogs.stores import GroupCommit
from eventlogs.stores.joined import append_joined
from eventlogs.utils.twins import in_thread
from eventlogs.values import LogState

_joined: Final[ContextVar[Observation | None]] = ContextVar("eventlogs_joined", default=None)
"""The append of this task that waits to be stored together with others."""


@lru_cache(maxsize=256)
def _names_of(aggregate: type[Any]) -> dict[type[Any], str]:
    return {each.cls: each.name for each in aggregate.event_types}


def append_observed(
    store_events: Callable[..., Any],
    aggregate: Any,
    using: str | None,
    log_id: LogId,
    events: tuple[Any, ...],
    expected_version: Any,
    *rest: Any,
) -> Any:
    """Store events, and tell the observers; see ``LogManager._store_events``."""
    names = _names_of(aggregate)
    append = Append(
        aggregate=aggregate,
        log_id=log_id,
        using=using,
        is_create=expected_version == 0,
        events=len(events),
        event_types=tuple(dict.fromkeys(names.get(type(each), "") for each in events)),
    )
    observation = Observation(append)
    try:
        state = store_events(log_id, events, expected_version, *rest)
    except SynchronousOnlyOperation:
        observation.drop()  # the call begins again in the thread
        raise
    except BaseException as error:
        _end(observation, error)
        raise
    if isinstance(state, LogState):
        _end_appended(observation, state)
        after_commit(using, lambda: tell_committed(append, observers))
    else:
        _joined.set(observation)
    return state


async def append_joined_observed(
    group_commit: GroupCommit | None,
    request_of: Callable[[], Coroutine[Any, Any, Any]],
    alone: Callable[[], Coroutine[Any, Any, Any]],
    stored: Callable[[LogState], Coroutine[Any, Any, None]],
) -> Any:
    """Do what ``append_joined`` does, and tell the observers."""

    async def drop_and_append() -> Any:
        if (observation := _taken()) is not None:
            observation.drop()
        return await alone()

    async def tell(state: LogState) -> None:
        if (observation := _taken()) is not None:
            _end_appended(observation, state)
            # In the thread, where receivers may use the database.
            append: Any = observation.operation
            blocking = [each for each in observers if each.is_blocking]
            tell_committed(append, [each for each in observers if not each.is_blocking])
            if blocking:
                await in_thread(_Telling(append, blocking), "run", (), {})
        await stored(state)

    _joined.set(None)  # a task begins with a copy of its parent's context
    try:
        return await append_joined(group_commit, request_of, drop_and_append, tell)
    except BaseException as error:
        if (observation := _taken()) is not None:
            _end(observation, error)
        raise


class _Telling:
    def __init__(self, append: Any, telling: list[Observer]) -> None:
        self._append, self._telling = append, telling

    def run(self) -> None:
        tell_committed(self._append, self._telling)


def _taken() -> Observation | None:
    observation = _joined.get()
    _joined.set(None)
    return observation


def _end_appended(observation: Observation, state: LogState) -> None:
    append: Any = observation.operation
    append.state, append.outcome = state, APPENDED
    observation.end()


def _end(observation: Observation, error: BaseException) -> None:
    append: Any = observation.operation
    append.outcome = _outcome_of(error)
    observation.end(error)


def _outcome_of(error: BaseException) -> str:
    match error:
        case IdempotentReplay():
            return REPLAYED
        case ConcurrentAppend():
            return CONFLICT
        case ConstraintViolated():
            return REFUSED
        case ProjectionFailed() | TransactionMustRetry():
            return FAILED
        case EventLogError():
            return REFUSED
    return FAILED
