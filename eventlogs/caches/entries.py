"""
Cache entries: the bytes in which a reduction is cached, and the checks that they must pass.

Entries are made and read by this module only. An entry is never a pickle, and nothing in it is
used before its signature was checked. There are three checks:

- of its *signature* (HMAC-SHA-256, RFC 2104, by SECRET_KEY or one of its fallbacks): nobody
  else has written or changed a byte of it;
- of what is *signed*: the log, the database alias, and the aggregate's code fingerprint. So an
  entry of another log or of other code is refused;
- of its *proof*, a digest of the last event that was folded, with its index, position and
  time. The log must have that event today, so an entry of a transaction that was rolled back,
  or of a history that a restored backup has undone, is refused. An entry that was folded from
  personal data also has the ids of the keys that decrypted them: all of them must be there
  today (``eventlogs.reductions.key_proofs``), so it ends with the first person forgotten.

An entry is a header, a body and the signature of both::

    EL1                  3 bytes, the format
    version              4 bytes, big-endian: so that a cache can compare two entries
    JSON, a newline      fingerprint, alias, log id, version, position, proof, reduced at; and,
                         of an aggregate with personal data, the ids of the keys
    JSON                 the aggregate
    signature            32 bytes
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timezone
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from django.utils.crypto import constant_time_compare, salted_hmac

from eventlogs import conf
from eventlogs.aggregates import Aggregate
from eventlogs.caches.counters import (
    BAD_SIGNATURE,
    FOREIGN_FINGERPRINT,
    FOREIGN_LOG,
    UNDECODABLE,
)
from eventlogs.caches.fingerprints import code_fingerprint, covers, why_unknown
from eventlogs.ids import LogId
from eventlogs.utils.names import dotted
from eventlogs.values import Reduction, StoredEvent

A = TypeVar("A", bound=Aggregate)

SALT: Final = "eventlogs.caches.entries"  # keys the signature, beside the project's secret
MAGIC: Final = b"EL1"
HEADER_BYTES: Final = len(MAGIC) + 4
SIGNATURE_BYTES: Final = 32
PROOF_BYTES: Final = 16
MAX_KEYS: Final = 1_000  # of subjects' keys in an entry; each read of the entry looks them up
# It does not sort keys: the order of a dict is part of an aggregate's state.
ENCODER: Final = msgspec.json.Encoder(decimal_format="string")


class Unstorable(Exception):
    """An aggregate that would not be equal after decoding: the place, and the reason."""


class Untrusted(Exception):
    """An entry that must not be used; ``reason`` is one of the reasons for a miss."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Head(NamedTuple):
    """The signed facts of an entry, before the aggregate."""

    fingerprint: str
    using: str
    log_id: str
    version: int
    position: int
    proof: str
    reduced_at: datetime
    keys: tuple[UUID, ...] = ()  # that decrypted personal data in the aggregate


class Entry(NamedTuple, Generic[A]):
    """An entry whose signature is good; the log, and the key store, have still to prove it."""

    raw: bytes
    head: Head
    aggregate: A

    def is_proven_by(self, event: StoredEvent | None) -> bool:
        """Return whether ``event`` is the last event that was folded."""
        return (
            event is not None
            and event.index == self.head.version - 1
            and proof_of(event) == self.head.proof
        )

    def reduction(self, log_id: LogId) -> Reduction[A]:
        """Return the reduction that the entry holds, as of the version that it was made at."""
        head = self.head
        return Reduction(log_id, head.version, self.aggregate, head.reduced_at, head.position)


class EntryCodec(Generic[A]):
    """Make and read the entries of one aggregate class, for the logs of one database."""

    def __init__(self, aggregate: type[A], using: str) -> None:
        self.aggregate = aggregate
        self.using = using
        self._name = dotted(aggregate)
        self._decoder: msgspec.json.Decoder[A] | None = None
        self._own = {name for each in aggregate.event_types for name in each.names}

    @cached_property
    def _is_encodable(self) -> bool:
        return why_not(self.aggregate) is None

    @property
    def is_possible(self) -> bool:
        """Return whether the aggregate has fields that JSON can hold, and code that is known."""
        return self._is_encodable and code_fingerprint(self.aggregate) is not None

    @property
    def why_unknown(self) -> str | None:
        """Return why the aggregate's code is not known, or None."""
        return why_unknown(self.aggregate) if self._is_encodable else None

    @property
    def fingerprint(self) -> str:
        """
        The code fingerprint of the aggregate in this process.

        If the code cannot be known (any more), it is a value that no entry has.
        """
        return code_fingerprint(self.aggregate) or secrets.token_hex(16)

    def covers(self, events: Iterable[StoredEvent]) -> bool:
        """Return whether the fingerprint is of the code that decodes each of these events."""
        return all(
            covers(self.aggregate, name) for name in {each.type for each in events} - self._own
        )

    def key(self, log_id: LogId) -> str:
        """Return the key of a log's entry, which is another one for other code."""
        text = f"{self.fingerprint}\n{self.using}\n{self._name}"
        place = hashlib.sha256(text.encode()).hexdigest()
        return f"eventlogs.reduction.{log_id}.{place[:32]}"

    def encode(
        self, reduction: Reduction[A], last: StoredEvent, keys: Collection[UUID] = ()
    ) -> bytes:
        """
        Return ``reduction`` as an entry; ``last`` is the last event that was folded.

        ``keys`` are the ids of the subjects' keys that were used. Raise Unstorable where these
        are more than 1,000, and for an aggregate that would not be equal after decoding: a fold
        on top of it could give another state than a full replay.
        """
        if len(keys) > MAX_KEYS:
            raise Unstorable(f"it is made of personal data of more than {MAX_KEYS} subjects")
        try:
            body = ENCODER.encode(reduction.aggregate)
            _compare(reduction.aggregate, self._decode(body), "$", set())
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
            raise Unstorable("its fields cannot be encoded as JSON") from None
        head = Head(
            self.fingerprint,
            self.using,
            str(reduction.log_id),
            reduction.version,
            reduction.position,
            proof_of(last),
            reduction.reduced_at,
            tuple(sorted(keys)),
        )
        # Without keys it ends before them: the bytes are those of releases that knew none.
        facts = ENCODER.encode(head if keys else head[:-1])
        signed = b"".join((MAGIC, reduction.version.to_bytes(4, "big"), facts, b"\n", body))
        return signed + _signature(signed, conf.secret_keys()[0])

    def decode(self, raw: bytes, log_id: LogId) -> Entry[A]:
        """
        Return the entry of ``log_id`` in ``raw``.

        Raise Untrusted for any other bytes.
        """
        head, body = opened(raw)
        if head.log_id != str(log_id) or head.using != self.using:
            raise Untrusted(FOREIGN_LOG)
        if head.fingerprint != self.fingerprint:
            raise Untrusted(FOREIGN_FINGERPRINT)
        try:
            return Entry(raw, head, self._decode(body))
        except (Exception, SystemExit):  # also what a __post_init__ raises
            raise Untrusted(UNDECODABLE) from None

    def _decode(self, body: bytes) -> A:
        if self._decoder is None:
            self._decoder = msgspec.json.Decoder(self.aggregate)
        return self._decoder.decode(body)


def why_not(aggregate: type[Aggregate]) -> str | None:
    """Return why no reduction of an aggregate class can be cached, or None."""
    if "__dataclass_fields__" not in vars(aggregate):
        return "it is not a dataclass"
    try:
        msgspec.json.Decoder(aggregate)
    except (TypeError, NameError, AttributeError) as error:
        return f"its fields cannot be encoded as JSON ({error})"
    return None


def opened(raw: bytes) -> tuple[Head, bytes]:
    """Return an entry's head and body. Raise Untrusted unless its signature is good."""
    signed, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    if raw[: len(MAGIC)] != MAGIC or not any(
        constant_time_compare(_signature(signed, secret), signature)
        for secret in conf.secret_keys()
    ):
        raise Untrusted(BAD_SIGNATURE)
    head, _, body = signed[HEADER_BYTES:].partition(b"\n")
    try:
        return _HEAD.decode(head), body
    except msgspec.MsgspecError:
        raise Untrusted(UNDECODABLE) from None


def version_in(raw: bytes) -> int:
    """Return the version in an entry, unchecked; -1 for bytes that are no entry."""
    if raw[: len(MAGIC)] != MAGIC or len(raw) < HEADER_BYTES + SIGNATURE_BYTES:
        return -1
    return int.from_bytes(raw[len(MAGIC) : HEADER_BYTES], "big")


def proof_of(event: StoredEvent) -> str:
    """Return the digest of all that is stored of an event."""
    key, recorded_at = event.idempotency_key, event.recorded_at.astimezone(UTC).isoformat()
    parts = (
        f"{event.index} {event.position} {event.schema_version} {recorded_at}",
        event.type,
        event.data,
        event.metadata,
        "-" if key is None else f"={key}",
    )
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(b"%d:" % len(encoded))
        digest.update(encoded)
    return digest.hexdigest()[: 2 * PROOF_BYTES]


def _signature(signed: bytes, secret: bytes) -> bytes:
    return hmac.digest(_signing_key(secret), signed, "sha256")


# salted_hmac() takes 5 microseconds a call, a tenth of a cached reduce; hmac.digest() takes 1.
@lru_cache(maxsize=16)
def _signing_key(secret: bytes) -> bytes:
    return salted_hmac(SALT, b"", secret, algorithm="sha256").digest()


def _compare(value: Any, came_back: Any, path: str, seen: set[int]) -> None:
    """
    Raise Unstorable unless ``came_back`` can replace ``value`` in every later fold.

    Equality is not enough: a defaultdict equals the dict that it comes back as, until a key
    is missing; and a list that two fields share is two lists afterwards.
    """
    if type(value) is not type(came_back):
        raise Unstorable(
            f"at {path}, a {type(value).__name__} comes back as a {type(came_back).__name__}"
        )
    children = _children(value, came_back, path)
    if children is None:
        if not _same(value, came_back):
            raise Unstorable(f"at {path}, a {type(value).__name__} comes back as another value")
        return
    if id(value) in seen and not _is_frozen(value):
        raise Unstorable(f"at {path}, a {type(value).__name__} is shared with another place")
    seen.add(id(value))
    for step, child, other in children:
        _compare(child, other, path + step, seen)


def _children(value: Any, came_back: Any, path: str) -> list[tuple[str, Any, Any]] | None:
    if isinstance(value, dict):
        if list(value) != list(came_back) or list(map(type, value)) != list(map(type, came_back)):
            raise Unstorable(f"at {path}, the keys of a dict come back as others")
        return [("[…]", each, came_back[key]) for key, each in value.items()]
    if isinstance(value, list | tuple):
        if len(value) != len(came_back):
            raise Unstorable(f"at {path}, a {type(value).__name__} comes back longer or shorter")
        return [(f"[{at}]", each, came_back[at]) for at, each in enumerate(value)]
    if isinstance(value, set | frozenset):
        if value != came_back or _kinds(value) != _kinds(came_back):
            raise Unstorable(f"at {path}, a {type(value).__name__} comes back as another")
        return []
    if dataclasses.is_dataclass(value) or isinstance(value, msgspec.Struct):
        return _attributes(value, came_back, path)
    return None


def _kinds(values: Iterable[Any]) -> list[str]:
    return sorted(dotted(type(each)) for each in values)


def _attributes(value: Any, came_back: Any, path: str) -> list[tuple[str, Any, Any]]:
    names = list(getattr(value, "__struct_fields__", ())) or [
        field.name for field in dataclasses.fields(value)
    ]
    # Attributes that are not fields are not encoded, and apply() may rely on them.
    if set(getattr(value, "__dict__", ())) - set(names):
        raise Unstorable(f"{path} has attributes that are not fields; declare them as fields")
    try:
        return [(f".{name}", getattr(value, name), getattr(came_back, name)) for name in names]
    except AttributeError:
        raise Unstorable(f"{path} lacks the value of a field") from None


def _same(value: Any, came_back: Any) -> bool:
    if isinstance(value, datetime):
        return bool(
            value.replace(tzinfo=None) == came_back.replace(tzinfo=None)
            and _is_fixed(value) == _is_fixed(came_back)
            and value.utcoffset() == came_back.utcoffset()
        )
    if isinstance(value, float):
        return repr(value) == repr(came_back)  # -0.0 is not 0.0, NaN is NaN
    if isinstance(value, Enum):
        return value is came_back
    try:
        # Decimals 1.0 and 1.00 are equal, and their texts differ.
        return bool(value == came_back) and str(value) == str(came_back)
    except Exception:  # an __eq__ of the project's may raise anything
        return False


def _is_fixed(value: datetime) -> bool:
    """Return whether a datetime's zone never changes its clocks (a naive one has none)."""
    zone = value.tzinfo
    return zone is None or isinstance(zone, timezone) or str(zone) in ("UTC", "Etc/UTC")


def _is_frozen(value: Any) -> bool:
    parameters = getattr(value, "__dataclass_params__", None)
    return isinstance(value, tuple | frozenset) or getattr(parameters, "frozen", False)


_HEAD: Final[msgspec.json.Decoder[Head]] = msgspec.json.Decoder(Head)
