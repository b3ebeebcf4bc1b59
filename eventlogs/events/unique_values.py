"""
The unique values that events declare, by their classes.

Imports, ``verify`` and ``claim`` use this module to compute the claims of a log from its stored
events. The claims of an append are computed by its LogManager, from the same fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from uuid import UUID

from eventlogs.events.codec import CANNOT_DECODE, EventCodec, codec_for
from eventlogs.events.registry import EventType, registry
from eventlogs.events.unique import Unfit, Unique, UniqueValue, unique_value
from eventlogs.exceptions import RegistrationError

Values = dict[str, UUID | None]  # digests, by scope; None where the value was released


class Typed(Protocol):
    """An encoded or a stored event."""

    @property
    def type(self) -> str: ...
    @property
    def schema_version(self) -> int: ...
    @property
    def data(self) -> str: ...


class Unread(Exception):
    """An event of a class with unique fields cannot be read; the argument says why."""


class UniqueReader:
    """
    Finds the unique values of encoded or stored events. It looks a type up once.

    An event that has no class here has no unique values. Nor has one that its class cannot read;
    if ``strict``, that one raises Unread.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._codecs: dict[str, EventCodec | None] = {}
        self._strict = strict

    def read(self, events: Iterable[Typed]) -> Values:
        """Return the values after these events, by scope; scopes without a value are left out."""
        values: Values = {}
        for each in events:
            for scope, digest in self.values_of(each):
                values[scope] = digest
        return values

    def values_of(self, event: Typed) -> Iterable[UniqueValue]:
        """Return the unique values of one event."""
        try:
            codec = self._codecs[event.type]
        except KeyError:
            codec = self._codecs[event.type] = _codec_of(event.type)
        if codec is None:
            return ()
        try:
            decoded = codec.decoder(event.schema_version)(event.data)
            return [unique_value(unique, getattr(decoded, name)) for name, unique in codec.unique]
        except (*CANNOT_DECODE, Unfit) as error:
            if not self._strict:
                return ()
            # Not the text of msgspec's errors, which may quote the data.
            why = str(error) if isinstance(error, Unfit) else "it does not fit its class"
            raise Unread(f"an event of type {event.type} cannot be read: {why}") from error


def _codec_of(name: str) -> EventCodec | None:
    try:
        event_type = registry.by_name(name)
        codec = None if event_type is None else codec_for(event_type)
    except RegistrationError:  # a system check reports it
        return None
    return codec if codec is not None and codec.unique else None


def declared() -> list[tuple[EventType, tuple[Unique, ...]]]:
    """Return the event types with unique fields, and what each declares."""
    found = []
    for event_type in registry:
        try:
            uniques = tuple(unique for _, unique in codec_for(event_type).unique)
        except RegistrationError:
            continue
        if uniques:
            found.append((event_type, uniques))
    return found


def names_declared() -> set[str]:
    """Return the stored names, aliases included, of all event types with unique fields."""
    return {name for event_type, _ in declared() for name in event_type.names}


def by_scope(found: Iterable[Unique]) -> dict[str, Unique]:
    """
    Return declarations by their scopes.

    Raise RegistrationError where two of one scope normalize in different ways.
    """
    scopes: dict[str, Unique] = {}
    for each in found:
        if scopes.setdefault(each.scope, each) != each:
            raise RegistrationError(
                f"{each.scope!r} is declared with two different normalize functions. Declare it "
                f"once, EMAIL = Unique({each.scope!r}, normalize=…), and annotate each field with "
                f"that."
            )
    return scopes


def as_values(values: Mapping[str, Any]) -> tuple[UniqueValue, ...]:
    """Return values in the order in which every append claims them, so that none deadlock."""
    return tuple(
        sorted(
            (UniqueValue(scope, digest) for scope, digest in values.items()),
            key=lambda each: each.scope,
        )
    )
