"""
Histories, recomputed: the chain of each log from the bytes of its events, as of some positions.

A stored digest proves nothing: a person who can change an event can change its digest as well. It
is compared all the same, because it shows which event does not fit. Events come from a database,
log by log, or from exports, in the order of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple
from uuid import UUID

from eventlogs.conf import MAX_POSITION
from eventlogs.events.chain import DIGEST_SIZE, FIRST
from eventlogs.events.chain import digest as digest_of
from eventlogs.ids import LogId
from eventlogs.values import StoredEvent

MISSING: Final = "its digest is missing"
CHANGED: Final = "it does not fit its digest: one of the two was changed"

# Of an event: its log, index, position, the bytes that its digest is made of behind that of its
# predecessor, and its stored digest.
Part = tuple[Any, int, int, bytes | None, bytes | None]
Stored = tuple[StoredEvent, bytes | None]  # an event, and its stored digest


class Mark(NamedTuple):
    """A log as of a position: the number of its events, and the digest of the last one."""

    version: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Misfit:
    """The first event of a log that does not fit its predecessor, its place or its digest."""

    log_id: LogId
    index: int
    message: str


_nothing: Iterator[UUID] = iter(())


class Past:
    """One log: a mark for each position that was asked for, in their order."""

    __slots__ = (
        *("_from_jsonb", "_head", "_last_position", "_next", "_positions", "_version"),
        *("is_chained", "log_id", "marks", "misfit", "unread"),
    )

    def __init__(
        self, log_id: LogId, positions: Sequence[int], is_chained: bool, from_jsonb: bool
    ) -> None:
        """``from_jsonb`` says that texts are probably those of PostgreSQL's jsonb."""
        self.log_id = log_id
        self.is_chained = is_chained
        self.marks: list[Mark] = []
        self.misfit: Misfit | None = None
        self.unread = ""  # why the events of an archived log cannot be read
        self._positions = positions
        self._next = positions[0]  # the position of the next mark
        self._from_jsonb = from_jsonb
        self._version = 0
        self._head: bytes | None = None
        self._last_position = 0

    def add(self, event: StoredEvent, stored: bytes | None) -> None:
        """Go on with an event; those after the last position are left out."""
        position = event.position
        if position > self._next and not self._pass_by(position):
            return
        if event.index != self._version or position <= self._last_position:
            self._misplaced(event.index)
        self._last_position = position
        self._version += 1
        if not self.is_chained:
            return
        before = self._head
        try:
            head = digest_of(before, event, from_jsonb=self._from_jsonb)
            if head != stored:
                if self._from_jsonb:  # the text may be that of another database
                    head = digest_of(before, event)
                if head != stored:
                    self._misses(event.index, MISSING if stored is None else CHANGED)
            self._head = head
        except ValueError as error:
            self._misses(event.index, f"it has no digest: {error}")
            self._head = bytes(DIGEST_SIZE)

    def follow(self, index: int, position: int, body: bytes | None, stored: bytes | None) -> None:
        """Go on with the event of these bytes, as ``add`` does."""
        if position > self._next and not self._pass_by(position):
            return
        if index != self._version or position <= self._last_position:
            self._misplaced(index)
        self._last_position = position
        self._version += 1
        if not self.is_chained:
            return
        if body is None:
            self._head = bytes(DIGEST_SIZE)
            self._misses(index, "it has no digest: one of its types has a line feed")
            return
        self._head = head = sha256((self._head or FIRST) + body).digest()
        if head != stored:
            self._misses(index, MISSING if stored is None else CHANGED)

    def end(self) -> Past:
        """Return this log, with all its marks."""
        self._pass_by(MAX_POSITION + 1)
        return self

    def _pass_by(self, position: int) -> bool:
        """Mark the positions before this one; return whether there are more."""
        marks, positions = self.marks, self._positions
        mark = Mark(self._version, self._head or b"")
        while len(marks) < len(positions) and position > positions[len(marks)]:
            marks.append(mark)
        if len(marks) == len(positions):
            return False
        self._next = positions[len(marks)]
        return True

    def _misplaced(self, index: int) -> None:
        if index != self._version:
            self._misses(index, f"it stands where event {self._version} should be")
        else:
            self._misses(index, "its position is not behind its predecessor's")

    def _misses(self, index: int, message: str) -> None:
        if self.misfit is None:
            self.misfit = Misfit(self.log_id, index, message)


class _Unchained:
    """The logs without a chain, which come in the order of their UUIDs."""

    def __init__(self, logs: Iterator[UUID]) -> None:
        self._logs = logs
        self._next = next(logs, None)

    def has(self, log: UUID) -> bool:
        """Return whether it has a log; the next one asked for must be behind it."""
        while self._next is not None and self._next < log:
            self._next = next(self._logs, None)
        return self._next == log


def pasts(
    events: Iterable[Stored], positions: Sequence[int], *, unchained: Iterator[UUID] = _nothing
) -> Iterator[Past]:
    """
    Yield the logs of events that come log by log, in the order of UUIDs and indexes.

    ``unchained`` are the logs without a chain, in the same order.
    """
    past: Past | None = None
    log_id: LogId | None = None
    without = _Unchained(unchained)
    for event, stored in events:
        if past is None or event.log_id != log_id:
            if past is not None:
                yield past.end()
            log_id = event.log_id
            is_chained = not without.has(log_id.uuid) and stored is not None
            past = Past(log_id, positions, is_chained, False)
        past.add(event, stored)
    if past is not None:
        yield past.end()


def pasts_of_parts(
    parts: Iterable[Part], positions: Sequence[int], *, unchained: Iterator[UUID] = _nothing
) -> Iterator[Past]:
    """Yield the logs as ``pasts`` does; an event's log is the same object as its predecessor's."""
    past: Past | None = None
    last: LogId | None = None
    without = _Unchained(unchained)
    for log_id, index, position, body, stored in parts:
        if past is None or log_id is not last:
            if past is not None:
                yield past.end()
            last = log_id
            is_chained = not without.has(log_id.uuid) and stored is not None
            past = Past(log_id, positions, is_chained, False)
        past.follow(index, position, body, stored)
    if past is not None:
        yield past.end()


def pasts_of_export(
    events: Iterable[Stored],
    positions: Sequence[int],
    *,
    tell: Callable[[int], None],
) -> Iterator[Past]:
    """
    Yield the logs of events that come in the order of positions, sorted by UUID.

    It keeps about 500 bytes in memory for each log.
    """
    found: dict[LogId, Past] = {}
    count = 0
    for count, (event, stored) in enumerate(events, start=1):
        past = found.get(event.log_id)
        if past is None:
            past = found[event.log_id] = Past(event.log_id, positions, stored is not None, True)
        past.add(event, stored)
        if not count % 1_000:
            tell(1_000)
    tell(count % 1_000)
    for log_id in sorted(found, key=lambda each: each.uuid.bytes):
        yield found.pop(log_id).end()
