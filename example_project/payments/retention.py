"""Which payments are archived: those that were settled a year ago."""

from __future__ import annotations

from datetime import timedelta

from eventlogs import Retention
from example_project.payments.events import Payment


def is_settled(payment: Payment) -> bool:
    """Return whether all that was authorized is captured."""
    return payment.amount_captured > 0 and payment.amount_outstanding == 0


settled_payments = Retention("payment", after=timedelta(days=365), when=is_settled)
