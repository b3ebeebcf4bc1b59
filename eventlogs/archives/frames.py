"""
The form of an archive: the JSON lines of an export, compressed in frames that are read alone.

A file is a sequence of gzip members (RFC 1952, section 2.2), so ``zcat`` and every other reader of
gzip gives the whole text: the header, the events of one log after the other, each in the order of
indexes, and the footer. A member, here called a *frame*, has events of about 256 KB of text. Short
logs share a frame; a long log has as many as it needs. To read a page of a log, only its frames are
read.

Beside the digest of each log, the table of archived logs has the digest before each of its frames.
So every frame that is read is proved by the database: the digests of its events are computed anew,
from the one before it to the one after it. A file that was changed is never believed.
"""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import IO, Any, Final, NamedTuple

from eventlogs.events import chain
from eventlogs.exceptions import InvalidExport
from eventlogs.ids import LogId
from eventlogs.stores import export_lines
from eventlogs.stores.restore import ExportedEvent
from eventlogs.values import StoredEvent

FRAME: Final = 262_144  # characters of lines, after which a frame ends
LEVEL: Final = 6  # of compression


class Frame(NamedTuple):
    """A frame with events of a log, as the row of the log has it: a list of these values."""

    first: int  # the index of the first event that it has of the log
    offset: int  # where it begins in the file, in bytes
    length: int  # bytes
    before: str  # the digest of the event before the first one, in hexadecimal


def frames_of(values: Iterable[Sequence[Any]]) -> list[Frame]:
    """Return the frames that the row of a log has."""
    return [Frame(*each) for each in values]


@dataclass(slots=True)
class Written:
    """A log that was written to an archive."""

    log_id: LogId
    version: int = 0
    digest: bytes = chain.FIRST
    last_position: int = 0
    frames: list[Frame] = field(default_factory=list)


class _Part(NamedTuple):
    """The part of a log that is in the frame that is being filled."""

    log: Written
    first: int
    before: str


class Damaged(Exception):
    """What was read is not what was written. The text says what is wrong."""


class Writer:
    """Writes the logs of one archive, one after the other."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._file_digest = sha256()
        self._size = 0
        self._lines: list[str] = []
        self._characters = 0
        self._open: list[_Part] = []  # of the frame that is being filled
        self.events = 0
        # Erased logs are in no archive.
        self._member(export_lines.header(after=0, version=export_lines.WITHOUT_TOMBSTONES))

    def add(self, log_id: LogId, events: Iterable[ExportedEvent]) -> Written:
        """Write the events of a log, in the order of indexes from 0."""
        log = Written(log_id)
        for exported in events:
            event = exported.event
            if self._characters >= FRAME:
                self._end_frame()
            if not self._open or self._open[-1].log is not log:
                self._open.append(_Part(log, event.index, log.digest.hex()))
            line = export_lines.event_line(exported)
            self._lines.append(line)
            self._characters += len(line)
            log.digest = chain.digest(log.digest, event)
            log.version += 1
            log.last_position = event.position
            self.events += 1
        return log

    def end(self) -> tuple[int, bytes]:
        """Write the footer; return the size of the file and its SHA-256."""
        self._end_frame()
        self._member(export_lines.footer(events=self.events, until=0))
        return self._size, self._file_digest.digest()

    def _end_frame(self) -> None:
        if not self._lines:
            return
        offset = self._size
        length = self._member("".join(self._lines))
        for part in self._open:
            part.log.frames.append(Frame(part.first, offset, length, part.before))
        self._lines, self._open, self._characters = [], [], 0

    def _member(self, text: str) -> int:
        data = gzip.compress(text.encode(), LEVEL, mtime=0)
        self._out.write(data)
        self._file_digest.update(data)
        self._size += len(data)
        return len(data)


class _Kept(threading.local):
    """The frame that this thread has read last, as it is in the file, and its lines."""

    data: bytes = b""
    lines: dict[bytes, list[bytes]] | None = None


_kept: Final = _Kept()


class Reader:
    """
    Reads logs from one file.

    Short logs share a frame, and are often read one after the other, each by a Reader of its own.
    So the last frame is kept, and is not decompressed again if the file has the same bytes.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at: tuple[int, int] | None = None
        self._frame: dict[bytes, list[bytes]] = {}

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _bytes(self, offset: int, length: int) -> bytes:
        try:
            self._stream.seek(offset)
            return self._stream.read(length)
        except OSError:
            raise
        except Exception as error:  # each storage has its own, and some read only now
            raise OSError("the storage cannot read it") from error

    def frames(
        self,
        log_id: LogId,
        frames: Sequence[Sequence[Any]],
        *,
        version: int,
        digest: bytes,
        start: int = 0,
        reverse: bool = False,
    ) -> Iterator[list[ExportedEvent]]:
        """
        Yield the proved events of a log, a frame at a time, from the one with index ``start`` on.

        With ``reverse`` the frames come in the opposite order, from the one with ``start``; the
        events of each are in the order of indexes. ``version`` and ``digest`` are those of the
        whole log. Raise Damaged where the file has other events.
        """
        own = frames_of(frames)
        if not own or own[0].first:
            raise Damaged("its row does not say where its events begin")
        numbers = range(len(own))
        wanted = [
            number
            for number in numbers
            if (
                own[number].first <= start
                if reverse
                else number + 1 == len(own) or own[number + 1].first > start
            )
        ]
        for number in reversed(wanted) if reverse else wanted:
            is_last = number + 1 == len(own)
            after = digest if is_last else bytes.fromhex(own[number + 1].before)
            end = version if is_last else own[number + 1].first
            yield self._proved(log_id, own[number], end, after)

    def _proved(self, log_id: LogId, frame: Frame, end: int, after: bytes) -> list[ExportedEvent]:
        lines = self._read(frame.offset, frame.length).get(str(log_id).encode(), [])
        head = bytes.fromhex(frame.before)
        found = []
        for number, line in enumerate(lines):
            try:
                exported = export_lines.read_event(line, number + 1)
                head = chain.digest(head, exported.event)
            except (InvalidExport, ValueError):
                raise Damaged("it has a line that is no event") from None
            if exported.event.index != frame.first + number:
                raise Damaged("the order of its events was changed")
            if exported.digest not in (None, head):
                raise Damaged("an event does not fit its digest")
            found.append(exported)
        if frame.first + len(found) != end or head != after:
            raise Damaged("its events are not those that were archived")
        return found

    def _read(self, offset: int, length: int) -> dict[bytes, list[bytes]]:
        """Return the lines of a frame by the log that they are of."""
        if self._at != (offset, length):
            data = self._bytes(offset, length)
            if _kept.lines is None or _kept.data != data:
                _kept.lines = None
                _kept.data, _kept.lines = data, _lines_in(data)
            self._frame = _kept.lines
            self._at = offset, length
        return self._frame


def _lines_in(data: bytes) -> dict[bytes, list[bytes]]:
    try:
        text = gzip.decompress(data)
    except (EOFError, OSError, zlib.error):
        raise Damaged("a part of it cannot be decompressed") from None
    found: dict[bytes, list[bytes]] = {}
    for line in text.split(b"\n"):
        found.setdefault(export_lines.log_id_of(line), []).append(line)
    return found


def events_of(frames: Iterable[list[ExportedEvent]]) -> Iterator[StoredEvent]:
    """Yield the events of frames."""
    for frame in frames:
        for exported in frame:
            yield exported.event


def file_digest(stream: IO[bytes]) -> tuple[int, bytes]:
    """Return the size of a file, read from here to its end, and its SHA-256."""
    size, found = 0, sha256()
    while some := stream.read(1_048_576):
        size += len(some)
        found.update(some)
    return size, found.digest()
