"""
Seals as text: a line of JSON each, whose form docs/proof.md describes for other programs.

What is signed are the bytes of a seal without its signature: ``eventlogs seal`` and a line feed,
then its JSON in ASCII, with the members in the order of their names and without white space.

A file of seals has one a line, the oldest first. Each names the SHA-256 of the signed bytes of the
one before it, so that a seal that was removed from the middle is missed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from eventlogs.exceptions import InvalidSeal
from eventlogs.utils.times import utc_text

FORMAT: Final = "eventlogs-seal"
VERSION: Final = 1
SIGNED: Final = b"eventlogs seal\n"  # the first bytes of what is signed
LONGEST: Final = 10_000  # bytes of a line; a seal has about 600


class Seal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A signed statement about all events of a database up to a position.

    ``root`` is the root of a Merkle tree whose leaves are the chained logs, ``logs`` of them, which
    had ``events`` events. ``unchained`` logs had no chain, so nothing is said about them.
    ``erased`` of the leaves are of logs that had been erased. ``time`` is that of the database's
    clock. Digests are hexadecimal, and the signature is base64.
    """

    format: str = FORMAT
    version: int = VERSION
    position: int
    root: str
    logs: int
    events: int
    unchained: int
    erased: int
    time: str
    previous: str | None  # the digest of the seal before it
    key: str  # the id of the key that signed it
    signature: str = ""

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""
        members = self.as_json()
        del members["signature"]
        text = json.dumps(members, sort_keys=True, separators=(",", ":"))
        return SIGNED + text.encode("ascii")

    @property
    def digest(self) -> str:
        """The SHA-256 of the signed bytes, by which the next seal names this one."""
        return sha256(self.signed).hexdigest()

    @property
    def moment(self) -> datetime:
        """The time as a datetime."""
        return datetime.fromisoformat(self.time)

    @property
    def line(self) -> str:
        """The seal as a line of a file."""
        return json.dumps(self.as_json()) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return the members as a dict."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


_SEALS: Final = msgspec.json.Decoder(Seal)


class Signable(Protocol):
    """A document that is signed: a seal, or the manifest of an archive."""

    @property
    def key(self) -> str:
        """The id of the key that signed it."""

    @property
    def signature(self) -> str:
        """The signature, in base64."""

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""


S = TypeVar("S", bound=Signable)


def replace(document: S, **members: Any) -> S:
    """Return a document with other members."""
    changed: S = msgspec.structs.replace(cast("Any", document), **members)
    return changed


def time_of(moment: datetime) -> str:
    """Return a moment as seals have it."""
    return utc_text(moment.astimezone(UTC), timespec="microseconds")


def seal_of(line: bytes, number: int = 1) -> Seal:
    """Return the seal of a line; raise InvalidSeal where it is none that this release can read."""
    try:
        seal = _SEALS.decode(line)
        bytes.fromhex(seal.root)
        is_aware = seal.moment.tzinfo is not None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # msgspec's messages may quote what is in the line.
        raise InvalidSeal(number, "it is not a seal of eventlogs") from None
    if seal.format != FORMAT or not is_aware or len(seal.root) != 64:
        raise InvalidSeal(number, "it is not a seal of eventlogs")
    if seal.version != VERSION:
        raise InvalidSeal(number, f"its version is {seal.version}, and this release reads 1")
    return seal


def seals_in(lines: Iterable[bytes]) -> Iterator[Seal]:
    """Yield the seals of a file; raise InvalidSeal for a line that is none."""
    number = 0
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n") and line.strip():
            line += b"\n"  # written by hand, or by another program
        yield seal_of(line, number)
    if not number:
        raise InvalidSeal(1, "the file is empty")
