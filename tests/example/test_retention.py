"""The example's rule: which payments are settled."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.conf import Settings

from eventlogs.archives.rules import rule_from
from example_project.payments.events import Payment
from example_project.payments.retention import settled_payments


@pytest.mark.parametrize(
    ("amounts", "is_closed"),
    [
        ({}, False),
        ({"amount_approved": 10}, False),
        ({"amount_approved": 10, "amount_captured": 4}, False),
        ({"amount_approved": 10, "amount_captured": 10}, True),
        ({"amount_approved": 10, "amount_captured": 10, "amount_refunded": 3}, True),
    ],
)
def test_payments_that_are_captured_as_a_whole_are_settled(amounts, is_closed):
    assert settled_payments.when is not None
    assert settled_payments.when(Payment(**amounts)) is is_closed


def test_the_settings_name_the_rule_and_where_archives_are():
    found: Any = Settings("example_project.settings")

    assert [rule_from(each) for each in found.EVENTLOGS["RETENTION"]] == [settled_payments]
    assert found.EVENTLOGS["ARCHIVE_STORAGE"] in found.STORAGES
    assert settled_payments.after == timedelta(days=365)
