"""
The events of a road traffic fine, and the aggregate that they fold into.

The events are those of the "Road Traffic Fine Management Process", a public event log of the
police of an Italian town (https://doi.org/10.4121/uuid:270fd440-1057-4fb9-89a9-b699b47990f5),
with all of its columns. ``at`` is the time in the file at which it happened; the time at which
eventlogs recorded it is another one. Amounts are Decimals of the town's currency.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from eventlogs import Aggregate, EventRecord, event

NOT_DISMISSED = "NIL"


@event("fine.created")
@dataclass(frozen=True, slots=True)
class Created:
    """An officer wrote the fine."""

    at: datetime
    case: str
    amount: Decimal
    article: int  # of the traffic code
    dismissal: str  # NIL, or the code of a reason
    officer: str
    points: int  # taken off the driver's licence
    vehicle_class: str
    total_paid: Decimal


@event("fine.sent")
@dataclass(frozen=True, slots=True)
class Sent:
    """The fine was sent to the offender, who also pays the postage."""

    at: datetime
    expense: Decimal


@event("fine.notified")
@dataclass(frozen=True, slots=True)
class Notified:
    """The offender was served with the fine."""

    at: datetime
    notification_type: str | None
    last_sent: str | None


@event("fine.penalty_added")
@dataclass(frozen=True, slots=True)
class PenaltyAdded:
    """The fine was not paid in time. ``amount`` replaces the first amount."""

    at: datetime
    amount: Decimal


@event("fine.paid")
@dataclass(frozen=True, slots=True)
class Paid:
    """The offender paid. ``total_paid`` is the town's own sum of the case's payments."""

    at: datetime
    amount: Decimal
    total_paid: Decimal


@event("fine.sent_for_credit_collection")
@dataclass(frozen=True, slots=True)
class SentForCreditCollection:
    """The debt was handed over to a collector."""

    at: datetime


@event("fine.appeal_to_prefecture_dated")
@dataclass(frozen=True, slots=True)
class AppealToPrefectureDated:
    """The offender appealed to the prefecture."""

    at: datetime


@event("fine.appeal_to_prefecture_sent")
@dataclass(frozen=True, slots=True)
class AppealToPrefectureSent:
    """The appeal was passed on to the prefecture."""

    at: datetime
    dismissal: str | None


@event("fine.appeal_result_received")
@dataclass(frozen=True, slots=True)
class AppealResultReceived:
    """The prefecture decided."""

    at: datetime
    last_sent: str | None


@event("fine.appeal_result_notified")
@dataclass(frozen=True, slots=True)
class AppealResultNotified:
    """The offender was notified of the prefecture's decision."""

    at: datetime
    notification_type: str | None
    last_sent: str | None


@event("fine.appealed_to_judge")
@dataclass(frozen=True, slots=True)
class AppealedToJudge:
    """The offender appealed to a judge."""

    at: datetime
    dismissal: str | None


@dataclass
class Fine(
    Aggregate,
    log_type="fine",
    events=[
        Created,
        Sent,
        Notified,
        PenaltyAdded,
        Paid,
        SentForCreditCollection,
        AppealToPrefectureDated,
        AppealToPrefectureSent,
        AppealResultReceived,
        AppealResultNotified,
        AppealedToJudge,
    ],
):
    """The state of a fine."""

    case: str = ""
    amount: Decimal = Decimal(0)  # as written by the officer
    penalty: Decimal = Decimal(0)  # added because it was not paid in time
    expenses: Decimal = Decimal(0)
    paid: Decimal = Decimal(0)
    dismissal: str = NOT_DISMISSED
    stage: str = "new"  # the last step of the case

    @property
    def total(self) -> Decimal:
        """The total cost of the case for the offender."""
        return self.amount + self.penalty + self.expenses

    @property
    def outstanding(self) -> Decimal:
        """The amount still to be paid; negative if too much was paid."""
        return self.total - self.paid

    @property
    def status(self) -> str:
        """The stage, or "paid" as soon as nothing is outstanding."""
        return "paid" if self.paid and self.outstanding <= 0 else self.stage

    def apply(self, record: EventRecord) -> None:
        """Apply one event to the state."""
        match record.event:
            case Created(case=case, amount=amount, dismissal=dismissal):
                self.case, self.amount, self.dismissal = case, amount, dismissal
                self.stage = "created"
            case Sent(expense=expense):
                self.expenses += expense
                self.stage = "sent"
            case Notified():
                self.stage = "notified"
            case PenaltyAdded(amount=amount):
                self.penalty = amount - self.amount
                self.stage = "penalised"
            case Paid(amount=amount):
                self.paid += amount
            case SentForCreditCollection():
                self.stage = "in collection"
            case AppealToPrefectureDated():
                self.stage = "appealed"
            case AppealToPrefectureSent(dismissal=dismissal) | AppealedToJudge(dismissal=dismissal):
                self.dismissal = dismissal or self.dismissal
                self.stage = "appealed"
            case AppealResultReceived() | AppealResultNotified():
                self.stage = "decided on appeal"
