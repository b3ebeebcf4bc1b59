"""Catching up: all settled events are applied, each once, by any worker."""

from __future__ import annotations

import threading

import pytest
from django.db import connections

from eventlogs import (
    Feed,
    LogManager,
    LogNotFound,
    Reactor,
    event_context,
    handles,
    projection,
)
from eventlogs.models import Event
from eventlogs.projections import checkpoints, leases
from eventlogs.projections.batches import Advancer
from eventlogs.projections.catch_up import catch_up_projection
from eventlogs.projections.releases import declare_run
from eventlogs.projections.starting import begin, lease_partition
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent, Withdrawn
from tests.processes import PATIENCE
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
from tests.statements import sent
from tests.test_context import TRACE

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
    Account.logs.create(Deposited(9))  # of no projection: passed over

    assert DepositsByOwner.catch_up() == 3
    assert list(Day.objects.values_list("owner", "deposits")) == [("ada", 12)]


class Couriers(Reactor):
    """It appends, as a process manager does."""

    @handles(Opened)
    def send(self, record):
        Parcel.logs.create(Sent(record.event.owner), metadata={"till": 7})
        if record.event.owner == "ada":
            Account.logs.create(Opened(f"sister of {record.event.owner}"))


class WithoutCause(Couriers):
    """A broken version: it appends in the context of its worker."""

    def apply(self, records, using):
        for record in records:
            self.call_handler("send", record)


def appended_by(reactor):
    """Return the ids of three events, and the metadata of what a reactor has appended for them."""
    with event_context(user="7", correlation_id="c", traceparent=TRACE):
        ada = Account.logs.create(Opened("ada"))
    bob = Account.logs.create(Opened("bob"))
    with readmodels.declaring({}):
        projection("couriers")(reactor)
        with event_context(user="a worker", request_id="of a worker"):
            reactor.catch_up()
            reactor.catch_up()
    sister = Account.logs.load(Event.objects.get(data__owner="sister of ada").log.log_id)[0]
    parcels = Event.objects.filter(type="parcel.sent").order_by("position")
    ids = [f"{ada.log_id}:0", f"{bob.log_id}:0", sister.id]
    return ids, [*[each.metadata for each in parcels], sister.metadata]


def test_events_of_a_reactor_have_their_cause_and_its_correlation_id():
    [ada, bob, sister], metadata = appended_by(Couriers)

    flow = {"correlation_id": "c", "traceparent": TRACE}
    assert metadata == [
        {"till": 7, "causation_id": ada, **flow},
        {"till": 7, "causation_id": bob, "correlation_id": bob},
        {"till": 7, "causation_id": sister, **flow},
        {"causation_id": ada, **flow},
    ]


def test_a_reactor_that_appends_in_the_context_of_its_worker_is_detected():
    [ada, *_], metadata = appended_by(WithoutCause)

    assert metadata[-1].get("causation_id") != ada


def test_a_reactor_is_called_for_each_event_in_order():
    Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2))
    _, deposited, withdrawn = Event.objects.order_by("position")

    assert Letters.catch_up() == 2
    assert Letters.catch_up() == 0
    assert readmodels.reactions == [
        ("account.deposited", deposited.position),
        ("account.withdrawn", withdrawn.position),
    ]


def test_an_event_that_fails_holds_only_its_log():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2))
    bob = Account.logs.create(Opened("bob"), Deposited(7))
    ada = Account.logs.append(ada, Deposited(10))
    fail_on(Withdrawn)

    assert Balances.catch_up() == 4
    assert balances() == {ada.log_id: 5, bob.log_id: 7}
    assert Balances.parked() == []  # it is tried again
    assert not Balances.wait_for(ada.position, timeout=0)
    assert Balances.wait_for(bob.position, timeout=0)


def test_an_event_that_keeps_failing_is_parked_and_can_be_retried():
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


def test_rebuilding_one_log_rebuilds_only_its_row():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Opened("bob"), Deposited(7))
    Balances.catch_up()
    Balance.objects.update(balance=99)

    assert Balances.rebuild(ada.log_id) == 2
    assert balances() == {ada.log_id: 5, bob.log_id: 99}
    with pytest.raises(LogNotFound):
        Balances.rebuild(Account.logs.new_id())


def test_concurrent_workers_apply_each_event_once(race):
    states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(10)]

    assert sum(race(*[Balances.catch_up] * 4)) == 20
    assert balances() == replayed(*states)
    assert set(Balance.objects.values_list("seen", flat=True)) == {2}


def test_a_partition_that_another_worker_has_is_waited_for():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    begin(Balances, "default")
    declare_run(Balances, "default")  # as a worker that takes a lease does
    taken = lease_partition(Balances, 0, using="default", owner=leases.new_owner())

    assert catch_up_projection(Balances, wait=False) == 0

    def work():
        assert is_waiting.wait(PATIENCE)
        advancer = Advancer(Balances(), taken, Feed())
        advancer.settle()
        advancer.close()
        connections.close_all()

    other = threading.Thread(target=work)
    with sent("eventlogs_checkpoint", times=20) as is_waiting:
        other.start()
        assert Balances.catch_up() == 0
    assert balances() == replayed(ada)
    other.join()


def test_a_partition_whose_lease_has_expired_is_taken_over():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    begin(Balances, "default")
    assert leases.acquire("balances", 0, using="default", owner="elsewhere:1:x", seconds=0.3)

    assert Balances.catch_up() == 2
    assert balances() == replayed(ada)


def test_partitions_at_different_positions_are_brought_to_one_before_repartitioning(monkeypatch):
    monkeypatch.setattr(Balances, "partitions", 3)
    states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(20)]
    begin(Balances, "default")
    taken = lease_partition(Balances, 1, using="default", owner=leases.new_owner())
    advancer = Advancer(Balances(), taken, Feed())
    advancer.settle()
    advancer.close()
    assert len(set(checkpoints.positions("balances", "default").values())) == 2
    monkeypatch.setattr(Balances, "partitions", 5)

    Balances.catch_up()

    assert len(checkpoints.positions("balances", "default")) == 5
    assert balances() == replayed(*states)
    assert set(Balance.objects.values_list("seen", flat=True)) == {2}


def test_partitions_are_not_changed_while_one_is_leased(monkeypatch):
    states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(5)]
    Balances.catch_up()
    held = lease_partition(Balances, 0, using="default", owner="elsewhere:1:x")
    monkeypatch.setattr(Balances, "partitions", 5)

    assert catch_up_projection(Balances, wait=False) == 0
    assert len(checkpoints.positions("balances", "default")) == 1
    leases.release(held)
    Balances.catch_up()
    assert len(checkpoints.positions("balances", "default")) == 5
    assert balances() == replayed(*states)


def test_events_are_read_from_and_rows_are_kept_in_the_database_that_events_are_written_to(
    second_database, monkeypatch
):
    class Router:
        def db_for_write(self, model, **hints):
            return second_database

        db_for_read = db_for_write

    with connections[second_database].schema_editor() as editor:
        editor.create_model(Balance)
    here = Account.logs.create(Opened("ada"), Deposited(5))
    Balances.catch_up()
    monkeypatch.setattr("django.db.router.routers", [Router()])
    logs = LogManager(Account, using=second_database)
    there = logs.create(Opened("bob"), Deposited(7))

    assert Balances.catch_up() == 2
    assert balances() == {there.log_id: 7}
    assert Balances.rebuild() == 2
    assert Balances.verify(sample=None)
    assert Balances.lag().positions == 0
    monkeypatch.undo()
    assert balances() == {here.log_id: 5}
