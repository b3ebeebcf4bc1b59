"""Catching up: all that is settled is applied, each event once, by whoever is at it."""

from __future__ import annotations

import pytest

from eventlogs import LogNotFound
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent, Withdrawn
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    Day,
    DepositsByOwner,
    Letters,
    Reduced,
    ReducedBalances,
    balances,
    fail_on,
    replayed,
    until,
)

pytestmark = pytest.mark.usefixtures("tables")


@pytest.mark.parametrize(("each", "model"), [(Balances, Balance), (ReducedBalances, Reduced)])
def test_catching_up_makes_a_row_for_each_log(each, model):
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2))
    bob = Account.logs.create(Opened("bob"))
    Parcel.logs.create(Sent("here"))

    assert each.catch_up() == 4
    assert balances(model) == {ada.log_id: 3, bob.log_id: 0}
    assert model.objects.get(pk=str(ada.log_id)).owner == "ada"

    Account.logs.append(ada, Deposited(10))

    assert each.catch_up() == 1
    assert each.catch_up() == 0
    assert balances(model) == replayed(ada, bob)


def test_a_handler_may_delete_its_row():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    Balances.catch_up()

    ada = Account.logs.append(ada, Noted("close"))
    Balances.catch_up()
    assert balances() == {}

    Account.logs.append(ada, Deposited(2), Noted("close"), Deposited(3))
    Balances.catch_up()
    assert balances() == {ada.log_id: 3}


def test_events_of_several_logs_may_change_one_row():
    Account.logs.create(Deposited(5), metadata={"owner": "ada"})
    Account.logs.create(Deposited(7), metadata={"owner": "ada"})
    Account.logs.create(Deposited(9))  # of nobody: passed over

    assert DepositsByOwner.catch_up() == 3
    assert list(Day.objects.values_list("owner", "deposits")) == [("ada", 12)]


def test_a_reactor_is_called_for_each_event_in_order():
    state = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2))

    assert Letters.catch_up() == 2
    assert Letters.catch_up() == 0
    assert readmodels.reactions == [
        ("account.deposited", state.position - 1),
        ("account.withdrawn", state.position),
    ]


def test_an_event_that_fails_holds_its_log_alone():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2))
    bob = Account.logs.create(Opened("bob"), Deposited(7))
    ada = Account.logs.append(ada, Deposited(10))
    fail_on(Withdrawn)

    assert Balances.catch_up() == 4
    assert balances() == {ada.log_id: 5, bob.log_id: 7}
    assert Balances.parked() == []  # it is tried again
    assert not Balances.wait_for(ada.position, timeout=0)
    assert Balances.wait_for(bob.position, timeout=0)


def test_an_event_that_goes_on_failing_is_parked_and_can_be_retried():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2), Deposited(10))
    fail_on(Withdrawn)
    until(lambda: (Balances.catch_up(), Balances.parked())[1])
    [parked] = Balances.parked()
    assert (parked.log_id, parked.index, parked.attempts) == (ada.log_id, 2, 3)
    assert (parked.error, parked.is_parked) == ("ValueError", True)
    assert Balances.catch_up() == 0

    readmodels.reset()

    assert Balances.retry(ada.log_id) == 1
    assert Balances.catch_up() == 2
    assert balances() == replayed(ada)
    assert Balances.parked() == []
    assert Balances.wait_for(ada.position, timeout=0)


def test_an_event_that_is_skipped_stays_skipped():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2), Deposited(1))
    fail_on(Withdrawn)
    Balances.catch_up()

    assert Balances.skip(ada.log_id)
    assert not Balances.skip(Account.logs.new_id())
    assert Balances.catch_up() == 1
    assert balances() == {ada.log_id: 6}
    assert Balances.verify(sample=None)

    Balances.rebuild()
    assert balances() == {ada.log_id: 6}


def test_a_rebuild_of_one_log_makes_its_row_anew():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"), Deposited(7))
    Balances.catch_up()
    Balance.objects.update(balance=99)

    assert Balances.rebuild(ada.log_id) == 2
    assert balances() == {ada.log_id: 5, bob.log_id: 99}
    with pytest.raises(LogNotFound):
        Balances.rebuild(Account.logs.new_id())


def test_many_at_once_apply_each_event_once(race):
    states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(10)]

    assert sum(race(*[Balances.catch_up] * 4)) == 20
    assert balances() == replayed(*states)
    assert set(Balance.objects.values_list("seen", flat=True)) == {2}
