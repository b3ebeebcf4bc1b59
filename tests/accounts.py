"""The domain of the tests: bank accounts, and parcels, whose logs are of another type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eventlogs import Aggregate, EventRecord, event
from eventlogs.testing.contracts.stores import encoded as encoded


@event("account.opened")
@dataclass(frozen=True, slots=True)
class Opened:
    owner: str


@event("account.deposited")
@dataclass(frozen=True, slots=True)
class Deposited:
    amount: int  # cents


@event("account.withdrawn")
@dataclass(frozen=True, slots=True)
class Withdrawn:
    amount: int  # cents


@event("account.noted")
@dataclass(frozen=True, slots=True)
class Noted:
    """An event with any JSON value."""

    note: Any


@dataclass
class Account(Aggregate, log_type="account", events=[Opened, Deposited, Withdrawn, Noted]):
    owner: str = ""
    balance: int = 0
    notes: int = 0

    def apply(self, record: EventRecord) -> None:
        match record.event:
            case Opened(owner=owner):
                self.owner = owner
            case Deposited(amount=amount):
                self.balance += amount
            case Withdrawn(amount=amount):
                self.balance -= amount
            case Noted():
                self.notes += 1


class Overdrawn(Exception):
    """The balance is lower than the amount to withdraw."""


def withdraw(account: Account, amount: int) -> Iterator[Withdrawn]:
    """Decide on a withdrawal."""
    if amount > account.balance:
        raise Overdrawn
    if amount:
        yield Withdrawn(amount)


@event("parcel.sent")
@dataclass(frozen=True, slots=True)
class Sent:
    to: str


@dataclass
class Parcel(Aggregate, log_type="parcel", events=[Sent]):
    to: str = ""

    def apply(self, record: EventRecord) -> None:
        self.to = record.event.to
