"""The rules of payments, and the soundness of both aggregates, by the kit that projects use."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventlogs.testing import check_aggregate, given
from example_project.fines.events import Fine
from example_project.payments.deciders import PaymentRefused, authorize, capture, refund
from example_project.payments.events import Authorized, Captured, Payment, Refunded, Requested

HERE = Path(__file__).parent

REQUESTED = given(Payment, Requested(amount=100))
AUTHORIZED = REQUESTED.and_given(Authorized(amount=100, approval_code="xyz"))
CAPTURED = AUTHORIZED.and_given(Captured(amount=60))


def test_no_more_is_authorized_than_was_requested():
    REQUESTED.when(authorize, 100, approval_code="xyz").then(Authorized(100, "xyz"))

    REQUESTED.when(authorize, 101).raises(PaymentRefused, match="than was requested")
    AUTHORIZED.when(authorize, 1).raises(PaymentRefused)


def test_no_more_is_captured_than_is_outstanding():
    AUTHORIZED.when(capture, 60).then(Captured(60)).when(capture, 40).then(Captured(40))

    CAPTURED.when(capture, 41).raises(PaymentRefused, match="than is outstanding")


def test_no_more_is_refunded_than_was_captured():
    CAPTURED.when(refund, 60).then(Refunded(60))

    CAPTURED.when(refund, 61).raises(PaymentRefused, match="than was captured")
    assert CAPTURED.when(refund, 20).state.amount_refundable == 40


@pytest.mark.parametrize("aggregate", [Payment, Fine])
def test_aggregates_are_sound_and_read_what_is_stored(aggregate):
    check_aggregate(aggregate, stored=HERE / f"{aggregate.log_type}.stored.jsonl")
