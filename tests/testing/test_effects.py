"""What projections and reactors make of a story, on the real database."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from asgiref.sync import async_to_sync
from django.core import mail
from django.db import transaction

from eventlogs import (
    EventRecord,
    ImportDiffers,
    Projection,
    ProjectionFailed,
    Publisher,
    Reactor,
    ReductionProjection,
    handles,
    projection,
)
from eventlogs.models import Checkpoint, Event
from eventlogs.projections.base import projections
from eventlogs.testing import given
from example_project.payments.events import Authorized, Captured, Payment, Requested
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent, Withdrawn, withdraw
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balances,
    DepositsByOwner,
    InlinedBalances,
    Letters,
    ReducedBalances,
)

MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)


@pytest.fixture
def declared_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the reactors that the test declares."""
    monkeypatch.setattr("eventlogs.projections.kinds.projections", dict(projections))


# Rows


@pytest.mark.feed
@pytest.mark.django_db
def test_a_row_is_what_the_projection_has_stored():
    story = given(Payment, Requested(100), at=MONDAY).and_given(Authorized(100, None), Captured(30))

    row = story.project(PaymentSummaries)

    assert (row.log_id, row.captured, row.outstanding) == (story.log_id, 30, 70)
    assert row.requested_at == MONDAY
    assert row.status == row.Status.AUTHORIZED
    assert row._state.db == "default"
    assert Payment.logs.reduce(story.log_id).aggregate.amount_captured == 30


@pytest.mark.feed
@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("kind", [Balances, ReducedBalances, InlinedBalances])
def test_every_kind_of_projection_has_a_row(kind: type[Projection | ReductionProjection]):
    row = given(Account, Opened("ada"), Deposited(9)).when(withdraw, 2).project(kind)

    assert row.balance == 7


@pytest.mark.usefixtures("tables")
def test_inline_rows_need_no_feed():
    assert given(Account, Deposited(9), Withdrawn(2)).project(InlinedBalances).balance == 7


@pytest.mark.feed
@pytest.mark.usefixtures("tables")
def test_a_row_of_several_logs_is_that_of_the_last_event_with_a_key():
    given(Account, Deposited(1), metadata={"owner": "ada"}).project(DepositsByOwner)
    story = given(Account, Deposited(2), metadata={"owner": "eve"})
    story = story.and_given(Deposited(3), metadata={"owner": "ada"}).and_given(Deposited(4))

    row = story.project(DepositsByOwner)

    assert (row.owner, row.deposits) == ("ada", 4)


@pytest.mark.feed
@pytest.mark.usefixtures("tables")
def test_a_row_that_is_not_there_is_none():
    assert given(Account, Opened("ada"), Noted("close")).project(Balances) is None
    assert given(Account).project(Balances) is None


@pytest.mark.feed
@pytest.mark.usefixtures("tables")
def test_a_story_may_be_projected_twice_but_not_as_two_histories():
    story = given(Account, Deposited(9))

    assert story.project(Balances).balance == story.project(ReducedBalances).balance == 9
    assert story.when(withdraw, 2).project(Balances).balance == 7
    with pytest.raises(ImportDiffers):
        story.when(withdraw, 3).project(Balances)
    assert Event.objects.count() == 2


@pytest.mark.feed
@pytest.mark.usefixtures("tables")
def test_a_handler_that_raises_is_seen():
    readmodels.fail_on(Deposited)

    with pytest.raises(ProjectionFailed) as caught:
        given(Account, Deposited(9)).project(Balances)

    assert isinstance(caught.value.__cause__, ValueError)


def test_what_cannot_be_projected_is_refused_without_a_query():
    with pytest.raises(TypeError, match="For a reactor, use react"):
        given(Account).project(Letters)
    with pytest.raises(TypeError, match="For a projection that keeps rows, use project"):
        given(Account).react(Balances)
    with pytest.raises(TypeError, match="reads logs of type account, not of type parcel"):
        given(Parcel, Sent("ada")).project(Balances)
    with pytest.raises(TypeError, match="Name that in its log_types"):
        given(Parcel, Sent("ada")).react(Letters)


# Reactions


@pytest.mark.django_db
@pytest.mark.usefixtures("declared_here")
class TestReactions:
    @pytest.fixture
    def receipts(self) -> type[Reactor]:
        @projection("receipts")
        class Receipts(Reactor):
            log_types = ["account"]
            start = Reactor.NOW

            @handles(Withdrawn)
            def send(self, record: EventRecord) -> str:
                balance = Account.logs.reduce(record.log_id).aggregate.balance
                text = f"{record.event.amount} withdrawn, {balance} left"
                transaction.on_commit(
                    lambda: mail.send_mail("Receipt", text, None, ["a@b.example"])
                )
                Parcel.logs.create(Sent(text))
                return text

            @handles(Opened)
            def greet(self, record: EventRecord) -> None:
                if record.event.owner == "nobody":
                    raise ValueError

        return Receipts

    def test_it_is_seen_what_a_reactor_returned_sent_and_appended(self, receipts):
        mail.send_mail("Earlier", "", None, ["a@b.example"])
        Account.logs.create(Deposited(5), Withdrawn(1))

        did = given(Account, Opened("ada"), Deposited(9), Withdrawn(2)).react(receipts)

        assert did == [None, "2 withdrawn, 7 left"]
        assert [record.event for record in did.handled] == [Opened("ada"), Withdrawn(2)]
        assert [message.subject for message in did.sent] == ["Receipt"]
        assert [record.event for record in did.appended] == [Sent("2 withdrawn, 7 left")]
        assert not Checkpoint.objects.filter(projection="receipts").exists()

    def test_after_a_decision_it_reacts_to_what_was_decided(self, receipts):
        story = given(Account, Opened("ada"), Deposited(9), Withdrawn(2))

        assert story.when(withdraw, 3).react(receipts) == ["3 withdrawn, 4 left"]

    def test_a_handler_that_raises_is_seen(self, receipts):
        with pytest.raises(ProjectionFailed) as caught:
            given(Account, Opened("nobody")).react(receipts)

        assert caught.value.projection == "receipts"
        assert isinstance(caught.value.__cause__, ValueError)

    def test_no_events_are_no_reactions(self, receipts):
        assert given(Account).react(receipts) == []

    def test_async_tests_have_twins(self, receipts):
        assert async_to_sync(given(Account, Opened("ada")).areact)(receipts) == [None]


@pytest.mark.feed
@pytest.mark.django_db
def test_projecting_has_a_twin():
    assert async_to_sync(given(Payment, Requested(5)).aproject)(PaymentSummaries).requested == 5


@pytest.mark.django_db
@pytest.mark.usefixtures("declared_here")
def test_a_publisher_gets_the_records_that_it_would_publish():
    taken: list[EventRecord] = []

    @projection("tells")
    class Tells(Publisher):
        log_types = ["account"]
        events = [Deposited]

        def publish(self, records):
            taken.extend(records)

    found = given(Account, Opened("ada"), Deposited(1), Withdrawn(1)).react(Tells)

    assert [each.event for each in taken] == [Deposited(1)]
    assert found.handled == taken
