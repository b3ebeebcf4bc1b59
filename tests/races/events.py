"""The log that is raced on: its events name their append and their part of it."""

from __future__ import annotations

from dataclasses import dataclass

from eventlogs import Aggregate, EventRecord, event


@event("race.noted")
@dataclass(frozen=True, slots=True)
class Noted:
    """Part ``part`` of the ``of`` events of the append that is called ``marker``."""

    marker: str
    part: int = 0
    of: int = 1


@dataclass
class Race(Aggregate, log_type="race", events=[Noted]):
    """The notes in the log."""

    seen: int = 0

    def apply(self, record: EventRecord) -> None:
        self.seen += 1


def batch(marker: str, of: int = 1) -> list[Noted]:
    """Return the events of one append."""
    return [Noted(marker, part, of) for part in range(of)]
