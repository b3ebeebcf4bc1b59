"""Waiting until an event is applied: only for the partition of its log."""

from __future__ import annotations

import time

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs.feed.sources import partition_of
from eventlogs.models import Event
from eventlogs.stores.participants import registered
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent
from tests.projections.readmodels import Balances, DepositsByOwner, InlinedBalances, fail_on, reset
from tests.projections.tables import checkpoint


@pytest.mark.feed
@pytest.mark.django_db
class TestPartitions:
    def test_only_the_partition_of_its_log_is_waited_for(self):
        state = Account.logs.create(Opened("ada"))
        number = partition_of(state.log_id.uuid, 3)
        positions = [0, 0, 0]
        positions[number] = state.position
        checkpoint(Balances, *positions)
        assert Balances.wait_for(state.position, timeout=0)

        positions = [state.position] * 3
        positions[number] = state.position - 1
        checkpoint(Balances, *positions)
        assert not Balances.wait_for(state.position, timeout=0)

    def test_each_poll_is_one_query(self):
        state = Account.logs.create(Opened("ada"))
        checkpoint(Balances, 0, 0, 0, 0)

        with CaptureQueriesContext(connection) as context:
            assert not Balances.wait_for(state.position, timeout=0.3)

        looks = [each for each in context if "eventlogs_checkpoint" in each["sql"]]
        assert len(looks) > 1
        assert len(context) == len(looks) + 2  # the event, and the last one of its own


@pytest.mark.feed
@pytest.mark.django_db
class TestOtherEvents:
    def test_events_of_logs_that_the_projection_does_not_read_are_not_waited_for(self):
        state = Parcel.logs.create(Sent("Rome"))
        assert Balances.wait_for(state.position, timeout=0)

    def test_for_an_unread_event_earlier_events_of_its_log_are_waited_for(self):
        unread = Account.logs.create(Opened("bob"))
        assert DepositsByOwner.wait_for(unread.position, timeout=0)

        state = Account.logs.create(Opened("ada"), Deposited(1), Noted("x"))
        assert not DepositsByOwner.wait_for(state.position, timeout=0)
        checkpoint(DepositsByOwner, state.position - 1)
        assert DepositsByOwner.wait_for(state.position, timeout=0)

    @pytest.mark.fence
    def test_a_held_event_and_those_behind_it_are_not_applied(self, tables, declared):
        fail_on(Deposited)
        ada = Account.logs.create(Opened("ada"), Deposited(1), Noted("x"))
        bob = Account.logs.create(Opened("bob"))
        Balances.catch_up()

        assert Balances.wait_for(ada.position - 2, timeout=0)
        assert not Balances.wait_for(ada.position - 1, timeout=0)
        assert not Balances.wait_for(ada.position, timeout=0)
        assert Balances.wait_for(bob.position, timeout=0)


@pytest.mark.django_db
class TestNoEvent:
    def test_position_0_is_not_waited_for(self):
        assert Balances.wait_for(0, timeout=0)

    def test_a_position_in_the_future_is_waited_for(self):
        last = Account.logs.create(Opened("ada")).position
        begun = time.monotonic()

        assert not Balances.wait_for(last + 1_000, timeout=0.1)
        assert time.monotonic() - begun >= 0.1

    @pytest.mark.skipif(connection.vendor != "postgresql", reason="positions are given out again")
    def test_a_position_that_was_rolled_back_is_not_waited_for(self, transactional_db):
        with transaction.atomic():
            gone = Account.logs.create(Opened("ada")).position
            transaction.set_rollback(True)
        last = Account.logs.create(Opened("bob")).position
        checkpoint(Balances, last)
        assert not Event.objects.filter(position=gone).exists()

        begun = time.monotonic()
        assert not Balances.wait_for(gone, timeout=60)
        assert time.monotonic() - begun < 30


class TestInline:
    @pytest.fixture(autouse=True)
    def at_work(self, tables, inlined):
        reset()

    def test_an_inline_row_is_waited_for_by_the_applied_version_of_its_log(self):
        state = Account.logs.create(Deposited(1), Noted("x"))
        assert InlinedBalances.wait_for(state.position, timeout=0)

        participant = registered.pop(InlinedBalances.name)
        later = Account.logs.append(state, Deposited(1), Noted("x"))
        registered[InlinedBalances.name] = participant
        assert InlinedBalances.wait_for(state.position, timeout=0)
        assert not InlinedBalances.wait_for(later.position, timeout=0)

    def test_an_event_without_a_handler_needs_no_row(self):
        state = Account.logs.create(Opened("ada"))
        assert InlinedBalances.wait_for(state.position, timeout=0)
