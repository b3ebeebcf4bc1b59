"""
The event context: metadata that are added to all events appended in a request, task or block.

A ContextVar holds the context, so each thread and each asyncio task has its own. A new asyncio
task and the thread of ``sync_to_async`` begin with a copy; other threads begin without a context.

A context consists of layers: the layer of an ``event_context()`` block is above that of the request
around it. A layer holds names and values as JSON, so an append only joins texts.

``eventlogs.middleware`` makes the layer of a request, ``eventlogs.contrib`` sends contexts with
messages, and a reactor begins a new context for each event.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import isasyncgenfunction, isclass, iscoroutinefunction, isgeneratorfunction
from typing import Any, Final, TypeVar, cast

from eventlogs.events.codec import encode_metadata
from eventlogs.events.metadata import CAUSATION, CORRELATION, TRACEPARENT, id_in
from eventlogs.events.personal import NAME as PERSONAL
from eventlogs.exceptions import InvalidEvent
from eventlogs.utils.twins import in_thread

__all__ = ["event_context"]

logger = logging.getLogger("eventlogs.context")

MAX_BLOCK_BYTES: Final = 4_096  # of the JSON of one block
MAX_CARRIED: Final = 65_536  # characters of a context in a message
# https://www.w3.org/TR/trace-context/#traceparent-header-field-values
TRACE: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

# Text that is the same in JSON, between quotes.
PLAIN: Final = re.compile(r"[ !#-\[\]-~]{0,512}").fullmatch

F = TypeVar("F", bound=Callable[..., Any])

Members = Mapping[str, str]
"""Members of a JSON object by name: ``"name":value``."""

NOTHING: Final[Members] = {}


class Layer:
    """
    The metadata that one block adds.

    ``own`` are its members; None removes a name. ``outer`` is the layer around it, or None.
    """

    def __init__(self, own: Mapping[str, str | None], *, outer: Layer | None = None) -> None:
        self.outer = outer
        self._own = own
        # Caches: the outer members with the merged ones, and the members with their text. Each is
        # one tuple, because threads of one request share a layer.
        self._members: tuple[Members | None, Members] = (None, NOTHING)
        self._text: tuple[Members | None, str] = (None, "{}")

    def members(self, *, asks: bool = True) -> Members:
        """
        Return the members, in the same object as long as none has changed.

        With ``asks=False``, leave out a user who must be looked up in the database first.
        """
        outer = NOTHING if self.outer is None else self.outer.members(asks=asks)
        seen, members = self._members
        if seen is not outer:
            merged = {**outer, **self._own}
            members = {name: each for name, each in merged.items() if each is not None}
            self._members = outer, members
        return members

    @property
    def is_known(self) -> bool:
        """Whether the members are known, so that ``members()`` needs no query."""
        return self.outer is None or self.outer.is_known

    def metadata(self, explicit: Mapping[str, Any], text: str) -> str:
        """Return the metadata of an append; names in ``explicit``, with the JSON ``text``, win."""
        members = self.members()
        if explicit:
            added = [each for name, each in members.items() if name not in explicit]
            return f"{text[:-1]},{','.join(added)}}}" if added else text
        seen, own = self._text
        if seen is not members:
            own = text_of(members)
            self._text = members, own
        return own


current: Final[ContextVar[Layer | None]] = ContextVar("eventlogs_context", default=None)
"""The innermost layer, or None without a context."""


def text_of(members: Members) -> str:
    """Return members as a JSON object."""
    return f"{{{','.join(members.values())}}}"


def member(name: str, value: Any) -> str:
    """Return a member of a JSON object; raise InvalidEvent for a value that cannot be stored."""
    # A short cut for ids: it takes 0.5 µs, and the validation of any other value 5 µs.
    if name == PERSONAL:
        raise InvalidEvent("this name is reserved for encrypted values", path="$metadata")
    if type(value) is str and PLAIN(value) and PLAIN(name):
        return f'"{name}":"{value}"'
    if type(value) is int and -(2**53) < value < 2**53 and PLAIN(name):
        return f'"{name}":{value}'
    return encode_metadata({name: value})[1:-1]


@contextmanager
def entered(layer: Layer) -> Iterator[None]:
    """Make a layer the context of a block, instead of the context around it."""
    token = current.set(layer)
    try:
        yield
    finally:
        current.reset(token)


class event_context:
    """
    Add metadata to all events that are appended in a block.

    Use it in a ``with`` statement, or as a decorator of a function or an async function. Values
    are JSON values, as in ``metadata=`` of an append, whose names override those of the block.
    None removes a name that the request or an outer block has set. The JSON of one block has at
    most 4,096 bytes.

    Raise InvalidEvent for a value that cannot be stored or a block that is too long, before the
    block begins. As a decorator, raise TypeError for a generator function or a class.
    """

    def __init__(self, **metadata: Any) -> None:
        self._own = {
            name: None if value is None else member(name, value) for name, value in metadata.items()
        }
        size = sum(len(each.encode()) for each in self._own.values() if each is not None)
        if size > MAX_BLOCK_BYTES:
            raise InvalidEvent(
                f"its JSON has {size} bytes, and an event_context() takes {MAX_BLOCK_BYTES:,}",
                path="$metadata",
            )

    def __enter__(self) -> None:
        current.set(Layer(self._own, outer=current.get()))

    def __exit__(self, *exc_info: object) -> None:
        # Without a token of the ContextVar: tasks may share this object, so it must not keep one.
        layer = current.get()
        current.set(None if layer is None else layer.outer)

    def __call__(self, function: F) -> F:
        if isclass(function) or isgeneratorfunction(function) or isasyncgenfunction(function):
            raise TypeError(
                f"event_context() cannot decorate {function.__qualname__}: its body does not run "
                f"while it is called. Write `with event_context(…):` inside of it."
            )
        if iscoroutinefunction(function):

            @wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)
        else:

            @wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return function(*args, **kwargs)

        return cast("F", run)


async def look_up() -> None:
    """Look up the context of a request in the thread, if necessary: the event loop cannot."""
    layer = current.get()
    if layer is not None and not layer.is_known:
        await in_thread(layer, "members", (), {})


@contextmanager
def caused_by(record_id: str, metadata: Mapping[str, Any]) -> Iterator[None]:
    """
    Make an event the cause of the events that are appended in a block.

    The context around the block is ignored: the events of a reactor must not depend on the
    process that runs it. The correlation id is that of the event, or the event's id if it has none.
    """
    own = {
        CAUSATION: member(CAUSATION, record_id),
        CORRELATION: member(CORRELATION, id_in(metadata, CORRELATION) or record_id),
    }
    if (trace := valid_traceparent(metadata.get(TRACEPARENT))) is not None:
        own[TRACEPARENT] = member(TRACEPARENT, trace)
    with entered(Layer(own)):
        yield


def valid_traceparent(value: Any) -> str | None:
    """
    Return a W3C traceparent, or None for anything else.

    A value of a later version is returned as version 00, with the one flag that version 00 knows
    (https://www.w3.org/TR/trace-context/#versioning-of-traceparent).
    """
    if not isinstance(value, str) or len(value) > 512 or not (found := TRACE.fullmatch(value)):
        return None
    version, trace, parent, flags, more = found.groups()
    if version == "ff" or not trace.strip("0") or not parent.strip("0"):
        return None
    if version == "00":
        return None if more else value
    return f"00-{trace}-{parent}-{int(flags, 16) & 1:02x}"


def carried() -> str | None:
    """
    Return the context as text for a message, or None without a context.

    It includes the user of a request only if the request has loaded the user already.
    """
    layer = current.get()
    return None if layer is None else text_of(layer.members(asks=False))


def received(text: object) -> Layer | None:
    """Return the layer of a message's text; for text that is invalid, log a warning instead."""
    if text is None:
        return None
    try:
        if not isinstance(text, str) or len(text) > MAX_CARRIED:
            raise TypeError
        metadata = json.loads(text)
        if not isinstance(metadata, dict):
            raise TypeError
        return Layer({name: member(name, value) for name, value in metadata.items()})
    except (TypeError, ValueError, RecursionError):  # InvalidEvent is a ValueError
        logger.warning("A message has an event context that cannot be read; it is left out.")
        return None
