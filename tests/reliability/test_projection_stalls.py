"""Transactions that delay rows: the counterpart of test_projection_lag.py."""

from __future__ import annotations

import pytest
from django.db import connection, transaction

from eventlogs import ANY
from tests.processes import until
from tests.races import COMMITS
from tests.reliability.ledgers import Entered
from tests.reliability.read_models import LedgerRows, are_up_to_date, ledgers, wrong_rows
from tests.reliability.runners import Campaign

pytestmark = [COMMITS, pytest.mark.postgresql, pytest.mark.usefixtures("read_models")]

BROKEN = "tests.reliability.broken_projections."


@pytest.mark.parametrize("variant", ["", BROKEN + "waits_for_every_transaction"])
def test_an_unrelated_transaction_delays_only_a_broken_version(elsewhere, variant):
    log_id = ledgers().create(Entered("the first")).log_id

    with Campaign(broken=variant) as campaign:
        runner = campaign.run(LedgerRows.name)
        until(lambda: are_up_to_date(LedgerRows.name))
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_current_xact_id()")
            state = elsewhere(
                lambda: ledgers().append(log_id, Entered("meanwhile"), expected_version=ANY)
            )
            assert LedgerRows.wait_for(state.position, timeout=1.0) is not bool(variant)
        until(lambda: are_up_to_date(LedgerRows.name))
        assert runner.end() == "done"

    assert wrong_rows() == []
