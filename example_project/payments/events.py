"""
The events of a payment, and the aggregate that they fold into.

Events are facts, named in the past tense. An aggregate never refuses an event: ``deciders`` apply
the rules before an event is stored. Amounts are ints of minor units (cents).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eventlogs import Aggregate, EventRecord, event, upcaster


@event("payment.requested")
@dataclass(frozen=True, slots=True)
class Requested:
    """A payment of an amount was requested."""

    amount: int


@event("payment.authorized", version=2, aliases=["payment.approved"])
@dataclass(frozen=True, slots=True)
class Authorized:
    """The payer's bank reserved an amount. The event was named "payment.approved" before."""

    amount: int
    approval_code: str | None


@upcaster("payment.authorized", from_version=1)
def add_approval_code(data: dict[str, Any]) -> dict[str, Any]:
    """Convert data of version 1, which had no approval code, to version 2."""
    return {**data, "approval_code": None}


@event("payment.captured")
@dataclass(frozen=True, slots=True)
class Captured:
    """A part of the authorized amount was taken."""

    amount: int


@event("payment.refunded")
@dataclass(frozen=True, slots=True)
class Refunded:
    """A part of the captured amount was paid back."""

    amount: int


@dataclass
class Payment(Aggregate, log_type="payment", events=[Requested, Authorized, Captured, Refunded]):
    """The state of a payment. Its rules are in ``deciders``."""

    version: int = 0  # the number of events
    amount_requested: int = 0
    amount_approved: int = 0
    amount_captured: int = 0
    amount_refunded: int = 0

    @property
    def amount_outstanding(self) -> int:
        """The amount that is authorized and not yet captured."""
        return self.amount_approved - self.amount_captured

    @property
    def amount_refundable(self) -> int:
        """The amount that is captured and not refunded."""
        return self.amount_captured - self.amount_refunded

    def apply(self, record: EventRecord) -> None:
        """Apply one event to the state."""
        self.version = record.index + 1
        match record.event:
            case Requested(amount=amount):
                self.amount_requested += amount
            case Authorized(amount=amount):
                self.amount_approved += amount
            case Captured(amount=amount):
                self.amount_captured += amount
            case Refunded(amount=amount):
                self.amount_refunded += amount
