"""
Tokens: positions of the feed that prove the history they are of.

A position says only how far a reader came. After a restore or a failover that lost events, the
database gives the same positions to other events, and a reader that continues after its position
never sees those. A token also names up to three events that the reader has passed, the last one
among them, by their positions and digests. The database must have each of them still, unless the
events of its log were removed on purpose. ``Feed.read`` looks them up by primary key.

A digest stands over what no event ever loses: its position, log, index and recorded_at. The payload
is left out: people may be forgotten, and fields redacted. So is the digest of a chain, because logs
may be chained later. That recorded_at is the database's clock, to the microsecond, tells two
histories apart that give a log's next index the same position.

A token is not signed. A reader who can forge one could pass any position as well.

The text is base64 (RFC 4648, section 5, without padding) of::

    format               1 byte, 1
    position             8 bytes, as are all numbers: big-endian, signed
    events               40 bytes each, the highest position first: position, the UUID of the log,
                         and the first 16 bytes of the digest
    checksum             4 bytes: CRC-32 of the bytes before it, against mistakes of copying

The digest is the SHA-256 of position, UUID, index and microseconds since 1970-01-01 00:00 UTC.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import crc32
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple, Self
from uuid import UUID

from django.utils import timezone

from eventlogs.values import EventRecord, StoredEvent

FORMAT: Final = 1
MAX_WITNESSES: Final = 3
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
DIGEST_SIZE: Final = 16  # bytes

_head: Final = Struct("!Bq")
_witness: Final = Struct(f"!q16s{DIGEST_SIZE}s")
_checksum: Final = Struct("!I")
_digested: Final = Struct("!q16sqq")


class Place(NamedTuple):
    """What no event ever loses; a source returns it of events that it looks up."""

    position: int
    log: UUID
    at: int  # its index in its log
    recorded_at: datetime

    @classmethod
    def of(cls, event: StoredEvent | EventRecord) -> Place:
        """Return the place of an event."""
        return cls(event.position, event.log_id.uuid, event.index, event.recorded_at)

    def digest(self) -> bytes:
        """Return the digest of the event."""
        recorded_at = self.recorded_at
        if timezone.is_naive(recorded_at):  # where USE_TZ is off, Django reads it in TIME_ZONE
            recorded_at = timezone.make_aware(recorded_at, timezone.get_default_timezone())
        since = (recorded_at - EPOCH) // MICROSECOND
        packed = _digested.pack(self.position, self.log.bytes, self.at, since)
        return sha256(packed).digest()[:DIGEST_SIZE]


class Witness(NamedTuple):
    """An event that a token names."""

    position: int
    log: UUID
    digest: bytes

    @classmethod
    def of(cls, place: Place) -> Self:
        """Return the witness that an event at a place is."""
        return cls(place.position, place.log, place.digest())


class Token(NamedTuple):
    """A position to read after, and the events that show whether it is one of this history."""

    position: int
    witnesses: tuple[Witness, ...] = ()

    def __str__(self) -> str:
        packed = b"".join(
            _witness.pack(each.position, each.log.bytes, each.digest) for each in self.witnesses
        )
        content = _head.pack(FORMAT, self.position) + packed
        text = urlsafe_b64encode(content + _checksum.pack(crc32(content)))
        return text.rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read the text of a token; raise ValueError for any other text."""
        try:
            packed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            content, checksum = packed[: -_checksum.size], packed[-_checksum.size :]
            number, position = _head.unpack_from(content)
            if _checksum.unpack(checksum) != (crc32(content),) or number != FORMAT:
                raise ValueError
            found = [
                Witness(at, UUID(bytes=log), digest)
                for at, log, digest in _witness.iter_unpack(content[_head.size :])
            ]
        except (ValueError, StructError):
            raise ValueError(
                "after is not a checkpoint of a page. Pass a position, or page.checkpoint as it "
                "was returned."
            ) from None
        return cls(position, tuple(found))


def checkpoint_of(event: StoredEvent | EventRecord) -> str:
    """Return the text of a token that names one event, at its position."""
    place = Place.of(event)
    return str(Token(place.position, (Witness.of(place),)))


def witnesses_of(places: Iterable[Place], earlier: Iterable[Witness]) -> tuple[Witness, ...]:
    """
    Return the witnesses of a token: of ``places``, the last ones first, and of an earlier token.

    They are of several logs, if possible: the events of a log are removed together.
    """
    found: dict[UUID, Witness] = {}
    for place in places:
        if place.log not in found:
            found[place.log] = Witness.of(place)
            if len(found) == MAX_WITNESSES:
                break
    for witness in earlier:
        known = found.get(witness.log)
        if known is None or known.position < witness.position:
            found[witness.log] = witness
    # The highest stay, so that the one at the token's position does.
    in_order = sorted(found.values(), reverse=True)
    return tuple(in_order[:MAX_WITNESSES])
