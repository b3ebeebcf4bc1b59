"""Declarations of projections are checked when the class is created, and then take effect."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connections

from eventlogs import (
    Projection,
    Reactor,
    ReductionProjection,
    RegistrationError,
    handles,
    projection,
)
from eventlogs.conf import MAX_POSITION, MAX_PROJECTION_NAME_LENGTH
from eventlogs.events import used_keys
from eventlogs.feed.reader import HEARTBEAT
from eventlogs.projections import declarations, kinds
from eventlogs.projections.base import projections
from eventlogs.projections.lags import Lag
from eventlogs.stores import participants
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent, Withdrawn
from tests.processes import PATIENCE
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    Inlined,
    InlinedBalances,
    Letters,
    Reduced,
    ReducedBalances,
    balances,
    fail_on,
    replayed,
)
from tests.statements import sent


@pytest.fixture(autouse=True)
def _scratch():
    registered = dict(participants.registered)
    with readmodels.declaring({}):
        yield
    participants.registered.clear()
    participants.registered.update(registered)


# Names


def test_a_name_belongs_to_one_class():
    @projection("taken")
    class One(Projection):
        model = Balance

    with pytest.raises(RegistrationError, match=r"'taken' is .*One already"):

        @projection("taken")
        class Other(Projection):
            model = Balance


def test_a_class_has_one_name():
    @projection("one")
    class Each(Projection):
        model = Inlined
        mode = Projection.INLINE

    with pytest.raises(RegistrationError, match="Each is projection 'one' already"):
        projection("another")(Each)

    assert projection("one", version=2)(Each).version == 2
    assert (projections, Each.name) == ({"one": Each}, "one")


def test_a_module_that_is_loaded_again_declares_its_classes_again():
    for _ in range(2):

        @projection("again")
        class Again(Projection):
            model = Balance

    assert projections["again"] is Again


def test_an_undecorated_projection_says_what_is_missing():
    class Nameless(Projection):
        model = Balance

    for call in (Nameless.catch_up, Nameless.lag, Nameless.rebuild, Nameless.parked):
        with pytest.raises(RegistrationError, match="Put @projection"):
            call()


@pytest.mark.parametrize("name", ["", "x" * (MAX_PROJECTION_NAME_LENGTH + 1)])
def test_a_name_fits_into_its_column(name):
    with pytest.raises(RegistrationError, match="1 to 100 characters"):
        projection(name)(type("Each", (Projection,), {"model": Balance}))


def test_the_name_of_the_heartbeat_is_taken():
    with pytest.raises(RegistrationError) as caught:
        projection(HEARTBEAT)(type("Each", (Projection,), {"model": Balance}))

    assert str(caught.value) == (
        "'eventlogs:heartbeat' is the checkpoint of Feed.heartbeat(): rename it."
    )


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.5, 2**31])
def test_a_version_must_be_an_int_from_1(version):
    with pytest.raises(RegistrationError, match="version must be an int"):
        projection("each", version=version)(type("Each", (Projection,), {"model": Balance}))


# Classes that cannot work


@pytest.mark.parametrize(
    ("base", "attributes", "message"),
    [
        (Projection, {}, "needs model"),
        (ReductionProjection, {"model": Reduced}, "needs aggregate"),
        (Projection, {"model": Balance, "mode": "both"}, "mode must be"),
        (Projection, {"model": Balance, "partitions": 0}, "partitions is 0. It must be"),
        (Projection, {"model": Balance, "partitions": 257}, "partitions is 257. It must be"),
        (Projection, {"model": Balance, "batch_size": 0}, "batch_size is 0. It must be"),
        (Projection, {"model": Balance, "batch_size": 10_001}, "batch_size is 10001. It must be"),
        (Projection, {"model": Balance, "timeout": 0}, "timeout must be positive"),
        (Projection, {"model": Balance, "max_attempts": 0}, "max_attempts from 1"),
        (Projection, {"model": Balance, "backoff": -1}, "backoff"),
        (Projection, {"model": Balance, "on": handles(int)(lambda *_: None)}, "no event"),
        (Projection, {"model": Balance, "key": len, "partitions": 2}, "partitions = 1"),
        (Projection, {"model": Balance, "key": len, "mode": "inline"}, "must be Projection.ASYNC"),
        (Reactor, {"mode": "inline"}, "cannot be inline"),
        (Reactor, {"start": "yesterday"}, "start must be"),
    ],
)
def test_a_class_that_cannot_work_is_refused(base, attributes, message):
    with pytest.raises(RegistrationError, match=message):
        projection("each")(type("Each", (base,), attributes))
    assert projections == {}


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (Projection, "parked"),
        (Projection, "retry"),
        (Projection, "delete"),
        (Projection, "version"),
        (Reactor, "start"),
    ],
)
def test_a_handler_does_not_replace_an_operation(base, name):
    handler = handles(Deposited)(lambda *_: None)
    with pytest.raises(RegistrationError, match=f"{name} has another purpose"):
        projection("each")(type("Each", (base,), {"model": Balance, name: handler}))
    assert projections == {}


def test_an_event_that_two_methods_handle_is_refused():
    with pytest.raises(RegistrationError, match=r"handles Deposited twice, by one\(\) and two\(\)"):

        class Each(Projection):
            model = Balance

            @handles(Deposited)
            def one(self, row, record): ...

            @handles(Withdrawn, Deposited)
            def two(self, row, record): ...


def test_handlers_are_inherited_overridden_and_mixed_in():
    class Mixin:
        @handles(Withdrawn)
        def withdrawn(self, row, record): ...

    class Base(Projection):
        model = Balance

        @handles(Deposited, Opened)
        def both(self, row, record): ...

    class Each(Mixin, Base):
        @handles(Opened)
        def opened(self, row, record): ...

    assert Each.event_handlers == {Deposited: "both", Opened: "opened", Withdrawn: "withdrawn"}
    assert Base.event_handlers == {Deposited: "both", Opened: "both"}
    assert set(Each.event_types_read()) == {
        "account.deposited",
        "account.opened",
        "account.withdrawn",
    }


def test_an_inline_projection_takes_part_in_appends_until_it_is_declared_async():
    def declare(mode):
        projection("each")(type("Each", (Projection,), {"model": Inlined, "mode": mode}))

    declare("inline")
    assert "each" in participants.registered
    declare("async")
    assert "each" not in participants.registered


def test_rows_in_another_database_than_the_events_are_refused(monkeypatch):
    class Router:
        def db_for_write(self, model, **hints):
            return "elsewhere" if model is Balance else None

    monkeypatch.setattr("django.db.router.routers", [Router()])
    with pytest.raises(RegistrationError, match="in another database"):
        Balances.catch_up()


def test_the_path_of_the_first_layout_has_the_same_names():
    from_there = [getattr(declarations, name) for name in declarations.__all__]

    assert from_there == [Projection, Reactor, ReductionProjection, handles, projection]


# Behaviour


@pytest.mark.usefixtures("tables")
class TestAtWork:
    def test_lag_and_wait_for_show_how_far_the_rows_are(self):
        assert Balances.lag() == Lag(0, timedelta())
        assert not Balances.wait_for(1, timeout=0)
        state = Account.logs.create(Opened("ada"))
        Parcel.logs.create(Sent("here"))

        lag = Balances.lag()
        assert (lag.positions, lag.at_least) == (1, False)
        assert timedelta() < lag.age < timedelta(minutes=1)
        assert not Balances.wait_for(state.position, timeout=0)

        Balances.catch_up()
        assert Balances.lag() == Lag(0, timedelta())
        assert Balances.wait_for(state.position, timeout=0)

    def test_events_of_other_log_types_are_no_lag(self):
        Parcel.logs.create(Sent("here"))
        assert Balances.lag() == Lag(0, timedelta())

    def test_waiting_ends_when_another_process_has_applied_the_event(self):
        state = Account.logs.create(Opened("ada"))

        def catch_up_later():
            assert is_waiting.wait(PATIENCE)
            Balances.catch_up()
            connections.close_all()

        other = threading.Thread(target=catch_up_later)
        with sent("eventlogs_checkpoint", times=3) as is_waiting:
            other.start()
            assert Balances.wait_for(state.position, timeout=PATIENCE)
        other.join()

    def test_waiting_ends_at_its_timeout(self):
        begun = time.monotonic()
        assert not Balances.wait_for(MAX_POSITION, timeout=0.1)  # not given out yet
        assert 0.1 <= time.monotonic() - begun < 1

    def test_an_inline_row_is_not_waited_for(self, inlined):
        state = Account.logs.create(Deposited(5))
        assert InlinedBalances.wait_for(state.position, timeout=0)

    def test_an_inline_row_that_lacks_events_is_waited_for(self, request):
        state = Account.logs.create(Deposited(5))
        request.getfixturevalue("inlined")
        assert not InlinedBalances.wait_for(state.position, timeout=0)
        InlinedBalances.catch_up()
        assert InlinedBalances.wait_for(state.position, timeout=0)

    def test_a_log_id_may_be_given_as_text(self):
        ada = Account.logs.create(Opened("ada"), Withdrawn(2))
        fail_on(Withdrawn)
        Balances.catch_up()

        assert Balances.retry(str(ada.log_id)) == 1
        assert Balances.skip(str(ada.log_id))
        assert Balances.rebuild(str(ada.log_id)) == 1
        assert Balances.retry() == 0

    def test_a_handler_may_delete_a_row_that_is_new(self):
        Account.logs.create(Opened("ada"), Noted("close"))
        ada = Account.logs.create(Opened("ada"), Noted("close"), Deposited(1))

        Balances.catch_up()

        assert balances() == {ada.log_id: 1}
        assert Balances.verify(sample=None)

    def test_a_reactor_may_begin_with_future_events(self, monkeypatch):
        monkeypatch.setattr(Letters, "start", Reactor.NOW)
        Account.logs.create(Deposited(1))
        assert Letters.catch_up() == 0
        state = Account.logs.create(Deposited(2))

        assert Letters.catch_up() == 1
        assert readmodels.reactions == [("account.deposited", state.position)]

    @pytest.mark.parametrize("form", ["mapping", "row", "none"])
    def test_an_aggregate_becomes_a_row_as_its_projection_says(self, monkeypatch, form):
        def to_row(self, reduction):
            balance = reduction.aggregate.balance * 2
            if form == "none" and balance > 20:
                return None
            return Reduced(balance=balance) if form == "row" else {"balance": balance}

        monkeypatch.setattr(ReducedBalances, "to_row", to_row)
        ada = Account.logs.create(Opened("ada"), Deposited(5))
        ReducedBalances.catch_up()
        assert balances(Reduced) == {ada.log_id: 10}

        ada = Account.logs.append(ada, Deposited(100))
        ReducedBalances.catch_up()
        assert balances(Reduced) == ({} if form == "none" else {ada.log_id: 210})
        assert ReducedBalances.verify(sample=None)
        ReducedBalances.rebuild()
        assert balances(Reduced) == ({} if form == "none" else {ada.log_id: 210})

    def test_a_worker_keeps_a_bounded_number_of_aggregates(self, monkeypatch):
        monkeypatch.setattr(kinds, "MAX_REDUCTIONS", 2)
        states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(5)]
        each = ReducedBalances()
        records = [record for state in states for record in Account.logs.stream(state.log_id)]
        with used_keys.Noting():  # as a worker does
            each.change(records, "default")
        assert len(each._reductions) == 2
        assert balances(Reduced) == replayed(*states)

    @pytest.mark.parametrize("is_noting", [True, False])
    def test_a_worker_keeps_no_aggregates_of_personal_data(self, is_noting):
        state = Account.logs.create(Opened("ada"), Deposited(5))
        each, key_id = ReducedBalances(), uuid4()
        records = list(Account.logs.stream(state.log_id))
        with used_keys.Noting() if is_noting else nullcontext():
            used_keys.note([key_id])  # as decoding the records has done
            each.change(records, "default")
        assert len(each._reductions) == 0
        assert balances(Reduced) == replayed(state)


def test_reactors_have_no_rows():
    assert not hasattr(Reactor, "rebuild")
    assert not hasattr(Reactor, "verify")
