"""
Checks of deciders, events and targets of an append, with messages for common mistakes.

A decider is a plain function of the aggregate that yields or returns events. A message says what
to write instead; it names types, and never shows a value.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
)
from typing import Any

from eventlogs.values import EventRecord, LogState, Reduction

Decider = Callable[..., Iterable[Any] | Any | None]

PLAIN = "a plain function that yields or returns events"


def check_decider(decider: Any, classes: Container[type]) -> None:
    """Raise TypeError for a decider that is async, or that is not a function."""
    if isinstance(decider, type) and decider in classes:
        raise TypeError(
            f"A decider is {PLAIN}, and {decider.__qualname__} is the class of an event. To append "
            f"an event, use append(state, {decider.__qualname__}(…))."
        )
    if inspect.iscoroutinefunction(decider) or inspect.isasyncgenfunction(decider):
        raise _is_async(decider)
    if callable(decider):
        return
    kind = kind_of(decider)
    _close(decider)
    if isinstance(decider, Iterator | Awaitable | AsyncIterable):
        raise TypeError(
            f"A decider is {PLAIN}, and {kind} was passed. Pass the function, do not call it: "
            f"execute(log_id, decide, amount=40), not execute(log_id, decide(…))."
        )
    raise TypeError(
        f"A decider is {PLAIN}, and {kind} was passed. To append events that are decided already, "
        f"use append(state, event)."
    )


def decided(answer: Any, decider: Any, classes: Container[type]) -> tuple[Any, ...]:
    """
    Return what a decider yielded or returned, as a tuple of events.

    ``classes`` are those of the aggregate's events. Raise TypeError where the decider is async.
    """
    if answer is None:
        return ()
    if type(answer) in classes:
        return (answer,)  # an event may be iterable itself
    if isinstance(answer, Awaitable | AsyncIterable):
        _close(answer)
        raise _is_async(decider)
    if isinstance(answer, Iterable) and not isinstance(answer, Mapping | str | bytes | type):
        return tuple(answer)
    return (answer,)


def why_no_event(value: Any, aggregate: str) -> str:
    """Return why ``value`` is no event of ``aggregate``, and what to pass instead."""
    kind = kind_of(value)
    if isinstance(value, type):
        advice = f"pass an instance: {value.__qualname__}(…)"
    elif value is None:
        advice = "leave it out"
    elif isinstance(value, Awaitable):
        advice = "await it, and pass the event"
    elif isinstance(value, AsyncIterable):
        advice = "collect its events first: append(state, *[each async for each in events])"
    elif isinstance(value, Mapping | str | bytes | int | float):
        advice = "make an event of it: an instance of one of the aggregate's event classes"
    elif isinstance(value, EventRecord):
        advice = "pass its event: record.event"
    elif isinstance(value, LogState | Reduction):
        advice = "pass the state first and events behind it: append(state, event)"
    elif isinstance(value, list | tuple | set | frozenset | Iterator):
        advice = "pass its events one by one: append(state, *events); in a decider, yield from them"
    elif inspect.isroutine(value):
        advice = "call it, or pass it to execute() if it is a decider"
    else:
        return f"{kind} is not an event of {aggregate}; name its class in events=[…]"
    _close(value)
    return f"{kind} is given where an event of {aggregate} is wanted; {advice}"


def check_target(to: Any) -> None:
    """Raise TypeError for a target that is no LogState, Reduction or log id; an id may be text."""
    if isinstance(to, str | LogState | Reduction):
        return
    advice = "Pass the state that the last call returned, or a log id with expected_version."
    if isinstance(to, Awaitable):
        advice = "Await it first."
    elif isinstance(to, tuple):
        advice = (
            "get_or_create() and get_or_append() return a pair: pass its first item, the state."
        )
    kind = kind_of(to)
    _close(to)
    raise TypeError(
        f"append() takes a LogState, a Reduction or a log id first, not {kind}. {advice}"
    )


def kind_of(value: Any) -> str:
    """Return a description of a value for messages: the name of a class, or of its type."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    name = type(value).__qualname__.replace("_", " ")
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{article} {name}"


def _is_async(decider: Any) -> TypeError:
    while isinstance(decider, functools.partial):
        decider = decider.func
    name = getattr(decider, "__qualname__", type(decider).__qualname__)
    return TypeError(
        f"A decider is {PLAIN}, also for aexecute(), and {name} is async. It is called again if "
        f"another writer appends first. Await what it needs before the call, and pass the result: "
        f"await logs.aexecute(log_id, decide, rate=await get_rate())."
    )


def _close(value: Any) -> None:
    """Close a coroutine, since Python warns of one that is never awaited."""
    if inspect.iscoroutine(value):
        value.close()
