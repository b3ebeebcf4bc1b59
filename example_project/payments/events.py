"""
What happens to a payment, and the state that it adds up to.

Events are facts, in the past tense. They are never refused here: what may happen is decided
in ``deciders``, before they are stored. Amounts are ints of minor units (cents).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eventlogs import Aggregate, EventRecord, event, upcaster


@event("payment.requested")
@dataclass(frozen=True, slots=True)
class Requested:
    """Somebody is to pay an amount."""

    amount: int


@event("payment.authorized", version=2, aliases=["payment.approved"])
@dataclass(frozen=True, slots=True)
class Authorized:
    """The payer's bank has set an amount aside. It was called "payment.approved" before."""

    amount: int
    approval_code: str | None


@upcaster("payment.authorized", from_version=1)
def add_approval_code(data: dict[str, Any]) -> dict[str, Any]:
    """Bring data of version 1, which knew no approval codes, to version 2."""
    return {**data, "approval_code": None}


@event("payment.captured")
@dataclass(frozen=True, slots=True)
class Captured:
    """An amount was taken out of what is authorized."""

    amount: int


@event("payment.refunded")
@dataclass(frozen=True, slots=True)
class Refunded:
    """An amount was given back out of what is captured."""

    amount: int


@dataclass
class Payment(Aggregate, log_type="payment", events=[Requested, Authorized, Captured, Refunded]):
    """The state of a payment. Its rules are in ``deciders``."""

    version: int = 0  # the number of events seen,
    position: int = 0  # and that of the last one: a decider can insist on them (If-Match)
    amount_requested: int = 0
    amount_approved: int = 0
    amount_captured: int = 0
    amount_refunded: int = 0

    @property
    def amount_outstanding(self) -> int:
        """What is authorized and not captured yet."""
        return self.amount_approved - self.amount_captured

    @property
    def amount_refundable(self) -> int:
        """What is captured and not given back."""
        return self.amount_captured - self.amount_refunded

    def apply(self, record: EventRecord) -> None:
        """Add one event."""
        self.version, self.position = record.index + 1, record.position
        match record.event:
            case Requested(amount=amount):
                self.amount_requested += amount
            case Authorized(amount=amount):
                self.amount_approved += amount
            case Captured(amount=amount):
                self.amount_captured += amount
            case Refunded(amount=amount):
                self.amount_refunded += amount
