"""
Logs as JSON lines, for exports from one database and imports into another.

The first line is a header, ``{"format": "eventlogs", "version": 1, …}``; each event is a line,
in the order of positions, with the keys of ``EventPage.as_json``; the last line is a footer,
``{"end": true, "events": …}``, which shows that the file is complete. The first event of an
append carries its idempotency key's row as ``claim``: the append's number of events, fingerprint
and time. Data and metadata are the stored JSON. They are not decoded, so events without a class
are exported as well. Event 0 carries its log's created_at.

Fingerprints are HMACs with the project's SECRET_KEY, and are exported unchanged. The importing
project can verify them if it has the same key, also among SECRET_KEY_FALLBACKS.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
from django.utils import timezone

from eventlogs.conf import MAX_KEY_LENGTH, MAX_POSITION, MAX_VERSION
from eventlogs.events import validation
from eventlogs.events.codec import JSON
from eventlogs.events.registry import EVENT_TYPE
from eventlogs.exceptions import InvalidExport, InvalidLogId
from eventlogs.feed import scans
from eventlogs.ids import LogId
from eventlogs.operations import unique_values
from eventlogs.stores import BaseStore, ExportedClaim, ExportedEvent, Restored
from eventlogs.stores.unique_values import Taken
from eventlogs.values import StoredEvent

FORMAT: Final = "eventlogs"
VERSION: Final = 1

BATCH: Final = 1_000  # events of one transaction of an import
MAX_BATCH_CHARACTERS: Final = 8_000_000  # of their JSON; a batch with more ends early
MAX_LINE: Final = 2**29  # bytes; jsonb takes half of it

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


LINES: Final = msgspec.json.Decoder(Line)
HEADERS: Final = msgspec.json.Decoder(Header)
FOOTERS: Final = msgspec.json.Decoder(Footer)
FOOTER_START: Final = b'{"end"'


@dataclass
class Imported:
    """
    The counts of an import so far.

    ``taken`` are unique values of imported events that belong to other logs.
    """

    stored: int = 0
    present: int = 0
    taken: list[Taken] = field(default_factory=list)


def header(*, after: int) -> str:
    """Return the first line of an export of the positions after ``after``."""
    return _encode(Header(FORMAT, VERSION, timezone.now(), after))


def footer(*, events: int, until: int) -> str:
    """Return the last line of an export of ``events`` events, up to the position ``until``."""
    return _encode(Footer(True, events, until))


class Lines(NamedTuple):
    """Lines, an event each, and the last position that they cover."""

    lines: list[str]
    position: int


def export_pages(
    using: str,
    *,
    after: int = 0,
    until: int,
    log_types: Collection[str] = (),
    logs: Collection[LogId] = (),
) -> Iterator[Lines]:
    """
    Yield pages of lines, in the order of positions.

    ``until`` is a settled position of the feed. Memory stays constant.
    """
    if logs:
        kept = [log for log in logs if not log_types or log.log_type in log_types]
        stretches = scans.events_of_logs(using, kept, after=after, until=until)
    else:
        stretches = scans.events_by_position(using, after=after, until=until, log_types=log_types)
    return _pages(using, stretches)


def export_pages_of_a_moment(
    using: str, *, log_types: Collection[str] = (), logs: Collection[LogId] = ()
) -> Iterator[Lines]:
    """
    Yield pages of lines, in the order of positions, all as of one moment.

    For databases without a feed: one transaction stays open, until the last page is read. The
    last position says nothing about later commits; do not resume an export from it.
    """
    with scans.a_moment(using):
        if logs:
            kept = [log for log in logs if not log_types or log.log_type in log_types]
            stretches = scans.events_of_logs(using, kept, until=MAX_POSITION)
        else:
            stretches = scans.events_of_a_moment(using, log_types=log_types)
        yield from _pages(using, stretches)


def _pages(using: str, stretches: Iterator[scans.Stretch]) -> Iterator[Lines]:
    for events, position in stretches:
        yield Lines([_line(each) for each in scans.exported(using, events)], position)


def _line(exported: ExportedEvent) -> str:
    event, claim, log_created_at = exported
    line = event.as_json()
    if event.idempotency_key is None:
        del line["idempotency_key"]
    if claim is not None:
        line["claim"] = Claim(claim.count, claim.fingerprint.hex(), claim.created_at)
    if log_created_at is not None:
        line["log_created_at"] = log_created_at
    return _encode(line)


def _encode(value: Any) -> str:
    return ENCODER.encode(value).decode() + "\n"


def last_position(lines: Iterable[bytes]) -> tuple[int, int, bool, int]:
    """
    Return the point from which to resume an interrupted export.

    That is the number of bytes of its complete lines, their number of events, whether the file
    is complete, and the position of its last event. Raise InvalidExport if it is no export.
    """
    length = events = position = 0
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        if number == 1:
            position = read_header(line).after
        elif line.startswith(FOOTER_START):
            return length, events, True, position
        else:
            position = _parse(LINES, line, number).position
            events += 1
        length += len(line)
    return length, events, False, position


def read_header(line: bytes) -> Header:
    """
    Return the header in the first line of an export.

    Raise InvalidExport if it is no header, or of another version of the format.
    """
    found: Header = _parse(HEADERS, line, 1, "this is not an export of eventlogs")
    if found.format != FORMAT:
        raise InvalidExport(1, "this is not an export of eventlogs")
    if found.version != VERSION:
        raise InvalidExport(
            1, f"the format's version is {found.version}, and this release reads {VERSION}"
        )
    return found


def import_lines(
    store: BaseStore,
    lines: Iterable[bytes],
    *,
    imported: Imported | None = None,
) -> Imported:
    """
    Restore the events of an export that the database lacks, and return the counts.

    A batch of about 1,000 events is a transaction; a batch ends where an append ends, so that
    no reader sees half of one. To resume an interrupted import, import the file again from its
    start: stored events are compared and skipped. ``imported`` is up to date after each batch.

    The unique values of imported events are claimed. One that belongs to another log at the end
    stays there, and is in ``imported.taken``: history is restored as it was. Append another value
    to one of the two logs, then call ``eventlogs.operations.unique_values.claim()``.

    Raise InvalidExport for a line that cannot be read and for a file that ends too early, and
    HistoryDiffers if the database has other events; the batches before it are stored.
    """
    imported = imported if imported is not None else Imported()
    for batch in batches(lines):
        done: Restored = store.restore(batch)
        imported.stored += done.stored
        imported.present += done.present
        imported.taken += done.taken
    if imported.taken and store.using is not None:
        # A later event of the import may have moved a value from one log to another.
        logs = sorted({each.log_id for each in imported.taken})
        imported.taken = unique_values.settle_all(store.using, logs)
    return imported


def batches(lines: Iterable[bytes]) -> Iterator[list[ExportedEvent]]:
    """Yield the events of an export in batches."""
    batch: list[ExportedEvent] = []
    characters = 0
    for exported in read_events(lines):
        event = exported.event
        full = len(batch) >= BATCH or characters >= MAX_BATCH_CHARACTERS
        if full and (
            not _goes_on(batch[-1].event, event) or characters >= 8 * MAX_BATCH_CHARACTERS
        ):
            yield batch
            batch, characters = [], 0
        batch.append(exported)
        characters += len(event.data) + len(event.metadata)
    if batch:
        yield batch


def _goes_on(last: StoredEvent, event: StoredEvent) -> bool:
    """Return whether two events may be of one append, whose events all have one time."""
    return (
        event.log_id == last.log_id
        and event.recorded_at == last.recorded_at
        and event.idempotency_key == last.idempotency_key
    )


def read_events(lines: Iterable[bytes]) -> Iterator[ExportedEvent]:
    """
    Yield the events of an export.

    Raise InvalidExport at the first line that cannot be read, and at the end if the footer is
    missing.
    """
    number = events = 0
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
            ended = True
        else:
            yield _event(_parse(LINES, line, number), number)
            events += 1
    if not number:
        raise InvalidExport(1, "the file is empty")
    if not ended:
        raise InvalidExport(number, "the file ends too early: its last line is missing")


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
    return ExportedEvent(event, _claim(line, number), line.log_created_at)


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
        return _clean(JSON.decode(data))
    except (msgspec.MsgspecError, RecursionError):
        return False


def _clean(value: Any) -> bool:
    try:
        validation.inspect(value)
    except validation.Finding:
        return False
    return True
