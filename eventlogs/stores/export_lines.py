"""
The JSON lines of exports and archives: how an event is written to a line, and read from it.

The first line is a header, ``{"format": "eventlogs", "version": 2, …}``; each event is a line,
with the keys of ``EventPage.as_json``; the last line is a footer, ``{"end": true, "events": …}``,
which shows that the file is complete. Each log that was erased in the exported database has a line
of its own, its tombstone, ``{"erased": "<log id>", …}``. Exports write them behind all events:
so a log that is erased while the export runs is in the file as a whole, or has a tombstone there.
Files of version 1 have no tombstones, and are read as well. A release that knows version 1 alone
refuses a file of version 2 at its first line.

The first event of an append carries its idempotency key's
row as ``claim``: the append's number of events, fingerprint and time. An event of a chained log has
its ``digest``; see ``events/chain.py``. Data and metadata are the stored JSON. They are not
decoded, so events without a class are exported as well. Event 0 carries its log's created_at.

Fingerprints are HMACs with the project's SECRET_KEY, and are exported unchanged. The importing
project can verify them if it has the same key, also among SECRET_KEY_FALLBACKS.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from django.utils import timezone

from eventlogs.conf import MAX_KEY_LENGTH, MAX_VERSION
from eventlogs.events import validation
from eventlogs.events.chain import DIGEST_SIZE
from eventlogs.events.codec import JSON
from eventlogs.events.personal import NAME
from eventlogs.events.registry import EVENT_TYPE
from eventlogs.exceptions import InvalidExport, InvalidLogId
from eventlogs.ids import LogId
from eventlogs.stores.restore import ExportedClaim, ExportedEvent
from eventlogs.stores.tombstones import Tombstone
from eventlogs.values import StoredEvent

FORMAT: Final = "eventlogs"
VERSION: Final = 2
WITHOUT_TOMBSTONES: Final = 1  # the version of archives, and of exports of older releases
VERSIONS: Final = (WITHOUT_TOMBSTONES, VERSION)  # that are read

MAX_LINE: Final = 2**29  # bytes; jsonb takes half of it
MAX_ERASED_BY: Final = 255  # characters, as the column of the table takes

LAST_LINE: Final = 1_000  # bytes at the end of an export in which its last line is

# Values that jsonb refuses or would change: NUL, lone surrogates, numbers too large for a float.
SUSPICIOUS: Final = re.compile(r"\\u0000|\\u[dD][89a-fA-F]|[eE]\+?[0-9]{3}")

ENCODER: Final = msgspec.json.Encoder()


class Claim(msgspec.Struct):
    """The row of an idempotency key."""

    count: int
    fingerprint: str  # hexadecimal
    created_at: datetime


class Line(msgspec.Struct):
    """An event as one line has it."""

    log_id: str
    index: int
    position: int
    type: str
    schema_version: int
    data: msgspec.Raw
    metadata: msgspec.Raw
    recorded_at: datetime
    idempotency_key: str | None = None
    claim: Claim | None = None
    log_created_at: datetime | None = None
    digest: str | None = None  # hexadecimal


class TombstoneLine(msgspec.Struct):
    """An erased log as one line has it."""

    erased: str  # the log's id
    events: int  # their number
    digest: str  # hexadecimal
    erased_by: str
    reason: str
    erased_at: datetime
    log_created_at: datetime | None = None


class Header(msgspec.Struct):
    """The first line."""

    format: str
    version: int
    exported_at: datetime | None = None
    after: int = 0


class Footer(msgspec.Struct):
    """The last line."""

    end: bool
    events: int
    until: int = 0  # the settled position that the export goes up to
    erased: int = 0  # tombstones


LINES: Final = msgspec.json.Decoder(Line)
HEADERS: Final = msgspec.json.Decoder(Header)
FOOTERS: Final = msgspec.json.Decoder(Footer)
TOMBSTONES: Final = msgspec.json.Decoder(TombstoneLine)
FOOTER_START: Final = b'{"end"'
TOMBSTONE_START: Final = b'{"erased"'
START: Final = b'{"log_id":"'  # of an event's line


def header(*, after: int, version: int = VERSION) -> str:
    """Return the first line of an export of the positions after ``after``."""
    return _encode(Header(FORMAT, version, timezone.now(), after))


def footer(*, events: int, until: int, erased: int = 0) -> str:
    """
    Return the last line of an export of ``events`` events, up to the position ``until``.

    ``erased`` is the number of tombstones in it.
    """
    line = {"end": True, "events": events, "until": until}
    return _encode({**line, "erased": erased} if erased else line)


def event_line(exported: ExportedEvent) -> str:
    event, claim, log_created_at, digest = exported
    line = event.as_json()
    if event.idempotency_key is None:
        del line["idempotency_key"]
    if claim is not None:
        line["claim"] = Claim(claim.count, claim.fingerprint.hex(), claim.created_at)
    if log_created_at is not None:
        line["log_created_at"] = log_created_at
    if digest is not None:
        line["digest"] = digest.hex()
    return _encode(line)


def tombstone_line(tombstone: Tombstone) -> str:
    """Return the line of an erased log."""
    log_id, count, digest, erased_by, reason, erased_at, created_at = tombstone
    line = TombstoneLine(str(log_id), count, digest.hex(), erased_by, reason, erased_at, created_at)
    return _encode(line)


def _encode(value: Any) -> str:
    return ENCODER.encode(value).decode() + "\n"


class Interrupted(NamedTuple):
    """Where an interrupted export has to be resumed."""

    length: int  # bytes of its complete lines, without tombstones: those are written anew
    events: int
    is_complete: bool  # it was not interrupted
    position: int  # of its last event
    last: StoredEvent | None = None


def last_position(lines: Iterable[bytes]) -> Interrupted:
    """Return where to resume an export; raise InvalidExport if it is none."""
    length = events = position = number = 0
    last = b""
    is_complete = False
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        if number == 1:
            header = read_header(line)
            if header.version != VERSION:
                raise InvalidExport(1, "an older release has begun it, and it cannot be resumed")
            position = header.after
        elif line.startswith(FOOTER_START):
            is_complete = True
            break
        elif line.startswith(TOMBSTONE_START):
            continue
        else:
            position, last = _parse(LINES, line, number).position, line
            events += 1
        length += len(line)
    event = _event(_parse(LINES, last, number), number).event if last else None
    return Interrupted(length, events, is_complete, position, event)


def read_header(line: bytes) -> Header:
    """
    Return the header in the first line of an export.

    Raise InvalidExport if it is no header, or of another version of the format.
    """
    found: Header = _parse(HEADERS, line, 1, "this is not an export of eventlogs")
    if found.format != FORMAT:
        raise InvalidExport(1, "this is not an export of eventlogs")
    if found.version not in VERSIONS:
        reads = " and ".join(map(str, VERSIONS))
        raise InvalidExport(
            1, f"the format's version is {found.version}, and this release reads {reads}"
        )
    return found


class Ends(NamedTuple):
    """What the first and the last line of an export say."""

    after: int
    until: int
    erased: int  # tombstones


def ends_of(path: Path) -> Ends:
    """
    Return where the export in a file begins and ends, without reading it.

    Raise InvalidExport if it is none, or not complete.
    """
    with path.open("rb") as stream:
        header = read_header(stream.readline())
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - LAST_LINE))
        *_, last = stream.readlines()
    footer = read_footer(last)
    return Ends(header.after, footer.until, footer.erased)


def read_footer(line: bytes) -> Footer:
    """Return the footer in the last line of an export; raise InvalidExport if it is none."""
    footer: Footer = _parse(FOOTERS, line, 1, "the file ends too early: its last line is missing")
    return footer


def read_events(lines: Iterable[bytes]) -> Iterator[ExportedEvent]:
    """
    Yield the events of an export.

    Raise InvalidExport at the first line that cannot be read, and at the end if the footer is
    missing.
    """
    for each in read_lines(lines):
        if isinstance(each, ExportedEvent):
            yield each


def read_tombstones(lines: Iterable[bytes]) -> Iterator[Tombstone]:
    """
    Yield the tombstones of an export, and look at no other line: reading the events shows more.

    Raise InvalidExport for a file that is no export, and a tombstone that cannot be read.
    """
    for _, tombstone in numbered_tombstones(lines):
        yield tombstone


def numbered_tombstones(lines: Iterable[bytes]) -> Iterator[tuple[int, Tombstone]]:
    """Yield the tombstones of an export with the numbers of their lines."""
    for number, line in enumerate(lines, start=1):
        if number == 1:
            read_header(line)
        elif line.startswith(TOMBSTONE_START):
            yield number, read_tombstone(line, number)


def read_lines(lines: Iterable[bytes]) -> Iterator[ExportedEvent | Tombstone]:
    """Yield the events and tombstones of an export, as they stand; raise as ``read_events``."""
    number = events = erased = 0
    ended = False
    for number, line in enumerate(lines, start=1):
        if number == 1:
            read_header(line)
        elif ended:
            raise InvalidExport(number, "there are lines after the end of the export")
        elif line.startswith(FOOTER_START):
            found: Footer = _parse(FOOTERS, line, number)
            if found.events != events:
                raise InvalidExport(number, f"there are {events} events, not {found.events}")
            if found.erased != erased:
                raise InvalidExport(number, f"there are {erased} tombstones, not {found.erased}")
            ended = True
        elif line.startswith(TOMBSTONE_START):
            yield read_tombstone(line, number)
            erased += 1
        else:
            yield read_event(line, number)
            events += 1
    if not number:
        raise InvalidExport(1, "the file is empty")
    if not ended:
        raise InvalidExport(number, "the file ends too early: its last line is missing")


def read_event(line: bytes, number: int) -> ExportedEvent:
    """Return the event of a line. Raise InvalidExport, with ``number``, for a line that is none."""
    return _event(_parse(LINES, line, number), number)


def read_tombstone(line: bytes, number: int) -> Tombstone:
    """Return the tombstone of a line; raise InvalidExport, with ``number``, if it is none."""
    found: TombstoneLine = _parse(TOMBSTONES, line, number, "it is not the tombstone of a log")
    try:
        log_id = LogId.parse(found.erased)
    except InvalidLogId:
        raise InvalidExport(number, "its log is not a log id") from None
    try:
        digest = bytes.fromhex(found.digest)
    except ValueError:
        raise InvalidExport(number, "its digest is invalid") from None
    for wrong, reason in (
        (not 0 <= found.events <= MAX_VERSION, "its number of events is out of bounds"),
        (len(digest) > DIGEST_SIZE, "its digest is invalid"),
        (
            len(found.erased_by) > MAX_ERASED_BY or not _clean(found.erased_by),
            "its erased_by is invalid",
        ),
        (not _clean(found.reason), "its reason is invalid"),
        (timezone.is_naive(found.erased_at), "its erased_at has no time zone"),
        (
            found.log_created_at is not None and timezone.is_naive(found.log_created_at),
            "its log_created_at has no time zone",
        ),
    ):
        if wrong:
            raise InvalidExport(number, reason)
    return Tombstone(
        log_id,
        found.events,
        digest,
        found.erased_by,
        found.reason,
        found.erased_at,
        found.log_created_at,
    )


def log_id_of(line: bytes) -> bytes:
    """Return the log id of an event's line, and b"" for the header, the footer, and other lines."""
    return line[len(START) : line.find(b'"', len(START))] if line.startswith(START) else b""


def _parse(decoder: Any, line: bytes, number: int, reason: str = "") -> Any:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        # msgspec's messages may quote what is in the line.
        raise InvalidExport(number, reason or "it is not an event of an export") from None


def _event(line: Line, number: int) -> ExportedEvent:
    try:
        log_id = LogId.parse(line.log_id)
    except InvalidLogId:
        raise InvalidExport(number, "its log_id is not a log id") from None
    try:
        data, metadata = bytes(line.data).decode(), bytes(line.metadata).decode()
    except UnicodeDecodeError:
        raise InvalidExport(number, "it is not UTF-8") from None
    for wrong, reason in (
        (not 0 <= line.index < MAX_VERSION, "its index is out of bounds"),
        (not EVENT_TYPE.match(line.type), "its type is not that of an event"),
        (not 1 <= line.schema_version < 2**31, "its schema_version is out of bounds"),
        (timezone.is_naive(line.recorded_at), "its recorded_at has no time zone"),
        (
            line.log_created_at is not None and timezone.is_naive(line.log_created_at),
            "its log_created_at has no time zone",
        ),
        (not _storable(data) or not _storable(metadata), "it holds a value that cannot be stored"),
        (not metadata.startswith("{"), "its metadata is not an object"),
    ):
        if wrong:
            raise InvalidExport(number, reason)
    key = line.idempotency_key
    if key is not None and not (1 <= len(key) <= MAX_KEY_LENGTH and _clean(key)):
        raise InvalidExport(number, "its idempotency_key is invalid")
    event = StoredEvent(
        log_id,
        line.index,
        line.position,
        line.type,
        line.schema_version,
        data,
        metadata,
        key,
        line.recorded_at,
    )
    return ExportedEvent(event, _claim(line, number), line.log_created_at, _digest(line, number))


def _digest(line: Line, number: int) -> bytes | None:
    if line.digest is None:
        return None
    try:
        digest = bytes.fromhex(line.digest)
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_SIZE:
        raise InvalidExport(number, "its digest is invalid")
    return digest


def _claim(line: Line, number: int) -> ExportedClaim | None:
    if line.claim is None:
        return None
    try:
        fingerprint = bytes.fromhex(line.claim.fingerprint)
    except ValueError:
        fingerprint = b""
    if (
        line.idempotency_key is None
        or not fingerprint
        or not 1 <= line.claim.count < 2**31
        or timezone.is_naive(line.claim.created_at)
    ):
        raise InvalidExport(number, "its claim is invalid")
    return ExportedClaim(line.claim.count, fingerprint, line.claim.created_at)


def _storable(data: str) -> bool:
    if not SUSPICIOUS.search(data):
        return True
    try:
        return _clean(_unsealed(JSON.decode(data)))
    except (msgspec.MsgspecError, RecursionError):
        return False


def _unsealed(value: Any) -> Any:
    """Return a JSON value with another name for the key of encrypted values: it is reserved."""
    if isinstance(value, dict):
        return {"" if name == NAME else name: _unsealed(each) for name, each in value.items()}
    return [_unsealed(each) for each in value] if isinstance(value, list) else value


def _clean(value: Any) -> bool:
    try:
        validation.inspect(value)
    except validation.Finding:
        return False
    return True
