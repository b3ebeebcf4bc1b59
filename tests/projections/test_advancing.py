"""Advancing a partition: each event has its effect once, whatever fails in the middle."""

from __future__ import annotations

import pytest

from eventlogs.feed import Feed
from eventlogs.models import ParkedEvent
from eventlogs.projections import leases
from eventlogs.projections.advancing import Advancer
from eventlogs.projections.catching_up import begin, lease
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    balances,
    replayed,
)

pytestmark = pytest.mark.usefixtures("tables")


def seen():
    return dict(Balance.objects.values_list("log_id", "seen"))


def advancer(each=Balances, **options):
    begin(each, "default")
    taken = lease(each, 0, using="default", owner=leases.new_owner())
    assert taken is not None
    return Advancer(each(), taken, Feed(), **options)


def waiting(each=Balances):
    return list(
        ParkedEvent.objects.filter(projection=each.name)
        .order_by("position")
        .values_list("log_id", "index", "attempts", "error")
    )


# Interrupted in the middle


def test_a_batch_that_is_interrupted_after_a_failure_is_not_applied_again():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Withdrawn(1))
    eve = Account.logs.create(Opened("eve"), Deposited(7))

    def before(record):
        if isinstance(record.event, Withdrawn):
            raise ValueError
        if record.log_id == eve.log_id:
            raise KeyboardInterrupt

    readmodels.behaviour["before"] = before
    with pytest.raises(KeyboardInterrupt):
        Balances.catch_up()
    assert balances() == {ada.log_id: 5}
    readmodels.reset()

    Balances.retry()
    Balances.catch_up()

    assert balances() == replayed(ada, bob, eve)
    assert seen() == {ada.log_id: 2, bob.log_id: 1, eve.log_id: 2}
