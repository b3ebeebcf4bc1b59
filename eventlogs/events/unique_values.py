"""
The unique values that events declare, by their classes.

Imports, ``verify`` and ``claim`` use this module to compute the claims of a log from its stored
events. The claims of an append are computed by its LogManager, from the same fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Protocol
from uuid import UUID

from eventlogs.events.codec import CANNOT_DECODE, EventCodec, codec_for
from eventlogs.events.personal import MARKER, Here, child_of, step
from eventlogs.events.registry import EventType, registry
from eventlogs.events.sealed import Opener
from eventlogs.events.unique import Unfit, UniqueField, UniqueValue, unique_value
from eventlogs.exceptions import KeyUnavailable, RegistrationError
from eventlogs.privacy import memory
from eventlogs.privacy.encryption import CannotOpen
from eventlogs.privacy.keys import key_store
from eventlogs.values import StoredEvent

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

    A value whose subject was forgotten is None. An event that has no class here has no unique
    values. Nor has one that its class cannot read, or whose key cannot be had here; if ``strict``,
    that one raises Unread.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._codecs: dict[str, EventCodec | None] = {}
        self._strict = strict
        self._opener = Opener(iter(()))

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
            return list(self._read(event, codec))
        except KeyUnavailable as error:
            if not self._strict:
                return ()
            why = "a key of its personal data cannot be had here"
            raise Unread(f"an event of type {event.type} cannot be read: {why}") from error
        except (CannotOpen, *CANNOT_DECODE, Unfit) as error:
            if not self._strict:
                return ()
            # Not the text of msgspec's errors, which may quote the data.
            why = str(error) if isinstance(error, Unfit) else "it does not fit its class"
            raise Unread(f"an event of type {event.type} cannot be read: {why}") from error

    def _read(self, event: Typed, codec: EventCodec) -> Iterator[UniqueValue]:
        data, is_erased = event.data, False
        if MARKER in data and isinstance(event, StoredEvent):
            redacted = codec.redacted(event.schema_version)
            data = self._opener.data(event, codec.personal, redacted)
            is_erased = bool(self._opener.erased)
        is_old = event.schema_version < codec.event_type.version
        decoded = codec.decoder(event.schema_version, is_plain=True)(data)
        for name, unique, is_personal in codec.unique:
            value, key = getattr(decoded, name), None
            if is_personal:
                # A stand-in is no value: many logs have the same.
                if is_erased and self._is_erased(codec, name, decoded, is_old=is_old):
                    value = None
                key = memory.index_key() if value is not None else None
            yield unique_value(unique, value, key)

    def _is_erased(self, codec: EventCodec, name: str, decoded: Any, *, is_old: bool) -> bool:
        """Return whether the value of a field is the stand-in of what was erased."""
        if not is_old:
            path = step("$", name)
            return any(
                each == path or each.startswith((f"{path}.", f"{path}["))
                for each in self._opener.erased
            )
        # An upcaster may have moved it, so its path says nothing; the key of its subject does.
        here = child_of(codec.personal, name)
        subject = getattr(decoded, here.personal.subject, None) if isinstance(here, Here) else None
        if not isinstance(here, Here) or subject is None:
            return True  # nobody knows whose it is
        if isinstance(subject, Enum):
            subject = subject.value
        return key_store().find(f"{here.personal.prefix}{subject}") in self._opener.erased_keys


def _codec_of(name: str) -> EventCodec | None:
    try:
        event_type = registry.by_name(name)
        codec = None if event_type is None else codec_for(event_type)
    except RegistrationError:  # a system check reports it
        return None
    return codec if codec is not None and codec.unique else None


def declared() -> list[tuple[EventType, tuple[UniqueField, ...]]]:
    """Return the event types with unique fields, and what each declares."""
    found = []
    for event_type in registry:
        try:
            uniques = codec_for(event_type).unique
        except RegistrationError:
            continue
        if uniques:
            found.append((event_type, uniques))
    return found


def names_declared() -> set[str]:
    """Return the stored names, aliases included, of all event types with unique fields."""
    return {name for event_type, _ in declared() for name in event_type.names}


def by_scope(found: Iterable[UniqueField]) -> dict[str, UniqueField]:
    """
    Return declarations by their scopes.

    Raise RegistrationError where two of one scope normalize in different ways, or one of them is
    personal and another is not.
    """
    scopes: dict[str, UniqueField] = {}
    for field in found:
        each = field.unique
        first = scopes.setdefault(each.scope, field)
        if first.is_personal != field.is_personal:
            raise RegistrationError(
                f"{each.scope!r} is declared at a field that is Personal and at one that is not: "
                f"{first.name} and {field.name}. Their digests could not be compared. Annotate "
                f"both with Personal, or give one of them another scope."
            )
        if first.unique != each:
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
