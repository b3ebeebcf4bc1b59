"""
The rules: what may happen to a payment in the state that it is in.

A decider is a plain function of the aggregate. It yields the events that happen, or raises
PaymentRefused; it reads no database and no clock, so a test needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator

from example_project.payments.events import Authorized, Captured, Payment, Refunded


class PaymentRefused(Exception):
    """The payment's state does not allow it; the message says why, and shows no amounts."""


def authorize(
    payment: Payment, amount: int, approval_code: str | None = None
) -> Iterator[Authorized]:
    """Set an amount aside, up to what was requested."""
    if amount > payment.amount_requested - payment.amount_approved:
        raise PaymentRefused("More would be authorized than was requested.")
    yield Authorized(amount=amount, approval_code=approval_code)


def capture(payment: Payment, amount: int) -> Iterator[Captured]:
    """Take an amount, up to what is authorized."""
    if amount > payment.amount_outstanding:
        raise PaymentRefused("More would be captured than is outstanding.")
    yield Captured(amount=amount)


def refund(payment: Payment, amount: int) -> Iterator[Refunded]:
    """Give an amount back, up to what was captured."""
    if amount > payment.amount_refundable:
        raise PaymentRefused("More would be refunded than was captured.")
    yield Refunded(amount=amount)
