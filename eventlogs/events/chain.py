r"""
The digests of a chained history: each event's stands over its predecessor's and over itself.

A digest is the SHA-256 of these bytes, one part after the other:

1. the digest of the event before it in its log, 32 bytes; for event 0, 32 zero bytes
2. recorded_at, 8 bytes: microseconds since 2000-01-01 00:00 UTC, a signed big-endian number
3. a text in UTF-8, of lines with a line feed (``\n``) between them: the UUID of the log, the log
   type, metadata, the event type, the schema version, the index, data and, if there is one, the
   idempotency key

A UUID is written in lower case with hyphens, a number in decimal. Only the key may hold a line feed
itself, and it comes last: so two events that differ have bytes that differ. An event without a key
has one line less than one with the key "". The position is left out: an import into another
database gives another one.

Data and metadata are written as PostgreSQL writes a value of type jsonb:

- ``", "`` between members and items, ``": "`` behind a member's name, no other white space
- members by the length of their names in UTF-8, and by these bytes where the lengths are equal
- numbers without an exponent, with as many digits behind the point as were given: 1.50 and 1.5
  differ, 1e2 is 100. There is no negative zero.
- in strings, ``\"``, ``\\``, ``\b``, ``\f``, ``\n``, ``\r``, ``\t``; ``\u`` and four
  lower-case digits for the other characters below 32; all others as they are

So PostgreSQL can compute a digest where an event is stored, and it is the same in each database.
See docs/proof.md, which has an example.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from json.encoder import encode_basestring
from struct import Struct
from typing import Any, Final

from eventlogs.values import StoredEvent

LINE_FEEDS: Final = 6  # before the key
DIGEST_SIZE: Final = 32  # bytes
FIRST: Final = bytes(DIGEST_SIZE)  # in the place of the predecessor's digest, for event 0
EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's

_pack: Final = Struct("!q").pack


def digest(previous: bytes | None, event: StoredEvent, *, from_jsonb: bool = False) -> bytes:
    """
    Return the digest of an event, 32 bytes, from that of its predecessor (None for event 0).

    ``from_jsonb`` says that data and metadata are PostgreSQL's text of jsonb: they are not
    decoded, which saves most of the time. Raise ValueError for an event that has none: its JSON is
    invalid, or one of its types has a line feed.
    """
    data, metadata, key = event.data, event.metadata, event.idempotency_key
    if not from_jsonb:
        data, metadata = as_jsonb(data), "{}" if metadata == "{}" else as_jsonb(metadata)
    log_id, since = event.log_id, event.recorded_at - EPOCH
    text = (
        f"{log_id.uuid}\n{log_id.log_type}\n{metadata}\n{event.type}\n{event.schema_version}\n"
        f"{event.index}\n{data}"
    )
    if text.count("\n") != LINE_FEEDS:
        raise ValueError("one of its types has a line feed")
    if key is not None:
        text = f"{text}\n{key}"
    microseconds = since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds
    return sha256((previous or FIRST) + _pack(microseconds) + text.encode()).digest()


def chained(previous: bytes | None, events: Iterable[StoredEvent]) -> Iterator[bytes]:
    """Yield the digests of consecutive events of a log; ``previous`` is that before the first."""
    for event in events:
        previous = digest(previous, event)
        yield previous


def as_jsonb(text: str) -> str:
    """
    Return JSON as PostgreSQL writes it, once it is a jsonb.

    Raise ValueError where the text is no JSON.
    """
    try:
        return _written(_decode(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _decode(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError:
        raise ValueError("it is no JSON") from None
    except ValueError:  # an int with more digits than Python reads at once
        return _LONG_DECODER.decode(text)


def _refuse(constant: str) -> Any:
    raise json.JSONDecodeError("it is no JSON", constant, 0)


# Not msgspec, which reads a number of more than 64 bits as a float.
_DECODER: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse)
_LONG_DECODER: Final = json.JSONDecoder(
    parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse
)


def _written(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return encode_basestring(value)
    if kind is dict:
        names = sorted(((name.encode(), name) for name in value), key=_by_length)
        members = [f"{encode_basestring(name)}: {_written(value[name])}" for _, name in names]
        return "{" + ", ".join(members) + "}"
    if kind is list:
        return "[" + ", ".join([_written(each) for each in value]) + "]"
    if kind is int:
        return str(value)
    if kind is Decimal:
        if not value:
            value = abs(value)
        return format(value, "f")
    return "null" if value is None else "true" if value else "false"


def _by_length(name: tuple[bytes, str]) -> tuple[int, bytes]:
    return len(name[0]), name[0]
