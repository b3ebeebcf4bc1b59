"""The domain of the tests of rules: members with unique values, and suppliers who share a scope."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from eventlogs import Aggregate, EventRecord, Unique, event

EMAIL = Unique("member.email", normalize=str.casefold)


@event("member.joined")
@dataclass(frozen=True, slots=True)
class Joined:
    email: Annotated[str | None, EMAIL] = None
    card: Annotated[int | None, Unique("member.card")] = None


@event("member.email_changed")
@dataclass(frozen=True, slots=True)
class EmailChanged:
    email: Annotated[str | None, EMAIL]


@event("member.greeted")
@dataclass(frozen=True, slots=True)
class Greeted:
    times: int = 1


@dataclass
class Member(Aggregate, log_type="member", events=[Joined, EmailChanged, Greeted]):
    email: str | None = None
    greeted: int = 0

    def apply(self, record: EventRecord) -> None:
        match record.event:
            case Joined(email=email) | EmailChanged(email=email):
                self.email = email
            case Greeted(times=times):
                self.greeted += times


def greet(member: Member, times: int = 1) -> Iterator[Greeted]:
    """Decide to greet."""
    yield Greeted(times)


@event("supplier.listed")
@dataclass(frozen=True, slots=True)
class Listed:
    contact: Annotated[str, EMAIL]


@dataclass
class Supplier(Aggregate, log_type="supplier", events=[Listed]):
    contact: str = ""

    def apply(self, record: EventRecord) -> None:
        self.contact = record.event.contact
