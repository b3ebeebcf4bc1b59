"""Events with personal data: guests, and what they are called."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Annotated, Any

from eventlogs import Aggregate, EventRecord, Unique, event
from eventlogs.events.personal import Personal

KEY = base64.b64encode(bytes(range(32))).decode()
SETTINGS: dict[str, Any] = {
    "ENCRYPTION_KEYS": [KEY],
    "PERSONAL_METADATA": {"ip": "person"},
    "REFRESHER": "eventlogs.refreshers.ImmediateRefresher",
}


@event("visitor.joined")
@dataclass(frozen=True, slots=True)
class Joined:
    person: str
    name: Annotated[str, Personal(subject="person", redacted="erased")]
    friend: str = ""
    friend_name: Annotated[str | None, Personal(subject="friend")] = None
    email: Annotated[str | None, Unique("visitor.email"), Personal(subject="person")] = None


@event("visitor.moved")
@dataclass(frozen=True, slots=True)
class Moved:
    person: str
    streets: list[Annotated[str, Personal(subject="person", redacted="erased")]]


@event("visitor.paid")
@dataclass(frozen=True, slots=True)
class Paid:
    amount: int  # cents


@event("visitor.complained")
@dataclass(frozen=True, slots=True)
class Complained:
    """An event that a projection of the tests cannot apply."""

    person: str
    text: Annotated[str, Personal(subject="person", redacted="erased")]


@dataclass
class Guest(Aggregate, log_type="visitor", events=[Joined, Moved, Paid, Complained]):
    name: str = ""
    streets: list[str] = field(default_factory=list)
    paid: int = 0

    def apply(self, record: EventRecord) -> None:
        match record.event:
            case Joined(name=name):
                self.name = name
            case Moved(streets=streets):
                self.streets = streets
            case Paid(amount=amount):
                self.paid += amount
