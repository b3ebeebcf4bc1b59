"""The lag: a projection's events that are committed and not applied, by a bounded search."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.sources import partition_of
from eventlogs.models import AppliedVersion, ParkedEvent, ProjectionState
from eventlogs.projections import checkpoints, lags
from eventlogs.projections.lags import NO_LAG, Lag
from eventlogs.projections.status import status_of, statuses
from eventlogs.stores.participants import registered
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent, Withdrawn
from tests.projections.readmodels import (
    Balances,
    DepositsByOwner,
    InlinedBalances,
    Letters,
    ReducedBalances,
    fail_on,
    reset,
)
from tests.projections.tables import checkpoint


def others(count=1):
    """Append events that no projection of these tests reads."""
    for _ in range(count):
        state = Parcel.logs.create(Sent("Rome"))
    return state


@pytest.mark.feed
@pytest.mark.django_db
class TestOwnEvents:
    def test_only_events_that_the_projection_reads_count(self):
        others(5)
        Account.logs.create(Opened("Ada"), Deposited(1), Noted("x"), Deposited(2))
        others(5)

        assert DepositsByOwner.lag().positions == 2  # of the types that it handles
        assert ReducedBalances.lag().positions == 4  # of the log type that it reads
        assert not ReducedBalances.lag().at_least

    def test_the_age_is_that_of_the_first_event_not_applied(self):
        first = Account.logs.create(Deposited(1))
        checkpoint(DepositsByOwner, first.position)
        assert DepositsByOwner.lag() == NO_LAG

        second = Account.logs.create(Deposited(1))
        Account.logs.create(Deposited(1))

        lag, before = DepositsByOwner.lag(), Account.logs.load(second.log_id)[0].recorded_at
        assert lag.positions == 2
        assert timedelta() < lag.age
        assert lag.age <= timezone.now() - before

    def test_counting_ends_at_a_limit(self, monkeypatch):
        monkeypatch.setattr(lags, "LIMIT", 3)
        Account.logs.create(*[Deposited(1)] * 3)
        assert DepositsByOwner.lag()[::2] == (3, False)

        Account.logs.create(Deposited(1))
        assert DepositsByOwner.lag()[::2] == (3, True)

    def test_the_search_for_its_events_ends_at_a_limit(self, monkeypatch):
        monkeypatch.setattr(lags, "SPAN", 4)
        monkeypatch.setattr(lags, "EVENTS", 4)
        others(4)
        assert DepositsByOwner.lag() == NO_LAG

        Account.logs.create(Deposited(1))
        lag = DepositsByOwner.lag()
        assert (lag.positions, lag.at_least) == (0, True)
        assert lag.age > timedelta()  # of the last one looked at: its own are younger

    def test_a_lag_has_an_age_if_other_partitions_have_applied_all_counted_events(
        self, monkeypatch
    ):
        monkeypatch.setattr(lags, "LIMIT", 3)
        state = Account.logs.create(*[Deposited(1)] * 9)
        mine = partition_of(state.log_id.uuid, 2)
        checkpoint(ReducedBalances, *(state.position if n == mine else 0 for n in range(2)))

        lag = ReducedBalances.lag()

        assert (lag.positions, lag.at_least) == (0, True)
        assert lag.age > timedelta()  # of the last one looked at, where nothing else is known

    def test_a_gap_between_positions_hides_nothing(self, monkeypatch):
        monkeypatch.setattr(lags, "SPAN", 4)
        Account.logs.create(Deposited(1))
        checkpoint(DepositsByOwner, -1_000)

        assert DepositsByOwner.lag()[::2] == (1, False)

    def test_a_lag_that_is_counted_without_jit_is_the_same(self, monkeypatch):
        monkeypatch.setattr(lags, "FEW", 1)
        Account.logs.create(Deposited(1), Deposited(2))

        assert DepositsByOwner.lag()[::2] == (2, False)
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:  # for that one statement, in this transaction
                cursor.execute("SHOW jit")
                assert cursor.fetchone() == ("off",)

    def test_each_partition_counts_from_its_own_checkpoint(self):
        states = [Account.logs.create(Deposited(1), Deposited(2)) for _ in range(6)]
        last = states[-1].position
        checkpoint(DepositsByOwner, 0, last)
        behind = [each for each in states if partition_of(each.log_id.uuid, 2) == 0]

        assert DepositsByOwner.lag().positions == 2 * len(behind)
        checkpoint(DepositsByOwner, last, last)
        assert DepositsByOwner.lag() == NO_LAG

    def test_held_logs_are_counted_separately(self, tables, declared):
        bob = Account.logs.create(Opened("bob"))
        ada = Account.logs.create(Deposited(1))
        fail_on(Deposited)
        Balances.catch_up()

        assert Balances.lag() == Lag(0, timedelta(), held=1)
        Account.logs.append(ada, Deposited(1))
        Account.logs.append(bob, Withdrawn(1))
        assert (Balances.lag().positions, Balances.lag().held) == (2, 1)

    def test_a_reactor_that_starts_now_has_no_lag_before_it_runs(self, monkeypatch):
        monkeypatch.setattr(Letters, "start", Letters.NOW)
        Account.logs.create(Deposited(1))

        assert Letters.lag() == NO_LAG

    def test_a_checkpoint_ahead_of_the_feed_is_an_error(self):
        checkpoint(Balances, 2**60)

        with pytest.raises(FeedUnavailable, match="position"):
            Balances.lag()

    def test_a_status_has_the_same_lag(self, monkeypatch):
        monkeypatch.setattr(lags, "LIMIT", 3)
        Account.logs.create(*[Deposited(1)] * 4)

        found = status_of(DepositsByOwner)
        assert (found.positions_behind, found.at_least) == (3, True)
        assert found.age <= DepositsByOwner.lag().age


@pytest.mark.feed
@pytest.mark.skipif(connection.vendor == "sqlite", reason="one writer at a time")
def test_events_that_an_open_transaction_holds_back_are_lag(tables, declared):
    Account.logs.create(Opened("ada"))
    Balances.catch_up()
    is_open, end = threading.Event(), threading.Event()

    def forgotten():
        with transaction.atomic():
            Account.logs.create(Opened("forgotten"))
            is_open.set()
            end.wait(30)
        connections["default"].close()

    thread = threading.Thread(target=forgotten)
    thread.start()
    try:
        assert is_open.wait(30)
        for _ in range(5):
            Account.logs.create(Opened("bob"))

        assert Balances.catch_up() == 0
        lag = Balances.lag()
        assert (lag.positions, lag.at_least) == (5, False)
        assert lag.age > timedelta()
        assert status_of(Balances).positions_behind == 5
    finally:
        end.set()
        thread.join()
    Balances.catch_up()
    assert Balances.lag() == NO_LAG


class TestInline:
    @pytest.fixture(autouse=True)
    def at_work(self, tables, inlined):
        reset()

    def without_it(self, *events):
        """Append as a process without the projection does."""
        participant = registered.pop(InlinedBalances.name)
        try:
            return Account.logs.create(*events)
        finally:
            registered[InlinedBalances.name] = participant

    def test_rows_that_are_right_have_no_lag_without_a_worker(self):
        state = Account.logs.create(Opened("ada"), Deposited(1))
        for _ in range(5):
            state = Account.logs.append(state, Deposited(1), Noted("x"))
        others(3)

        assert InlinedBalances.lag() == NO_LAG
        found = status_of(InlinedBalances)
        assert (found.positions_behind, found.age, found.problem) == (0, timedelta(), "")

    def test_events_appended_without_the_projection_are_lag(self):
        Account.logs.create(Deposited(1))
        state = self.without_it(Opened("bob"), Deposited(1), Deposited(2))

        lag = InlinedBalances.lag()
        assert (lag.positions, lag.at_least) == (2, False)
        assert lag.age > timedelta()

        Account.logs.append(state, Deposited(1))  # the projection applies the missing events
        assert InlinedBalances.lag() == NO_LAG

    def test_events_of_a_log_count_from_its_applied_version(self):
        state = Account.logs.create(Deposited(1), Deposited(1))
        participant = registered.pop(InlinedBalances.name)
        Account.logs.append(state, Noted("x"), Deposited(1))
        registered[InlinedBalances.name] = participant

        assert InlinedBalances.lag().positions == 1

    def test_rows_from_before_a_rebuild_are_lag(self):
        Account.logs.create(Deposited(1))
        ProjectionState.objects.filter(name=InlinedBalances.name).update(version=2)

        assert InlinedBalances.lag().positions == 1
        AppliedVersion.objects.update(made_by=2)
        assert InlinedBalances.lag() == NO_LAG

    def test_the_newest_events_are_searched_as_well_as_the_oldest(self, monkeypatch):
        monkeypatch.setattr(lags, "INLINE", 2)
        Account.logs.create(*[Deposited(1)] * 6)
        assert InlinedBalances.lag() == Lag(0, timedelta(), at_least=True)

        self.without_it(Deposited(1))
        assert InlinedBalances.lag()[::2] == (1, True)
        monkeypatch.setattr(lags, "INLINE", 4)  # the two ends meet
        assert InlinedBalances.lag()[::2] == (1, False)

    @pytest.mark.feed
    def test_a_log_that_is_held_is_lag(self):
        self.without_it(Deposited(1), Deposited(1))
        state = self.without_it(Opened("bob"), Deposited(1))
        fail_on(Deposited)
        InlinedBalances.catch_up()
        assert ParkedEvent.objects.count() == 2

        lag = InlinedBalances.lag()
        assert checkpoints.position(InlinedBalances.name, "default") == state.position
        assert (lag.positions, lag.held) == (2, 2)
        assert lag.age > timedelta()

        reset()
        Account.logs.append(state, Deposited(1))  # applies what was held
        assert InlinedBalances.lag().positions == 1

    @pytest.mark.feed
    def test_a_broken_version_that_forgets_held_logs_reports_no_lag(self, monkeypatch):
        monkeypatch.setattr(lags, "_add_held", lambda using, places: None)
        self.without_it(Deposited(1), Deposited(1))
        fail_on(Deposited)
        InlinedBalances.catch_up()

        assert InlinedBalances.lag().positions == 0

    def test_the_lag_of_an_inline_projection_needs_no_feed(self, monkeypatch):
        def unavailable(using):
            raise FeedUnavailable("database", using=using)

        monkeypatch.setattr(lags, "feed_source_for", unavailable)
        Account.logs.create(Deposited(1))

        assert InlinedBalances.lag() == NO_LAG
        found = statuses([InlinedBalances, Balances])
        assert [bool(each.problem) for each in found] == [False, True]

    @pytest.mark.feed
    def test_the_number_of_queries_does_not_depend_on_the_number_of_projections(self, declared):
        others()
        for _ in range(10):
            Account.logs.create(Deposited(1))
        counts = []
        for wanted in (
            [InlinedBalances, Letters],
            [InlinedBalances, Balances, ReducedBalances, DepositsByOwner, Letters],
        ):
            statuses(wanted)
            with CaptureQueriesContext(connection) as context:
                statuses(wanted)
            counts.append(len(context))

        # Three of them are for a look over many positions: BEGIN, SET LOCAL jit = off, COMMIT.
        assert counts[0] == counts[1] <= 11
