"""
Who did it, and in which flow: metadata that are added to all events appended in a block.

The context of a block is kept in a ContextVar: threads and tasks of asyncio have their own. A new
task of asyncio, and the thread of ``sync_to_async``, begin with a copy; other threads have none.

A context is one Layer, or several, one in another: the block of an ``event_context()`` in that
of a request. Names and values are JSON by the time they are in a layer, so that an append only has
to join texts.

``eventlogs.middleware`` makes the layer of a request, ``eventlogs.contrib`` carries layers through
messages, and reactors begin a new one for each event.
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
"""Names, and what is written for each into a JSON object: ``"name":value``."""

NOTHING: Final[Members] = {}


class Layer:
    """
    What one block adds to the metadata.

    ``own`` are its members; None removes a name. ``outer`` is the layer around it, if there is one.
    """

    def __init__(self, own: Mapping[str, str | None], *, outer: Layer | None = None) -> None:
        self.outer = outer
        self._own = own
        # What something was made of, and what was made of it. In one tuple each, because threads of
        # one request share a layer.
        self._members: tuple[Members | None, Members] = (None, NOTHING)
        self._text: tuple[Members | None, str] = (None, "{}")

    def members(self, *, asks: bool = True) -> Members:
        """
        Return the members, the same object as long as none has changed.

        Without ``asks``, leave out the user of a request who would have to be looked up.
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
        """Whether ``members()`` calls no function of the project, and asks no database."""
        return self.outer is None or self.outer.is_known

    def metadata(self, explicit: Mapping[str, Any], text: str) -> str:
        """Return the metadata of an append; ``text`` is the JSON of ``explicit``, which wins."""
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
"""The innermost layer here, or None where there is no context."""


def text_of(members: Members) -> str:
    """Return members as a JSON object."""
    return f"{{{','.join(members.values())}}}"


def member(name: str, value: Any) -> str:
    """Return a name and its value as they are written into a JSON object; raise InvalidEvent."""
    # Ids are such text, and the first append of a request waits for them: this takes 0.5 µs, and
    # the validation of any value 5.
    if type(value) is str and PLAIN(value) and PLAIN(name):
        return f'"{name}":"{value}"'
    if type(value) is int and -(2**53) < value < 2**53 and PLAIN(name):
        return f'"{name}":{value}'
    return encode_metadata({name: value})[1:-1]


@contextmanager
def entered(layer: Layer) -> Iterator[None]:
    """Let a layer be the context of a block, whatever was around it."""
    token = current.set(layer)
    try:
        yield
    finally:
        current.reset(token)


class event_context:
    """
    Add metadata to all events that are appended in a block.

    Use it with ``with``, or as a decorator of a function or an async function. Names and values are
    those of ``metadata=`` of an append, which wins. None removes a name that a block around this
    one, or the request, has set. The block's JSON may have 4,096 bytes.

    Raise InvalidEvent for a value that cannot be stored, at once; and TypeError for a generator
    function or a class: use ``with`` inside of it.
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
        # Not a token, which would have to be kept here: tasks may share this object.
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
    """Find the context of a request in the thread, if it is not known: the loop must not wait."""
    layer = current.get()
    if layer is not None and not layer.is_known:
        await in_thread(layer, "members", (), {})


@contextmanager
def caused_by(record_id: str, metadata: Mapping[str, Any]) -> Iterator[None]:
    """
    Let an event be the cause of what is appended in a block.

    The context around the block does not count: a reactor's events must not depend on who has
    called it. The correlation id is that of the event, or the event's own id if it has none.
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

    One of a later version is returned as version 00 with the flags that are known there, as the
    recommendation has it (https://www.w3.org/TR/trace-context/#versioning-of-traceparent).
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
    Return the context as text for a message; None if there is none.

    The user of a request is not looked up for it: the text has one that is loaded by now.
    """
    layer = current.get()
    return None if layer is None else text_of(layer.members(asks=False))


def received(text: object) -> Layer | None:
    """Return the layer that ``carried()`` has written; None, and a warning, for anything else."""
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
