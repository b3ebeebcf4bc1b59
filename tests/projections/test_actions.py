"""Actions on a projection are recorded in the transaction of their change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import transaction

from eventlogs import LogId, ProjectionFailed, ProjectionUnavailable
from eventlogs.models import ParkedEvent, ProjectionAction, ProjectionState, SkippedEvent
from eventlogs.projections import actions, workers
from eventlogs.projections.base import projections
from tests.accounts import Account, Deposited, Opened
from tests.projections import readmodels
from tests.projections.readmodels import Balances, InlinedBalances, Letters

pytestmark = pytest.mark.usefixtures("tables")


def done() -> list[tuple]:
    """Return the recorded actions, oldest first."""
    rows = ProjectionAction.objects.order_by("id")
    return list(rows.values_list("projection", "action", "by", "log_id", "index", "count"))


@contextmanager
def failing_on(amount: int) -> Iterator[None]:
    """Let handlers raise on the deposit of an amount."""

    def before(record):
        if record.event == Deposited(amount):
            raise ValueError("4111-1111")

    readmodels.behaviour["before"] = before
    yield
    readmodels.reset()


@pytest.fixture
def parked(monkeypatch):
    """An account whose second event is parked."""
    state = Account.logs.create(Opened("ada"), Deposited(13), Deposited(1))
    monkeypatch.setattr(Balances, "max_attempts", 1)
    with failing_on(13):
        Balances.catch_up()
    assert ParkedEvent.objects.get().is_parked
    return state


@pytest.mark.feed
def test_a_retry_is_recorded_with_its_user_and_time(parked):
    Balances.retry(parked.log_id, by="grace")
    Balances.retry()

    assert done() == [
        ("balances", "retried", "grace", parked.log_id, None, 1),
        ("balances", "retried", "", None, None, 1),
    ]
    assert ProjectionAction.objects.first().at is not None


@pytest.mark.feed
def test_an_action_without_effect_is_not_recorded(parked):
    assert Balances.retry(LogId.new("account")) == 0
    assert not Balances.skip(LogId.new("account"))

    assert done() == []


@pytest.mark.feed
def test_a_skip_is_recorded_with_its_event_and_error(parked):
    Balances.skip(parked.log_id, by="grace")

    assert done() == [("balances", "skipped", "grace", parked.log_id, 1, 1)]
    assert ProjectionAction.objects.get().note == "account.deposited: ValueError"


@pytest.mark.feed
def test_a_rollback_undoes_an_action_and_its_record(parked):
    with transaction.atomic():
        Balances.skip(parked.log_id)
        Balances.request_rebuild()
        transaction.set_rollback(True)

    assert done() == []
    assert not SkippedEvent.objects.exists()
    assert ProjectionState.objects.get(name="balances").rebuild_requested_at is None


@pytest.mark.feed
def test_events_that_a_reactor_passes_over_are_recorded():
    Account.logs.create(Opened("ada"), Deposited(1))

    Letters.pass_over(dry_run=True, by="grace")
    assert done() == []
    Letters.pass_over(by="grace")

    [entry] = done()
    assert entry[:3] == ("letters", "passed over", "grace")
    assert entry[5] > 0


@pytest.mark.feed
def test_a_rebuild_is_recorded_at_its_end_with_its_time_and_its_events():
    Account.logs.create(Opened("ada"), Deposited(1))

    Balances.rebuild(by="grace")

    assert done() == [("balances", "rebuilt", "grace", None, None, 2)]
    entry = ProjectionAction.objects.get()
    assert entry.seconds > 0
    assert entry.note == ""


@pytest.mark.feed
def test_a_rebuild_by_a_worker_is_recorded_for_the_user_who_requested_it(monkeypatch):
    Account.logs.create(Opened("ada"), Deposited(1))
    monkeypatch.setitem(projections, "balances", Balances)

    Balances.request_rebuild(by="grace")
    workers.run(["balances"])

    assert [entry[1:3] for entry in done()] == [
        ("rebuild requested", "grace"),
        ("rebuilt", "grace"),
    ]


@pytest.mark.feed
def test_a_rebuild_that_fails_is_recorded_with_the_cause_and_without_data():
    Account.logs.create(Opened("ada"), Deposited(13))

    with failing_on(13), pytest.raises(ProjectionFailed):
        Balances.rebuild(by="grace")

    [entry] = ProjectionAction.objects.all()
    assert (entry.action, entry.by) == ("rebuild failed", "grace")
    assert "could not apply the event at position" in entry.note
    assert "4111" not in entry.note
    assert entry.seconds > 0


@pytest.mark.feed
def test_the_text_of_an_error_of_other_code_is_not_recorded(monkeypatch):
    Account.logs.create(Opened("ada"))

    def fail(*_):
        raise ValueError("4111-1111")

    monkeypatch.setattr("eventlogs.projections.rebuild.Advancer.step", fail)
    with pytest.raises(ValueError, match="4111"):
        Balances.rebuild()

    assert ProjectionAction.objects.get().note == "ValueError"


@pytest.mark.feed
def test_a_rebuild_refused_because_another_one_runs_is_not_recorded():
    Account.logs.create(Opened("ada"))

    def tell(_):
        with pytest.raises(ProjectionUnavailable):
            Balances.rebuild(by="eve")

    Balances.rebuild(by="grace", tell=tell)

    assert [entry[1:3] for entry in done()] == [("rebuilt", "grace")]


@pytest.mark.feed
def test_a_resumed_rebuild_counts_the_events_of_all_its_runs(monkeypatch):
    for number in range(6):
        Account.logs.create(Opened("ada"), Deposited(number))
    monkeypatch.setattr(Balances, "batch_size", 4)
    with failing_on(5), pytest.raises(ProjectionFailed):
        Balances.rebuild()
    told: list[Any] = []

    applied = Balances.rebuild(tell=told.append)

    entry = ProjectionAction.objects.last()
    assert (entry.action, entry.count) == ("rebuilt", 12)
    assert applied < 12
    assert "Resumed" in entry.note
    assert {each.before + applied for each in told} == {12}
    assert all(each.done >= each.first > 0 for each in told)


@pytest.mark.usefixtures("inlined")
def test_a_resumed_inline_rebuild_counts_the_events_of_all_its_runs(monkeypatch):
    for number in range(6):
        Account.logs.create(Opened("ada"), Deposited(number))
    monkeypatch.setattr("eventlogs.projections.rebuild.LOGS_AT_ONCE", 2)
    with failing_on(5), pytest.raises(ProjectionFailed):
        InlinedBalances.rebuild(by="ada")
    state = ProjectionState.objects.get(name="inlined-balances")
    assert (state.rebuild_done, state.rebuild_total, state.rebuild_applied) == (4, 6, 4)
    told: list[Any] = []

    assert InlinedBalances.rebuild(by="grace", tell=told.append) == 2

    assert [entry[1:3] + entry[5:] for entry in done()] == [
        ("rebuild failed", "ada", None),
        ("rebuilt", "grace", 6),
    ]
    assert [(each.first, each.done, each.before) for each in told] == [(4, 6, 4)]


@pytest.mark.feed
def test_the_rebuild_of_one_log_is_recorded():
    state = Account.logs.create(Opened("ada"))
    Balances.catch_up()

    Balances.rebuild(state.log_id, by="grace")

    assert done() == [("balances", "rebuilt", "grace", state.log_id, None, 1)]


@pytest.mark.feed
def test_erasing_a_log_removes_its_id_and_keeps_the_record(parked):
    Balances.retry(parked.log_id, by="grace")
    actions.add(
        "balances", ProjectionAction.REBUILD_FAILED, using="default", note=f"at {parked.log_id}."
    )

    actions.forget(parked.log_id, "default")

    assert [entry[1:4] for entry in done()] == [
        ("retried", "grace", None),
        ("rebuild failed", "", None),
    ]
    assert {entry.note for entry in ProjectionAction.objects.all()} == {""}


@pytest.mark.feed
def test_a_user_name_with_any_characters_is_recorded(parked):
    Balances.retry(by="gr\0ace\ud800" + "x" * 300)

    assert ProjectionAction.objects.get().by.startswith("grace\\ud800x")
