"""
The rules of payments, as deciders.

A decider is a plain function of the aggregate. It yields the events to append, or raises
PaymentRefused. It reads no database and no clock, so its tests need neither.
"""

from __future__ import annotations

from collections.abc import Iterator

from example_project.payments.events import Authorized, Captured, Payment, Refunded


class PaymentRefused(Exception):
    """The state of the payment does not allow it. The message has the reason, and no amounts."""


def authorize(
    payment: Payment, amount: int, approval_code: str | None = None
) -> Iterator[Authorized]:
    """Authorize an amount, at most the requested one."""
    if amount > payment.amount_requested - payment.amount_approved:
        raise PaymentRefused("More would be authorized than was requested.")
    yield Authorized(amount=amount, approval_code=approval_code)


def capture(payment: Payment, amount: int) -> Iterator[Captured]:
    """Capture an amount, at most the outstanding one."""
    if amount > payment.amount_outstanding:
        raise PaymentRefused("More would be captured than is outstanding.")
    yield Captured(amount=amount)


def refund(payment: Payment, amount: int) -> Iterator[Refunded]:
    """Refund an amount, at most the captured one."""
    if amount > payment.amount_refundable:
        raise PaymentRefused("More would be refunded than was captured.")
    yield Refunded(amount=amount)
