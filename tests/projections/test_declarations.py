"""Projections: read models whose rows have each event exactly once."""

from __future__ import annotations

import os
import signal

import pytest
from django.core.exceptions import ValidationError
from django.db import connection, connections, models, transaction

from eventlogs import (
    Feed,
    LogId,
    LogIdField,
    Projection,
    ProjectionFailed,
    ReductionProjection,
    RegistrationError,
    handles,
    projection,
)
from eventlogs.projections import checkpoints
from tests.accounts import Account, Deposited, Opened, Parcel, Sent, Withdrawn


class Balance(models.Model):
    """A row for each account."""

    log_id = LogIdField(primary_key=True)
    owner = models.CharField(max_length=50, default="", db_index=True)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_projections"

    def __str__(self):
        return str(self.log_id)


@projection("balances", version=1)
class Balances(Projection):
    log_types = ["account"]
    model = Balance
    mode = Projection.ASYNC

    @handles(Opened)
    def opened(self, row, record):
        row.owner = record.event.owner

    @handles(Deposited)
    def deposited(self, row, record):
        before_handling(record)
        row.balance += record.event.amount

    @handles(Withdrawn)
    def withdrawn(self, row, record):
        row.balance -= record.event.amount


@projection("reduced-balances")
class ReducedBalances(ReductionProjection):
    aggregate = Account
    model = Balance


def before_handling(record):
    """Do nothing; tests replace it."""


@pytest.fixture(autouse=True)
def _table(transactional_db):
    with connection.schema_editor() as editor:
        editor.create_model(Balance)
    yield
    with connection.schema_editor() as editor:
        editor.delete_model(Balance)


def balances():
    return dict(Balance.objects.values_list("log_id", "balance"))


def replayed(*states):
    return {state.log_id: Account.logs.reduce(state.log_id).aggregate.balance for state in states}


@pytest.mark.parametrize("each", [Balances, ReducedBalances])
def test_catching_up_makes_a_row_for_each_log(each):
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2))
    bob = Account.logs.create(Opened("bob"))
    Parcel.logs.create(Sent("here"))

    assert each.catch_up() == 4
    assert balances() == {ada.log_id: 3, bob.log_id: 0}
    assert Balance.objects.get(pk=str(ada.log_id)).owner == "ada"

    Account.logs.append(ada.log_id, Deposited(10), expected_version=3)

    assert each.catch_up() == 1
    assert each.catch_up() == 0
    assert balances() == {ada.log_id: 13, bob.log_id: 0}


def test_a_failing_handler_leaves_rows_and_checkpoint_as_they_were(monkeypatch):
    state = Account.logs.create(Opened("ada"), Deposited(5))

    def fail(record):
        raise RuntimeError("4111-1111")

    with monkeypatch.context() as patch:
        patch.setitem(globals(), "before_handling", fail)
        with pytest.raises(ProjectionFailed) as caught:
            Balances.catch_up()

    assert (caught.value.log_id, caught.value.position) == (state.log_id, state.position)
    assert "4111" not in str(caught.value)
    assert balances() == {}
    assert Balances.catch_up() == 2
    assert balances() == {state.log_id: 5}


def killed_in(call):
    """Make a call in a process of its own, and return the signal that ended it."""
    connections.close_all()
    child = os.fork()
    if child == 0:
        try:
            call()
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def kill_me(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def catch_up_killed_before_the_checkpoint_is_moved():
    checkpoints.Checkpoint.save = kill_me
    Balances.catch_up()


def catch_up_killed_in_a_handler():
    globals()["before_handling"] = kill_me
    Balances.catch_up()


def catch_up_killed_before_the_commit():
    with transaction.atomic():
        Balances.catch_up()
        kill_me()


def catch_up_killed_after_the_commit():
    Balances.catch_up()
    kill_me()


@pytest.mark.parametrize(
    "step",
    [
        catch_up_killed_in_a_handler,
        catch_up_killed_before_the_checkpoint_is_moved,
        catch_up_killed_before_the_commit,
        catch_up_killed_after_the_commit,
    ],
)
def test_a_kill_at_any_step_changes_nothing_in_the_end(step):
    state = Account.logs.create(Opened("ada"), Deposited(5), Deposited(7))

    assert killed_in(step) == signal.SIGKILL

    Balances.catch_up()
    assert balances() == replayed(state)


def test_a_twin_that_moves_the_checkpoint_in_a_transaction_of_its_own_counts_twice():
    def broken():
        feed = Feed()
        records = list(feed.records(feed.read_rows(0, limit=100).rows))
        for row in Balances()._rows(records, "default"):
            row.save(force_insert=True)
        kill_me()  # before the checkpoint's own transaction

    state = Account.logs.create(Opened("ada"), Deposited(5))

    assert killed_in(broken) == signal.SIGKILL

    Balances.catch_up()
    assert balances() == {state.log_id: 10}
    assert balances() != replayed(state)


def test_runners_at_once_apply_each_event_once(race):
    states = [Account.logs.create(Opened("ada"), Deposited(5)) for _ in range(10)]

    assert sorted(race(*[Balances.catch_up] * 4)) == [0, 0, 0, 20]
    assert balances() == replayed(*states)


@pytest.mark.parametrize("each", [Balances, ReducedBalances])
def test_a_rebuild_puts_wrong_rows_right(each):
    state = Account.logs.create(Opened("ada"), Deposited(5))
    each.catch_up()
    Balance.objects.update(balance=99)
    Balance.objects.create(pk=LogId.new("account"))

    assert each.rebuild() == 2
    assert balances() == replayed(state)
    assert each.catch_up() == 0


def test_lag_and_waiting_tell_how_far_the_rows_are():
    assert Balances.lag() == (0, Balances.lag().age * 0)
    state = Account.logs.create(Opened("ada"))

    assert Balances.lag().positions > 0
    assert not Balances.wait_for(state.position, timeout=0)
    Balances.catch_up()
    assert Balances.lag().positions == 0
    assert Balances.wait_for(state.position, timeout=0)


def test_a_name_is_one_projection_s():
    with pytest.raises(RegistrationError, match="'balances' is Balances already"):

        @projection("balances")
        class Other(Projection):
            model = Balance


def test_an_undecorated_projection_says_what_is_missing():
    class Nameless(Projection):
        model = Balance

    with pytest.raises(RegistrationError, match="decorate it"):
        Nameless.catch_up()


def test_a_log_id_field_holds_log_ids_and_takes_their_text():
    log_id = LogId.new("account")
    Balance(pk=str(log_id)).save()

    row = Balance.objects.get(pk=log_id)

    assert row.pk == log_id
    row.full_clean(validate_unique=False, exclude=["owner"])
    with pytest.raises(ValidationError, match="not a log id"):
        LogIdField().clean("account", None)
