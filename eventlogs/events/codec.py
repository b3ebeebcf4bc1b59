"""
Events to JSON and back, typed and exact.

msgspec (https://jcristharif.com/msgspec/) does the work: straight from JSON to the dataclass,
without a dict between.

Encoding validates: data is decoded again before it is stored, and refused if the result is not
equal to the event. So a class can read every event of it that was stored.

Decimals are JSON strings, so that no JSON reader on the way turns money into binary floats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any, ClassVar, Final, NamedTuple, cast

import msgspec
from django.utils.crypto import constant_time_compare, salted_hmac
from msgspec import inspect as types
from msgspec import structs

from eventlogs import conf
from eventlogs.events import validation
from eventlogs.events.metadata import ADOPTED
from eventlogs.events.personal import MARKER, MARKER_BYTES, Members, filled, personal_places
from eventlogs.events.registry import EventType, registry
from eventlogs.events.sealed import Opener
from eventlogs.events.unique import unique_fields
from eventlogs.exceptions import (
    InvalidEvent,
    RegistrationError,
    UndecodableEvent,
    UnknownEventType,
)
from eventlogs.privacy.encryption import CannotOpen
from eventlogs.values import EventRecord, RetiredEvent, StoredEvent

SALT: Final = "eventlogs.fingerprint"  # of the key that fingerprints of requests are made with

# "deterministic" sorts keys, so that equal data has equal bytes: fingerprints rely on it.
ENCODER: Final = msgspec.json.Encoder(order="deterministic", decimal_format="string")
JSON: Final = msgspec.json.Decoder()
# For upcasters: a number with a fraction stays exact on its way through them.
EXACT_JSON: Final = msgspec.json.Decoder(float_hook=Decimal)
EXACT_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")

# msgspec's messages name types and fields, but some quote values: only these are passed on.
SAFE_MESSAGE: Final = re.compile(
    r"(Expected `[^`]*`, got `[^`]*`|Object missing required field `[^`]*`)"
)
MESSAGE_PATH: Final = re.compile(r" - at `(\$[^`]*)`\Z")

# Types that the fast test (encode, decode, compare) cannot check completely.
INSPECTED_TYPES: Final = (
    types.AnyType,
    types.DateTimeType,
    types.DecimalType,
    types.BytesType,
    types.ByteArrayType,
    types.MemoryViewType,
    types.SetType,
    types.FrozenSetType,
    types.CustomType,
    types.RawType,
)

# Types that take an encrypted value for a value of their own, or may do so.
SWALLOWING_TYPES: Final = (
    types.AnyType,
    types.DictType,
    types.RawType,
    types.CustomType,
    types.TypedDictType,
    types.DataclassType,
    types.StructType,
)


class Sealed(Exception):
    """Data that may hold encrypted values: they have to be opened before they are decoded."""


# What decoding raises; an error of an upcaster is raised as an UndecodableEvent.
CANNOT_DECODE: Final = (msgspec.MsgspecError, UndecodableEvent, UnknownEventType)


class EncodedEvent(NamedTuple):
    """An event as a store takes it; ``data`` is JSON text."""

    type: str
    schema_version: int
    data: str

    @property
    def compared(self) -> str:
        """What the fingerprint of a request is made of."""
        return self.data


class SealedEvent(EncodedEvent):
    """
    An event with encrypted values in its data.

    They differ each time the event is encrypted, so requests are compared by another text. It is
    set for a request with an idempotency key.
    """

    compared: str = ""


_encoded: Final = tuple.__new__  # skips the __new__ of the NamedTuple, a Python function


class EventCodec:
    """Encode and decode the events of one class."""

    def __init__(self, event_type: EventType) -> None:
        self.event_type = event_type
        self._name, self._version = event_type.name, event_type.version
        try:
            self._decode: Callable[[str | bytes], Any] = msgspec.json.Decoder(event_type.cls).decode
            inspected = _uses(types.type_info(event_type.cls), INSPECTED_TYPES)
            self.unique = unique_fields(event_type.cls)
            self.personal: Members | None = personal_places(event_type.cls)
            info = types.type_info(event_type.cls)
            # Where nothing says that a number is a float, it may come back as an int.
            self._untyped = _uses(info, (types.AnyType,)) or (
                _uses(info, (types.IntType,)) and _uses(info, (types.FloatType,))
            )
        except (TypeError, NameError, AttributeError) as error:
            raise RegistrationError(
                f"The fields of {event_type.cls.__qualname__} cannot be encoded: {error}. "
                f"Use types that JSON can tell apart "
                f"(https://jcristharif.com/msgspec/supported-types.html)."
            ) from error
        # Without __eq__, or with fields left out of it, equality proves nothing.
        compared = cast("Any", event_type.cls).__eq__ is not object.__eq__ and all(
            field.compare for field in fields(event_type.cls)
        )
        self._inspected = inspected or not compared
        # The class itself is one: its fields are what counts.
        inside = [field.type for field in cast("Any", info).fields]
        self._swallows = self.personal is not None or _uses(inside, SWALLOWING_TYPES)

    def encode(self, event: Any, max_bytes: int) -> EncodedEvent:
        """
        Return ``event`` as a store takes it.

        Raise InvalidEvent where it would not be decoded as an equal event, or breaks a limit.
        """
        try:
            data = ENCODER.encode(event)
            came_back = self._decode(_as_jsonb(data) if self._untyped else data)
            # == of a dataclass takes half the time of !=, and a search for one byte a tenth of
            # the time for several.
            is_alike = self._inspected or came_back == event
            # Only long JSON can be too deep, or hold an int that is too long.
            if (
                self._inspected
                or not is_alike
                or (b"\\" in data and b"\\u0000" in data)
                or (self._swallows and MARKER_BYTES in data)
                or (
                    len(data) > 2 * conf.MAX_DEPTH
                    and (len(data) > 4_000 or data.count(b"{") + data.count(b"[") > conf.MAX_DEPTH)
                )
            ):
                validation.inspect(event, came_back)
                if not is_alike:
                    raise validation.Finding("$", "it would not come back equal")
        except Exception as error:
            raise self._refusal(event, error) from None
        if len(data) > max_bytes:
            raise InvalidEvent(
                f"its JSON has {len(data)} bytes, and EVENTLOGS['MAX_EVENT_BYTES'] is {max_bytes}",
                event_type=self._name,
            )
        return _encoded(EncodedEvent, (self._name, self._version, data.decode()))

    def _refusal(self, event: Any, error: Exception) -> InvalidEvent:
        name = self.event_type.name
        if not isinstance(error, validation.Finding):
            try:
                validation.inspect(event)
            except validation.Finding as finding:
                error = finding
            except Exception:  # a property or __eq__ of the user's raised: keep the first error
                pass
        if isinstance(error, validation.Finding):
            return InvalidEvent(error.limit, event_type=name, path=error.path)
        path, reason = _reason(error)
        return InvalidEvent(reason, event_type=name, path=path)

    def redacted(self, schema_version: int) -> Mapping[str, Any]:
        """Return what an upcaster declares for erased values in data of an older version."""
        if schema_version >= self.event_type.version:
            return {}
        return registry.redacted(self.event_type.names, schema_version)

    def decoder(self, schema_version: int, *, is_plain: bool = False) -> Callable[[str], Any]:
        """
        Return the function that decodes data stored as ``schema_version``.

        It raises Sealed for data with encrypted values, unless ``is_plain``: then there are none,
        and what an upcaster has made null of an erased value is its stand-in.
        Raise UndecodableEvent for a newer version, or one that no upcaster takes.
        """
        decode = self._plain_decoder(schema_version, fills=is_plain)
        # An upcaster may take what it gets, too. Where no type can take an encrypted value for its
        # own, decoding fails, which costs the other events nothing.
        if is_plain or not (self._swallows or schema_version < self.event_type.version):
            return decode

        def decode_plain(data: str) -> Any:
            if MARKER in data:
                raise Sealed
            return decode(data)

        return decode_plain

    def _plain_decoder(self, schema_version: int, *, fills: bool) -> Callable[[str], Any]:
        current = self.event_type.version
        if schema_version == current:
            return self._decode
        if schema_version > current:
            raise UndecodableEvent(
                f"it was written by newer code; the class here is of version {current}",
                event_type=self.event_type.name,
                schema_version=schema_version,
                is_newer=True,
            )
        chain = []
        for version in range(schema_version, current):
            upcast = registry.upcaster(self.event_type.names, version)
            if upcast is None:
                raise UndecodableEvent(
                    f"no upcaster takes it from version {version} to {version + 1}",
                    event_type=self.event_type.name,
                    schema_version=schema_version,
                )
            chain.append(upcast)

        def decode(data: str) -> Any:
            value = EXACT_JSON.decode(data)
            at = schema_version
            try:
                for upcast in chain:
                    value = upcast(value)
                    at += 1
                upcasted = EXACT_ENCODER.encode(value)
            except Exception as error:
                # Not its text, which may quote the data.
                raise UndecodableEvent(
                    f"its upcaster from version {min(at, current - 1)} failed with "
                    f"{type(error).__name__}",
                    event_type=self.event_type.name,
                    schema_version=schema_version,
                ) from error
            return self._decode(filled(self.personal, upcasted) if fills else upcasted)

        return decode


class EventReader:
    """
    Decode stored events.

    ``event_types`` are looked at first; other names are looked up in the registry, so that
    the history of an aggregate may hold events that it no longer appends.
    """

    opener_of: ClassVar[type[Opener]] = Opener  # what reads personal data

    def __init__(self, event_types: Iterable[EventType] = ()) -> None:
        self._own = {name: each for each in event_types for name in each.names}
        # A dict by name of dicts by version: with pairs as keys, a lookup takes twice as long.
        self._decoders: dict[str, dict[int, Callable[[str], Any]]] = {}

    def records(
        self,
        events: Iterable[StoredEvent],
        *,
        decode: bool = True,
    ) -> Iterator[EventRecord]:
        """
        Yield stored events, of any logs, as records.

        With ``decode=False`` a record's ``event`` is the raw JSON value, and no class is needed.
        Raise UnknownEventType or UndecodableEvent at the first that cannot be decoded, and
        KeyUnavailable where personal data cannot be read with the settings here.
        """
        decoders = self._decoders
        opener: Opener | None = None
        for each in events:
            name, version = each.type, each.schema_version
            is_erased = False
            try:
                try:
                    read = decoders[name][version] if decode else _raw
                except KeyError:
                    read = self._decoder(name, version)
                event = read(each.data)
            except (Sealed, *CANNOT_DECODE) as error:
                if MARKER not in each.data:
                    raise _unreadable(error, each) from _cause(error)
                opener = opener or self.opener_of(events)
                event = self._opened(each, opener, decode)
                is_erased = bool(opener.erased)
            metadata = each.metadata
            if MARKER in metadata:
                opener = opener or self.opener_of(events)
                metadata = _opened_metadata(each, opener)
                is_erased = is_erased or bool(opener.erased)
            yield EventRecord(
                each.log_id,
                each.index,
                each.position,
                name,
                version,
                event,
                {} if metadata == "{}" else JSON.decode(metadata),
                each.idempotency_key,
                each.recorded_at,
                is_erased,
            )

    def _opened(self, event: StoredEvent, opener: Opener, decode: bool) -> Any:
        """Decode an event with encrypted values."""
        name, version = event.type, event.schema_version
        try:
            event_type = self._own.get(name) or registry.by_name(name)
            if event_type is None:
                if decode and not registry.is_retired(name):
                    raise UnknownEventType(name)
                value = JSON.decode(opener.data(event, None))
                return RetiredEvent(name, version, value) if decode else value
            codec = codec_for(event_type)
            data = opener.data(event, codec.personal, codec.redacted(version))
            return codec.decoder(version, is_plain=True)(data) if decode else JSON.decode(data)
        except (CannotOpen, *CANNOT_DECODE) as error:
            raise _unreadable(error, event) from _cause(error)

    def reads_as(self, stored: Sequence[StoredEvent], events: Sequence[EncodedEvent]) -> bool:
        """
        Return whether stored events of a log are equal to ``events``, in today's classes.

        Both are decoded: so a stored event with an older name, an older version or without a
        field that has a default is equal to what the same request makes of it today. Fields
        are compared as a dataclass does: not those that have ``compare=False``. Types have to
        be the same, so True is not 1.

        Raise UnknownEventType (for retired types as well) or UndecodableEvent where a stored
        event has no class here.
        """
        for each in stored:
            # Also of a type that is declared retired: no event of today can be equal to it.
            if (self._own.get(each.type) or registry.by_name(each.type)) is None:
                raise UnknownEventType(each.type, log_id=each.log_id, index=each.index)
        as_jsonb = [
            structs.replace(each, data=_as_jsonb(each.data.encode()).decode()) for each in stored
        ]
        found = [record.event for record in self.records(as_jsonb)]
        given = [
            self._decoder(event.type, event.schema_version)(_as_jsonb(event.data.encode()).decode())
            for event in events
        ]
        return len(found) == len(given) and all(map(_is_alike, found, given))

    def _decoder(self, name: str, version: int) -> Callable[[str], Any]:
        event_type = self._own.get(name) or registry.by_name(name)
        if event_type is None:
            if not registry.is_retired(name):
                raise UnknownEventType(name)
            return lambda data: RetiredEvent(name, version, _raw(data))
        decode = codec_for(event_type).decoder(version)
        self._decoders.setdefault(name, {})[version] = decode
        return decode


def _raw(data: str) -> Any:
    if MARKER in data:
        raise Sealed
    return JSON.decode(data)


def _opened_metadata(event: StoredEvent, opener: Opener) -> str:
    try:
        return opener.metadata(event)
    except CannotOpen as error:
        raise _unreadable(error, event) from None


def _cause(error: Exception) -> BaseException | None:
    """Return what an upcaster raised; what msgspec raises may quote the data."""
    return error.__cause__ if isinstance(error, UndecodableEvent) else None


def _unreadable(error: Exception, event: StoredEvent) -> UnknownEventType | UndecodableEvent:
    """Return the error that says which event could not be decoded, and why."""
    if isinstance(error, UnknownEventType):
        return UnknownEventType(event.type, log_id=event.log_id, index=event.index)
    if isinstance(error, UndecodableEvent):
        reason = error.reason
    elif isinstance(error, CannotOpen):
        reason = str(error)
    else:
        path, reason = _reason(error)
        reason = f"at {path}, {reason}"
    return UndecodableEvent(
        reason,
        event_type=event.type,
        schema_version=event.schema_version,
        is_newer=isinstance(error, UndecodableEvent) and error.is_newer,
        log_id=event.log_id,
        index=event.index,
    )


_codecs: dict[EventType, EventCodec] = {}


def codec_for(event_type: EventType) -> EventCodec:
    """
    Return the codec of an event type.

    Raise RegistrationError where a field's type cannot be encoded.
    """
    codec = _codecs.get(event_type)
    if codec is None:
        codec = _codecs[event_type] = EventCodec(event_type)
    return codec


def encode_metadata(metadata: Mapping[str, Any] | None) -> str:
    """
    Return the metadata of an append as JSON text.

    Raise InvalidEvent, with a path that starts with ``$metadata``, for metadata that JSON would
    not decode as an equal dict, or that break a limit.
    """
    if metadata is None or metadata == {}:
        return "{}"
    path, limit = "$metadata", ""
    try:
        if not isinstance(metadata, dict):
            raise validation.Finding(path, "metadata must be a dict")
        if ADOPTED in metadata:
            raise validation.Finding(
                f"{path}.{ADOPTED}", "an adoption alone writes this key; leave it out"
            )
        validation.inspect(metadata, root=path)
        data = ENCODER.encode(metadata)
        validation.inspect(metadata, JSON.decode(_as_jsonb(data)), root=path)
        if len(data) > conf.max_event_bytes():
            limit = (
                f"its JSON has {len(data)} bytes, and EVENTLOGS['MAX_EVENT_BYTES'] is "
                f"{conf.max_event_bytes()}"
            )
    except validation.Finding as finding:
        path, limit = finding.path, finding.limit
    except (TypeError, ValueError, RecursionError):
        limit = "it cannot be encoded as JSON"
    if limit:
        raise InvalidEvent(limit, path=path)
    return data.decode()


def request_fingerprints(events: Sequence[EncodedEvent]) -> Iterator[bytes]:
    """
    Yield the keyed fingerprint (HMAC-SHA-256) of the events' types, versions and data.

    The first is the one to store, made with SECRET_KEY; the others, made with
    SECRET_KEY_FALLBACKS, are for comparing with what was stored before a rotation. It is
    keyed, because a plain digest of a small amount of money can be guessed. The version counts,
    because equal data of another version may mean something else: 5 euros, and 5 cents.
    """
    canonical = b"".join(
        b"%d:%s:%d:%d:%s"
        % (len(event.type), event.type.encode(), event.schema_version, len(data), data)
        for event in events
        for data in (event.compared.encode(),)
    )
    for secret in conf.secret_keys():
        yield salted_hmac(SALT, canonical, secret, algorithm="sha256").digest()


def same_request(stored: bytes, events: Sequence[EncodedEvent]) -> bool:
    """Return whether ``stored`` is the fingerprint of a request with these events."""
    return any(constant_time_compare(stored, each) for each in request_fingerprints(events))


def _is_alike(one: Any, other: Any) -> bool:
    """Return whether two decoded values are equal, and of equal types at all depths."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_alike, one, other))
    if is_dataclass(one):
        names: Iterable[str] = [field.name for field in fields(one) if field.compare]
    elif isinstance(one, msgspec.Struct):
        names = one.__struct_fields__
    else:
        return bool(one == other)
    return all(_is_alike(getattr(one, name), getattr(other, name)) for name in names)


def _as_jsonb(data: bytes) -> bytes:
    """
    Return JSON as jsonb would write it: 1e23 as an integer of 24 digits.

    That integer is not equal to the float. An event must not depend on which database it is in.
    """
    return ENCODER.encode(_JSONB.decode(data)) if b"e" in data else data


def _jsonb_number(text: str) -> int | float:
    number = float(text)
    # msgspec and Python write an exponent for numbers from 1e16 on.
    return int(Decimal(text)) if 1e16 <= abs(number) < math.inf else number


_JSONB: Final = msgspec.json.Decoder(float_hook=_jsonb_number)


def _reason(error: Exception) -> tuple[str, str]:
    """Return the JSON path and a reason that quotes no data."""
    text = str(error) if isinstance(error, msgspec.MsgspecError) else ""
    found = MESSAGE_PATH.search(text)
    safe = SAFE_MESSAGE.match(text)
    reason = safe[0] if safe else "it does not fit its declared type"
    return (found[1] if found else "$"), reason


def _uses(info: Any, wanted: tuple[type, ...]) -> bool:
    """Return whether a type, or a type inside of it, is one of ``wanted``."""
    seen: set[int] = set()
    queue = [info]
    while queue:
        each = queue.pop()
        if isinstance(each, wanted):
            return True
        if isinstance(each, list | tuple):
            queue.extend(each)
        elif isinstance(each, types.Type | types.Field) and id(each) not in seen:
            seen.add(id(each))
            queue.extend(getattr(each, name) for name in each.__struct_fields__)
    return False
