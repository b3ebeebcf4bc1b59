"""A log with extreme content: long names, a long state, text from right to left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from eventlogs import Aggregate, EventRecord, LogId, event

HEBREW: Final = "שלום עולם (123) ABC"
ARABIC: Final = "مرحبا 2026-11-27, abc-7!"
LONG_TYPE: Final = "wild.an-event-with-a-name-that-nobody-would-want-to-type-twice-in-a-day"
UNBROKEN: Final = "W" * 3_000
DEPTH: Final = 40


@event("wild.named")
@dataclass(frozen=True, slots=True)
class Named:
    name: str


@event(LONG_TYPE)
@dataclass(frozen=True, slots=True)
class Filled:
    values: dict[str, Any]


class Wild(
    Aggregate, log_type="a_long_type_of_a_log_of_the_tests_in_a_browser", events=[Named, Filled]
):
    """No dataclass: the events set the attributes of its state."""

    def __init__(self) -> None:
        self.name = ""

    def apply(self, record: EventRecord) -> None:
        match record.event:
            case Named(name=name):
                self.name = name
            case Filled(values=values):
                vars(self).update(values)

    def summary(self) -> str:
        return f"{self.name}, {len(vars(self))} values"


def deep() -> Any:
    value: Any = "the end of it"
    for level in range(DEPTH):
        value = {"level": level, "below": value}
    return value


def wild_log() -> LogId:
    """Return a log of six events, the last of which has the index 5."""
    return Wild.logs.create(
        Named(HEBREW),
        Filled({f"field_with_a_long_name_{n:03d}": f"value {n}" for n in range(300)}),
        Filled({"deep": deep(), "unbroken": UNBROKEN}),
        Filled({ARABIC: HEBREW, "letters": ["א", "ב", 7]}),
        Named(ARABIC),
        Named("x"),
        metadata={"user": f"{HEBREW} someone.with.a.long.address@of-a-subdomain.example"},
        idempotency_key=f"{ARABIC}-{'k' * 150}",
    ).log_id
