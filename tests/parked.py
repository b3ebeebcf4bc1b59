"""A payment with a parked event, for tests that show it or act on it."""

from __future__ import annotations

import pytest

from eventlogs import LogState
from example_project.payments.events import Captured, Payment, Requested
from example_project.payments.projections import PaymentSummaries


def parked_payment(monkeypatch: pytest.MonkeyPatch, raised: str) -> LogState:
    """Return a payment whose second event is parked, with a third one behind it."""

    def fail(*_: object) -> None:
        raise ValueError(raised)

    state = Payment.logs.create(Requested(amount=5), Captured(amount=3), Requested(amount=2))
    with monkeypatch.context() as patch:
        patch.setattr(PaymentSummaries, "captured", fail)
        patch.setattr(PaymentSummaries, "max_attempts", 1)
        PaymentSummaries.catch_up()
    return state
