"""
Seals as events of a log of their own, for reactors that hand them on, and for the admin.

Each database has one such log. It is chained like others, so the next seal stands over this one.
Django imports this module in projects that have keys: others have no such events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from eventlogs.aggregates import Aggregate
from eventlogs.context import Layer, entered
from eventlogs.events import event
from eventlogs.logs import LogManager
from eventlogs.seals.documents import Seal
from eventlogs.seals.lookups import LOG_TYPE, SEALS
from eventlogs.values import EventRecord, LogState


@event("eventlogs_seal.made")
@dataclass(frozen=True, slots=True)
class SealMade:
    """A seal; ``line`` is the text to send away, as in a file of seals."""

    format: str
    version: int
    position: int
    root: str
    logs: int
    events: int
    unchained: int
    erased: int
    time: str
    previous: str | None
    key: str
    signature: str

    @property
    def seal(self) -> Seal:
        """The seal."""
        return msgspec.convert(self, Seal, from_attributes=True)

    @property
    def line(self) -> str:
        """The seal as a line of a file of seals."""
        return self.seal.line


@dataclass
class Seals(Aggregate, log_type=LOG_TYPE, events=[SealMade]):
    """The seals of a database: how many there are, and the last of them."""

    count: int = 0
    last: SealMade | None = None

    def apply(self, record: EventRecord) -> None:
        """Count a seal."""
        self.count += 1
        self.last = record.event


class SealLog:
    """The log of a database's seals."""

    def __init__(self, using: str) -> None:
        self._logs = LogManager(Seals, using=using)

    def last(self) -> tuple[Seal | None, int]:
        """Return the last seal, if there is one, and the version of the log."""
        for record in self._logs.load(SEALS, limit=1, reverse=True):
            return record.event.seal, record.index + 1
        return None, 0

    def newest_first(self) -> Iterator[Seal]:
        """Yield all seals, the newest first."""
        start: int | None = None
        while True:
            page = self._logs.load(SEALS, start=start, reverse=True)
            for record in page:
                yield record.event.seal
            start = page.next_start
            if start is None:
                return

    def append(self, seal: Seal, *, version: int) -> LogState:
        """
        Append a seal to the log, which has this version.

        Raise ConcurrentAppend if another seal was appended meanwhile: this one would not name it.
        """
        made = SealMade(**seal.as_json())
        # Without the context of a request: its personal data are no matter of a seal.
        with entered(Layer({})):
            if not version:
                return self._logs.create(made, log_id=SEALS)
            return self._logs.append(SEALS, made, expected_version=version)
