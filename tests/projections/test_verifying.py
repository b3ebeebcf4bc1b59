"""Verifying: rows that are wrong are found, and those that are merely behind are not."""

from __future__ import annotations

from uuid import UUID

import pytest

from eventlogs import LogId, ProjectionUnavailable, scans
from eventlogs.codec import EncodedEvent
from eventlogs.models import AppliedVersion, Checkpoint, EventLog
from eventlogs.projections import verifying
from eventlogs.projections.catching_up import begin
from eventlogs.projections.verifying import Difference, Failure, Verification
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent, Withdrawn
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    DepositsByOwner,
    Inlined,
    InlinedBalances,
    Reduced,
    ReducedBalances,
    balances,
    fail_on,
    replayed,
)

pytestmark = pytest.mark.usefixtures("tables")

EACH = pytest.mark.parametrize("each", [Balances, ReducedBalances])


def some(count=5):
    return [Account.logs.create(Opened("ada"), Deposited(number)) for number in range(count)]


def found(verification):
    return {each.log_id: each.fields for each in verification.differences}


@EACH
def test_rows_that_are_right_are_found_to_be(each):
    some()
    Parcel.logs.create(Sent("here"))
    each.catch_up()

    verification = each.verify(sample=None)

    assert verification == Verification(5, ())
    assert verification


@EACH
def test_rows_that_are_wrong_missing_or_surplus_are_found(each):
    states = some()
    each.catch_up()
    stray = LogId.new("account")
    rows = each.model.objects
    rows.filter(pk=states[0].log_id).update(balance=99, owner="eve")
    rows.filter(pk=states[1].log_id).delete()
    rows.create(pk=stray)

    verification = each.verify(sample=None)

    assert not verification
    assert found(verification) == {
        states[0].log_id: ("owner", "balance"),
        states[1].log_id: ("the row",),
        stray: ("the row",),
    }
    assert not any(each.is_repaired for each in verification.differences)
    assert stray in balances(each.model)


@EACH
def test_what_differs_can_be_put_right(each):
    states = some()
    each.catch_up()
    rows = each.model.objects
    rows.filter(pk=states[0].log_id).update(balance=99)
    rows.filter(pk=states[1].log_id).delete()
    rows.create(pk=LogId.new("account"))

    verification = each.verify(sample=None, repair=True)

    assert verification
    assert len(verification.differences) == 3
    assert balances(each.model) == replayed(*states)
    assert each.verify(sample=None) == Verification(5, ())
    states[0] = Account.logs.append(states[0], Deposited(5))
    each.catch_up()
    assert balances(each.model) == replayed(*states)


@EACH
def test_what_is_yet_to_be_applied_is_no_difference(each):
    states = some()
    each.catch_up()
    states[0] = Account.logs.append(states[0], Deposited(5))
    some(2)

    assert each.verify(sample=None, repair=True) == Verification(7, ())
    each.catch_up()
    assert balances(each.model)[states[0].log_id] == 5


def test_what_waits_behind_an_event_that_failed_is_no_difference():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(1), Deposited(2))
    fail_on(Withdrawn)
    Balances.catch_up()
    readmodels.reset()

    assert Balances.verify(sample=None, repair=True) == Verification(1, (), held=1)
    assert balances() == {ada.log_id: 5}


def test_before_the_first_run_there_is_nothing_to_be_wrong():
    some()
    assert Balances.verify(sample=None) == Verification(5, ())
    assert Balances.verify() == Verification(5, ())


def test_a_sample_is_of_so_many_logs_at_most_and_finds_what_it_meets():
    states = some(30)
    Balances.catch_up()
    Balance.objects.update(balance=-1)

    verification = Balances.verify(sample=10)

    assert 1 <= verification.checked <= 10
    assert len(verification.differences) == verification.checked
    assert set(found(verification)) <= {state.log_id for state in states}
    assert Balances.verify(sample=30).checked == 30
    assert Balances.verify(sample=0) == Verification(0, ())


def test_rows_that_several_logs_share_cannot_be_compared():
    with pytest.raises(ProjectionUnavailable) as caught:
        DepositsByOwner.verify()
    assert caught.value.reason == "shared rows"


@EACH
def test_what_a_handler_raises_is_listed_and_the_other_logs_are_compared(each, monkeypatch):
    states = some()
    bad = Account.logs.create(Opened("eve"), Noted("broken"), Deposited(1))
    each.catch_up()
    each.model.objects.filter(pk=states[3].log_id).update(balance=99)
    monkeypatch.setattr(Account, "apply", apply_or_fail)
    fail_on(Noted)

    verification = each.verify(sample=None, repair=True)

    assert not verification
    assert verification.checked == 6
    assert verification.failed == (Failure(bad.log_id, "ValueError", bad.position - 1),)
    assert found(verification) == {states[3].log_id: ("balance",)}
    assert balances(each.model)[states[3].log_id] == 3
    assert "4111" not in repr(verification)
    monkeypatch.undo()
    readmodels.reset()
    assert each.verify(sample=None) == Verification(6, ())


def apply_or_fail(self, record):
    if isinstance(record.event, Noted):
        raise ValueError("4111-1111")
    apply(self, record)


apply = Account.apply


def test_an_event_that_cannot_be_decoded_is_listed():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bad = EncodedEvent("account.deposited", 1, '{"amount": "secret"}')
    state = EventLog.objects.append(ada.log_id, [bad], expected_version=2)
    some(2)
    Checkpoint.objects.all().delete()
    begin(Balances, "default")
    Checkpoint.objects.update(position=state.position)  # as if code of before had applied it

    [failure] = Balances.verify(sample=None).failed

    assert failure == Failure(ada.log_id, "UndecodableEvent", state.position)


def test_an_inline_row_is_compared_at_the_version_that_it_is_at(request):
    states = some()
    request.getfixturevalue("inlined")
    states[0] = Account.logs.append(states[0], Deposited(10))
    assert InlinedBalances.verify(sample=None)
    assert balances(Inlined) == {states[0].log_id: 10}

    InlinedBalances.catch_up()
    assert InlinedBalances.verify(sample=None)
    Inlined.objects.filter(pk=states[0].log_id).update(balance=99)
    Inlined.objects.filter(pk=states[1].log_id).delete()
    assert len(InlinedBalances.verify(sample=None).differences) == 2
    assert InlinedBalances.verify(sample=None, repair=True)
    assert balances(Inlined) == replayed(*states)
    states[1] = Account.logs.append(states[1], Deposited(1))
    assert balances(Inlined) == replayed(*states)
    assert set(AppliedVersion.objects.values_list("version", flat=True)) == {2, 3}


@pytest.mark.postgresql
def test_a_row_that_changes_while_it_is_looked_at_is_looked_at_again(monkeypatch, elsewhere):
    monkeypatch.setattr(scans, "PAGE", 1)  # all logs are long ones
    states = some(3)
    Balances.catch_up()
    states = [Account.logs.append(state, Deposited(7)) for state in states]
    replay, replays = verifying.replay, []

    def replay_late(*args, **options):
        answer = replay(*args, **options)
        if not replays:
            replays.append(1)
            elsewhere(Balances.catch_up)
        return answer

    compared = []
    monkeypatch.setattr(verifying, "replay", replay_late)
    monkeypatch.setattr(
        verifying,
        "differences",
        lambda model, stored, wanted, using: (
            compared.append(1)
            or real(model, Balance.objects.filter(pk=stored.pk).first(), wanted, using)
        ),
    )
    assert Balances.verify(sample=None, repair=True) == Verification(3, ())
    assert len(compared) == 4
    assert balances() == replayed(*states)


real = verifying.differences


@pytest.mark.parametrize("page", [1, 2_000])
def test_a_twin_that_compares_with_the_whole_log_takes_what_is_behind_for_wrong(monkeypatch, page):
    monkeypatch.setattr(scans, "PAGE", page)
    records = verifying.records

    def all_records(projection, log_id, using, *, upto):
        return records(projection, log_id, using, upto=verifying.EVERYTHING)

    monkeypatch.setattr(verifying, "records", all_records)
    monkeypatch.setattr(verifying.Moment, "in_row", lambda self, log: (self.events[log], False))
    with pytest.raises(AssertionError):
        test_what_is_yet_to_be_applied_is_no_difference(Balances)


def test_a_difference_shows_names_and_no_values():
    states = some(1)
    Balances.catch_up()
    Balance.objects.update(balance=4111)

    [difference] = Balances.verify(sample=None).differences
    assert difference == Difference(states[0].log_id, ("balance",), is_repaired=False)
    assert "4111" not in repr(difference)
    assert balances(Reduced) == {}


def test_a_sample_of_logs_that_were_made_all_at_once_is_as_large_as_was_asked_for():
    # A moment at random is behind the ids of nearly all.
    clump = LogId.new("account").uuid.int >> 20 << 20
    for number in range(300):
        log_id = LogId("account", UUID(int=clump + number))
        Account.logs.create(Opened("ada"), log_id=log_id)
    Account.logs.create(Opened("much later"), log_id=LogId("account", UUID(int=clump + (1 << 90))))
    Balances.catch_up()

    checked = [Balances.verify(sample=20).checked for _ in range(3)]

    assert checked == [20, 20, 20]
