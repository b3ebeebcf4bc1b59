"""Running projections: workers share the partitions, hand them over, and survive errors."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from eventlogs.models import Checkpoint, ProjectionState, ProjectionWorker
from eventlogs.projections import workers as running
from eventlogs.projections.base import projections
from eventlogs.projections.workers import Share, Worker, chosen, divided, run
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.processes import Place, Processes
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    Letters,
    Reduced,
    ReducedBalances,
    balances,
    fail_on,
    replayed,
    until,
)

tasks = pytest.importorskip("eventlogs.tasks", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("tables", "declared")

NAMES = ["balances"]


@pytest.fixture
def runner():
    """A function that makes runners, which are closed in the end."""
    made = []

    def make(names=NAMES, **options):
        made.append(Worker(names, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def some(count=5):
    return [Account.logs.create(Opened("ada"), Deposited(number)) for number in range(count)]


def owners():
    rows = Checkpoint.objects.filter(projection="balances").order_by("partition")
    return list(rows.values_list("owner", flat=True))


def beat(*runners):
    """Let the workers refresh the list of live workers: those that release leases first."""
    for each in (*runners, *runners):
        each._next_beat = 0
        each.round()


# A single run


def test_all_declared_projections_catch_up():
    states = some()

    assert run() == {
        "balances": 10,
        "reduced-balances": 10,
        "deposits-by-owner": 5,
        "letters": 5,
    }
    assert balances() == balances(Reduced) == replayed(*states)


def test_named_projections_catch_up_and_an_unknown_name_is_refused():
    some()
    assert run(["letters"]) == {"letters": 5}
    assert run([]) == {}
    with pytest.raises(KeyError):
        run(["unknown"])
    with pytest.raises(KeyError):
        Worker(["unknown"])
    assert set(chosen()) == {"balances", "reduced-balances", "deposits-by-owner", "letters"}


def test_projections_that_fail_do_not_stop_the_others(monkeypatch):
    some()
    run(["balances", "letters"])
    ProjectionState.objects.filter(name="balances").update(version=2)
    ProjectionState.objects.filter(name="letters").update(version=2)

    with pytest.raises(ExceptionGroup) as caught:
        run()

    names = [getattr(error, "projection", None) for error in caught.value.exceptions]
    assert names == ["balances", "letters"]
    assert len(balances(Reduced)) == 5


def test_partitions_of_another_worker_are_left_to_it(runner):
    some()
    other = runner()
    other.round()
    some()

    assert run(NAMES) == {"balances": 0}


def test_the_celery_task_runs_the_projections():
    some()
    assert tasks.run_projections(NAMES) == {"balances": 10}


# Continuous runs


def test_a_round_applies_a_batch_of_each_partition(runner, monkeypatch):
    monkeypatch.setattr(Balances, "batch_size", 3)
    states = some()
    each = runner(["balances", "letters"])

    assert each.round()
    assert sum(balances().values()) < 10
    while each.round():
        pass

    assert balances() == replayed(*states)
    assert len(readmodels.reactions) == 5
    assert not each.round()


def test_a_worker_reports_how_many_events_it_applied(runner, monkeypatch):
    monkeypatch.setattr(Balances, "batch_size", 4)
    some()
    told: list[Any] = []
    each = runner(["balances", "letters"], tell=told.append)
    for _ in range(5):
        each.round()

    assert all(told)
    assert sum((Counter(each) for each in told), Counter()) == {"balances": 10, "letters": 5}


def test_a_worker_runs_until_it_is_stopped_and_releases_its_leases():
    stop = threading.Event()
    states = some()

    def work():
        Worker(NAMES, stop=stop).run()
        connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until(lambda: balances() == replayed(*states))
        states += some()
        until(lambda: balances() == replayed(*states))
        assert ProjectionWorker.objects.count() == 1
    finally:
        stop.set()
        thread.join(5)

    assert not thread.is_alive()
    assert owners() == [""]
    assert not ProjectionWorker.objects.filter(seen_until__gt=timezone.now()).exists()


def test_events_that_fail_are_retried_and_parked(runner):
    states = some()
    states[0] = Account.logs.append(states[0], Withdrawn(1))
    fail_on(Withdrawn)
    each = runner()

    until(lambda: (each.round(), Balances.parked())[-1])
    readmodels.reset()
    Balances.retry()
    until(lambda: (each.round(), balances() == replayed(*states))[-1])


def test_a_value_that_a_column_refuses_does_not_end_a_worker(runner, monkeypatch):
    states = some()

    def deposited(self, row, record):
        row.balance = "much" if record.log_id == states[2].log_id else record.event.amount

    monkeypatch.setattr(Balances, "deposited", deposited)
    each = runner()
    each.round()
    assert balances() == {**replayed(*states), states[2].log_id: 0}


def test_a_projection_that_cannot_continue_does_not_stop_the_others(runner, monkeypatch, caplog):
    states = some()

    def fail(upto=None):
        raise LookupError("no such table of rates")

    each = runner(["balances", "reduced-balances"])
    each.round()
    for place, advancer in each._advancers.items():
        if place[0] == "balances":
            monkeypatch.setattr(advancer, "step", fail)
    states += some()
    each.round()

    assert balances(Reduced) == replayed(*states)
    assert "Projection balances cannot continue" in caplog.text
    beat(each)
    assert balances() == replayed(*states)


def test_two_workers_share_the_partitions_and_one_takes_over_when_the_other_stops(
    runner, monkeypatch
):
    monkeypatch.setattr(Balances, "partitions", 4)
    one, other = runner(), runner()
    one.round()
    assert len(set(owners())) == 1

    beat(one, other)
    assert sorted(Counter(owners()).values()) == [2, 2]
    states = some(20)
    one.round()
    other.round()
    assert balances() == replayed(*states)
    assert set(Balance.objects.values_list("seen", flat=True)) == {2}

    other.close()
    beat(one)
    assert Counter(owners()) == {one._owner: 4}
    states += some()
    one.round()
    assert balances() == replayed(*states)


def work_until_killed(place: Place) -> None:
    Balances.partitions = 4
    projections["balances"] = Balances
    other = Worker(NAMES)
    other.round()
    place.say("at work")
    place.hear()


def test_the_partitions_of_a_killed_worker_are_taken_over_at_once(runner, monkeypatch):
    monkeypatch.setattr(Balances, "partitions", 4)
    with Processes() as processes:
        other = processes.start(work_until_killed, is_held=True)
        other.wait_until_ready()
        one = runner()
        one.round()
        other.go()
        assert other.heard() == "at work"
        beat(one)
        assert one._owner in owners()
        other.send(signal.SIGKILL)
        other.join()

    beat(one)
    assert Counter(owners()) == {one._owner: 4}
    states = some()
    until(lambda: (one.round(), balances() == replayed(*states))[-1])


def test_the_number_of_partitions_may_change_while_a_worker_runs(runner, monkeypatch):
    states = some(20)
    one = runner()
    one.round()
    assert len(owners()) == 1
    monkeypatch.setattr(Balances, "partitions", 4)
    states += some(20)

    beat(one)
    beat(one)

    assert Counter(owners()) == {one._owner: 4}
    until(lambda: (one.round(), balances() == replayed(*states))[-1])
    assert set(Balance.objects.values_list("seen", flat=True)) == {2}


def test_several_workers_release_their_leases_so_that_one_can_repartition(runner, monkeypatch):
    monkeypatch.setattr(Balances, "partitions", 2)
    states = some(20)
    one, other = runner(), runner()
    beat(one, other)
    assert len(set(owners())) == 2
    monkeypatch.setattr(Balances, "partitions", 4)
    states += some(20)

    monkeypatch.setattr(running, "ASIDE_FOR", 0.0)  # not yet: the workers continue as before
    beat(one, other)
    assert len(owners()) == 2
    assert len(set(owners())) == 2
    monkeypatch.setattr(running, "ASIDE_FOR", running.ASIDE_EVERY)
    beat(one, other)
    beat(one, other)

    assert len(owners()) == 4
    assert set(Counter(owners()).values()) == {2}
    until(lambda: (one.round(), other.round(), balances() == replayed(*states))[-1])
    assert set(Balance.objects.values_list("seen", flat=True)) == {2}


def test_a_rebuild_revokes_the_lease_of_a_worker_which_takes_a_new_one(runner):
    states = some()
    each = runner()
    each.round()
    Balances.rebuild()
    states += some()

    each.round()
    each.round()

    assert balances() == replayed(*states)


def test_a_projection_that_cannot_run_is_logged_once_and_retried(runner, caplog):
    some()
    run(NAMES)
    ProjectionState.objects.update(version=2)
    each = runner()
    for _ in range(3):
        beat(each)
    assert len([record for record in caplog.records if "newer" in record.message]) == 1
    assert owners() == [""]

    ProjectionState.objects.update(version=1)
    states = some()
    beat(each)
    assert replayed(*states).items() <= balances().items()


@pytest.mark.postgresql
def test_a_worker_continues_after_an_error_of_the_database(monkeypatch, caplog):
    monkeypatch.setattr(running, "FIRST_WAIT", 0.05)
    stop, pids = threading.Event(), []
    expected = replayed(*some())

    def work():
        each = Worker(NAMES, stop=stop)
        each.round()
        pids.append(connection.connection.info.backend_pid)
        each.run()
        connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until(lambda: pids)
        for _ in range(3):
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            expected.update(replayed(*some(2)))
            until(lambda: balances() == expected)
    finally:
        stop.set()
        thread.join(5)
    assert set(Balance.objects.values_list("seen", flat=True)) == {2}
    assert any("wait for" in record.message for record in caplog.records)
    assert owners() == [""]


def test_an_error_of_the_database_is_not_quoted(runner, monkeypatch, caplog):
    monkeypatch.setattr(running, "FIRST_WAIT", 0.01)
    stop = threading.Event()
    each = runner(stop=stop)

    def fail():
        stop.set()
        raise OperationalError("4111")

    monkeypatch.setattr(each, "round", fail)
    each.run()
    assert "OperationalError" in caplog.text
    assert "4111" not in caplog.text


@pytest.mark.postgresql
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_stop_that_leaves_a_statement_to_the_server_is_no_error(monkeypatch, caplog, has_begun):
    stop = threading.Event()
    expected = replayed(*some())

    def work():
        each = Worker(NAMES, stop=stop)
        each.round()

        def leave():  # as psycopg 3.1 does if a signal interrupts its wait
            with transaction.atomic() if has_begun else nullcontext():
                connection.ensure_connection()
                connection.connection.pgconn.send_query(b"SELECT 1")
                stop.set()
                raise InterruptedError

        monkeypatch.setattr(each, "round", leave)
        each.run()
        connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)

    assert not thread.is_alive()
    assert balances() == expected
    assert owners() == [""]
    assert not ProjectionWorker.objects.filter(seen_until__gt=timezone.now()).exists()
    assert "wait for" not in caplog.text


# Shares

NAME = st.text("abc", min_size=1, max_size=2)
SHARES = st.dictionaries(st.text("vwxyz", min_size=1, max_size=3), st.frozensets(NAME), max_size=6)


@given(
    places=st.sets(st.tuples(NAME, st.integers(0, 9))),
    shares=SHARES.map(lambda found: [Share(*item) for item in found.items()]),
    data=st.data(),
)
def test_all_workers_divide_the_partitions_the_same_way(places, shares, data):
    found = divided(places, shares)

    assert (
        divided(data.draw(st.permutations(sorted(places))), data.draw(st.permutations(shares)))
        == found
    )
    able = {place for place in places if any(place[0] in each.projections for each in shares)}
    assert set(found) == able
    for place, worker in found.items():
        assert place[0] in dict(shares)[worker]


@given(
    places=st.sets(st.tuples(st.just("a"), st.integers(0, 99))),
    workers=st.sets(st.text("vwxyz", min_size=1), min_size=1, max_size=6),
)
def test_workers_that_run_the_same_get_equally_many(places, workers):
    dealt = Counter(divided(places, [Share(each, frozenset("a")) for each in workers]).values())

    counts = [dealt[each] for each in workers]
    assert max(counts) - min(counts) <= 1


def test_a_reactor_runs_beside_projections(runner):
    some()
    each = runner([Letters.name, ReducedBalances.name])
    each.round()
    assert len(readmodels.reactions) == 5
    assert len(balances(Reduced)) == 5


# Requested rebuilds


def test_a_worker_does_requested_rebuilds_beside_its_other_work(runner):
    states = some()
    one = runner()
    until(lambda: (one.round(), balances() == replayed(*states))[-1])
    Balance.objects.update(balance=99)
    Balances.request_rebuild()
    beat(one)

    until(lambda: (one.round(), ProjectionState.objects.get(name="balances").rebuilt_at)[-1])

    assert balances() == replayed(*states)
    assert ProjectionState.objects.get(name="balances").rebuild_requested_at is None


def test_a_rebuild_that_the_database_refuses_stops_no_worker(runner):
    states = some()
    one = runner()
    until(lambda: (one.round(), balances() == replayed(*states))[-1])
    view = connection.ops.quote_name(f"{Balance._meta.db_table}__rebuild")
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE VIEW {view} AS SELECT 1")
    try:
        Balances.request_rebuild()
        beat(one)
        one.round()
        states += some()
        until(lambda: (one.round(), balances() == replayed(*states))[-1])
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP VIEW {view}")

    state = ProjectionState.objects.get(name="balances")
    assert state.rebuild_requested_at is None
    assert state.rebuild_error in ("ProgrammingError", "OperationalError")


@pytest.mark.parametrize("by", ["a worker", "Celery"])
def test_a_rebuild_is_done_for_a_projection_that_cannot_catch_up_without_it(runner, by):
    states = some()
    Balances.catch_up()
    Balance.objects.update(balance=99)
    ProjectionState.objects.filter(name="balances").update(mode="inline")  # until now it was
    Balances.request_rebuild()

    if by == "Celery":
        run(["balances"])
    else:
        one = runner()
        until(lambda: (one.round(), ProjectionState.objects.get(name="balances").rebuilt_at)[-1])

    assert ProjectionState.objects.get(name="balances").mode == "async"
    assert balances() == replayed(*states)


def test_polling_an_idle_feed_costs_the_same_with_many_partitions(runner, monkeypatch):
    # Checkpoints are moved and leases renewed after a time, which is not what is counted here.
    monkeypatch.setattr("eventlogs.projections.partitions.IDLE_MOVE", 60)
    monkeypatch.setattr(Balances, "timeout", 60)
    counts = []
    for partitions in (1, 8):
        monkeypatch.setattr(Balances, "partitions", partitions)
        one = runner()
        beat(one)
        beat(one)
        until(lambda one=one: not one.round())
        one._next_beat = time.monotonic() + 60
        with CaptureQueriesContext(connection) as queries:
            one.round()
        counts.append(len(queries))
        one.close()

    assert counts[0] == counts[1]
