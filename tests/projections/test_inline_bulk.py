"""Inline rows of many logs in one transaction: the same result as one by one, without blocking."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from django.db import connection, connections, models, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs import (
    ANY,
    LogId,
    LogIdField,
    Projection,
    ProjectionFailed,
    ReductionProjection,
    TransactionMustRetry,
    handles,
    projection,
)
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import AppliedVersion, Checkpoint, EventLog, ParkedEvent
from eventlogs.projections import inline_batches, inline_bulk
from eventlogs.projections import rebuild as rebuilding
from eventlogs.projections.starting import begin
from eventlogs.projections.verify import Verification
from tests.accounts import Account, Deposited, Noted, Opened, Withdrawn
from tests.locks import a_session_waits
from tests.processes import until
from tests.projections import readmodels
from tests.projections.readmodels import (
    Inlined,
    InlinedBalances,
    Reduced,
    balances,
    fail_on,
    replayed,
)
from tests.projections.tables import Known, made
from tests.tables import Table

pytestmark = pytest.mark.usefixtures("tables")


@projection("inlined-reductions")
class InlinedReductions(ReductionProjection):
    timeout = 5.0
    backoff = 60.0
    mode = Projection.INLINE
    aggregate = Account
    model = Reduced


class Taken(Table):
    """A row for each account; an owner has one account only."""

    log_id = LogIdField(primary_key=True)
    owner = models.CharField(max_length=50, unique=True)

    class Meta:
        app_label = "tests_of_inline_many"

    def __str__(self):
        return str(self.owner)


@projection("taken-owners")
class TakenOwners(Projection):
    log_types = ["account"]
    backoff = 60.0
    mode = Projection.INLINE
    model = Taken

    @handles(Opened)
    def opened(self, row, record):
        row.owner = record.event.owner

    @handles(Noted)
    def noted(self, row, record):
        pass


KNOWN = Known(InlinedReductions, TakenOwners)
EACH = pytest.mark.parametrize("each", [InlinedBalances, InlinedReductions])


def some(count, events=3):
    return [
        Account.logs.create(Opened("ada"), *[Deposited(number)] * (events - 1))
        for number in range(count)
    ]


def statements(work):
    with CaptureQueriesContext(connection) as queries:
        work()
    return len(queries)


@EACH
@pytest.mark.feed
def test_the_statements_that_apply_imported_events_grow_with_chunks_not_with_logs(each):
    some(1)
    each.catch_up()
    counts = []
    for number in (10, 150):
        states = some(number)
        counts.append(statements(each.catch_up))
        assert balances(each.model).items() >= replayed(*states).items()

    assert counts[0] == counts[1]
    assert each.verify(sample=None) == Verification(161, ())
    assert set(AppliedVersion.objects.values_list("version", flat=True)) == {3}
    assert Checkpoint.objects.get().applied == 161


@EACH
def test_the_statements_of_a_rebuild_grow_with_chunks_not_with_logs(each):
    some(10)
    each.rebuild()
    counts = [statements(each.rebuild)]
    states = some(140)
    each.rebuild()
    each.model.objects.filter(pk=states[7].log_id).delete()
    count = statements(each.rebuild)

    assert balances(each.model).items() >= replayed(*states).items()
    if connection.vendor != "mysql":  # on that database, each existing row is updated separately
        assert [count] == counts
    assert each.verify(sample=None) == Verification(150, ())


@pytest.mark.feed
@pytest.mark.parametrize("batch_size", [2, 5, 1_000])
def test_batches_of_any_size_apply_each_event_once(batch_size, request, monkeypatch):
    states = [state for events in range(1, 9) for state in some(2, events)]
    monkeypatch.setattr(InlinedBalances, "batch_size", batch_size)
    monkeypatch.setattr(inline_batches, "MANY", 3)
    request.getfixturevalue("inlined")
    states[0] = Account.logs.append(states[0], Withdrawn(1))

    InlinedBalances.catch_up()

    seen = dict(Inlined.objects.values_list("log_id", "seen"))
    assert {state.log_id: seen.get(state.log_id, 0) for state in states} == {
        state.log_id: state.version - 1 for state in states
    }
    states[1] = Account.logs.append(states[1], Withdrawn(1))
    assert InlinedBalances.verify(sample=None)


def test_steps_of_any_size_rebuild_each_log_once(request, monkeypatch):
    states = [state for events in range(1, 9) for state in some(2, events)]
    request.getfixturevalue("inlined")
    for logs, events in ((1, 9), (3, 1), (3, 4), (100, 9)):
        monkeypatch.setattr(rebuilding, "LOGS_AT_ONCE", logs)
        monkeypatch.setattr(rebuilding, "EVENTS_AT_ONCE", events)
        Inlined.objects.update(balance=99)
        assert InlinedBalances.rebuild() == sum(state.version - 1 for state in states)
        assert InlinedBalances.verify(sample=None) == Verification(16, ())


# Failures


@pytest.mark.feed
def test_a_log_that_fails_does_not_affect_others(request):
    states = some(20)
    bad = Account.logs.create(Opened("eve"), Deposited(5), Withdrawn(1))
    fail_on(Withdrawn)
    request.getfixturevalue("inlined")

    InlinedBalances.catch_up()

    assert balances(Inlined) == {**replayed(*states), bad.log_id: 5}
    assert [each.log_id for each in ParkedEvent.objects.all()] == [bad.log_id]
    assert InlinedBalances.verify(sample=None) == Verification(21, (), held=1)


@pytest.mark.feed
def test_a_log_with_an_undecodable_event_is_left_out_and_the_others_are_applied_at_once(request):
    states = some(20)
    bad = [EncodedEvent("account.deposited", 1, '{"amount": "secret"}')]
    EventLog.objects.append(states[3].log_id, bad, expected_version=3)
    unknown = [EncodedEvent("account.teleported", 1, "{}")]
    EventLog.objects.append(states[5].log_id, unknown, expected_version=3)
    request.getfixturevalue("inlined")

    InlinedBalances.catch_up()

    assert balances(Inlined) == replayed_but(states, 3, 5) | {
        states[3].log_id: 6,
        states[5].log_id: 10,
    }
    assert {each.log_id for each in ParkedEvent.objects.all()} == {
        states[3].log_id,
        states[5].log_id,
    }


def replayed_but(states, *numbers):
    return replayed(*[each for number, each in enumerate(states) if number not in numbers])


def test_a_rebuild_ends_at_a_log_that_fails_and_keeps_the_logs_before_it(request):
    states = some(20)
    bad = Account.logs.create(Opened("eve"), Deposited(5), Withdrawn(1))
    last = some(2)
    fail_on(Withdrawn)
    request.getfixturevalue("inlined")

    with pytest.raises(ProjectionFailed) as caught:
        InlinedBalances.rebuild()

    assert caught.value.log_id == bad.log_id
    before = {log for log in balances(Inlined) if log.uuid < bad.log_id.uuid}
    assert before >= {state.log_id for state in states if state.log_id.uuid < bad.log_id.uuid}
    readmodels.reset()
    InlinedBalances.rebuild()
    assert balances(Inlined) == replayed(*states, bad, *last)


# Beside appends


class Holding:
    """Another thread with an open transaction, until the test ends it."""

    def __init__(self, *works):
        self._works, self._go, self._held = works, [Event() for _ in works], Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self):
        self._future = self._pool.submit(self._run)
        assert self._held.wait(20)
        return self

    def __exit__(self, *_):
        for each in self._go:
            each.set()
        self._pool.shutdown()

    def go_on(self, number=0):
        self._go[number].set()

    def result(self):
        return self._future.result(timeout=20)

    def _run(self):
        try:
            with transaction.atomic():
                for work, go in zip(self._works, self._go, strict=True):
                    work()
                    self._held.set()
                    go.wait(20)
        finally:
            self._held.set()
            connections.close_all()


def append(state, *events):
    Account.logs.append(state.log_id, *events, expected_version=ANY)


@pytest.mark.locks
@pytest.mark.usefixtures("inlined")
def test_a_log_that_is_locked_is_not_waited_for():
    states = some(5)
    log_ids = [state.log_id for state in states]

    with Holding(lambda: append(states[2], Deposited(7))), transaction.atomic():
        assert inline_bulk.lock_free(log_ids, "default") == {
            each: 3 for each in log_ids if each != log_ids[2]
        }


@pytest.mark.locks
def test_a_log_that_was_locked_is_applied_afterwards(request, monkeypatch):
    states = some(5)
    begin(InlinedBalances, "default")  # or the append's transaction would hold its state, too
    request.getfixturevalue("inlined")
    done_at_once = []
    rebuild = inline_bulk.rebuild_rows

    with Holding(lambda: append(states[2], Deposited(7))) as other:

        def then_commit(*args, **options):
            done_at_once.append(rebuild(*args, **options))
            other.go_on()
            return done_at_once[-1]

        monkeypatch.setattr(inline_bulk, "rebuild_rows", then_commit)
        InlinedBalances.rebuild()

    assert [set(each) for each in done_at_once] == [
        {state.log_id for state in states if state is not states[2]}
    ]
    assert balances(Inlined) == replayed(*states)
    assert InlinedBalances.verify(sample=None)


@pytest.fixture
def _taken(transactional_db):
    with made(Taken):
        yield


def deadlocks():
    with connection.cursor() as cursor:
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return cursor.fetchone()[0]


@pytest.mark.postgresql
@pytest.mark.usefixtures("_taken")
def test_a_unique_value_of_an_open_transaction_causes_no_deadlock():
    """The transaction appends to one of the logs that the waiting worker has locked."""
    first = Account.logs.create(Opened("ada"))
    other = Account.logs.create(Opened("bob"))
    begin(TakenOwners, "default")
    before = deadlocks()

    with KNOWN.declared("taken-owners"):
        with Holding(
            lambda: Account.logs.create(Opened("ada")), lambda: append(other, Noted("on"))
        ) as holding:
            timer = ThreadPoolExecutor(1)
            timer.submit(lambda: (until_a_session_waits(), holding.go_on(), holding.go_on(1)))
            TakenOwners.catch_up()
            holding.result()
            timer.shutdown()
        TakenOwners.catch_up()

    assert set(Taken.objects.values_list("owner", flat=True)) == {"ada", "bob"}
    assert [each.log_id for each in ParkedEvent.objects.all()] == [first.log_id]
    time.sleep(0.2)
    assert deadlocks() == before


@pytest.mark.postgresql
@pytest.mark.usefixtures("_taken")
def test_a_broken_version_without_a_lock_timeout_deadlocks(monkeypatch):
    monkeypatch.setattr(inline_bulk, "limit_waits", lambda using: None)

    with pytest.raises((AssertionError, TransactionMustRetry)):
        test_a_unique_value_of_an_open_transaction_causes_no_deadlock()


def until_a_session_waits():
    try:
        until(a_session_waits)
    finally:
        connections.close_all()


@pytest.mark.locks
@pytest.mark.usefixtures("inlined")
def test_rows_of_no_log_are_removed_without_waiting_for_an_open_append():
    [state] = some(1)
    rows, stray = Inlined.objects, LogId.new("account")
    rows.create(pk=stray, balance=1, seen=1)

    with Holding(lambda: append(state, Deposited(1))) as holding:
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(in_a_session_of_its_own, rebuilding.remove_strays, InlinedBalances)
            try:
                work.result(timeout=10)
            finally:
                holding.go_on()
        holding.result()

    assert list(rows.values_list("pk", flat=True)) == [state.log_id]
    assert balances(Inlined) == replayed(state)


def in_a_session_of_its_own(work, each):
    try:
        work(each, "default")
    finally:
        connections.close_all()


@pytest.mark.usefixtures("inlined")
def test_rebuilds_and_transactions_over_several_logs_do_not_deadlock(race):
    states = some(6)
    log_ids = [state.log_id for state in states]
    works = [lambda: InlinedBalances.rebuild(restart=True)] * 2

    def appends(seed):
        def work():
            order = sorted(random.Random(seed).sample(log_ids, 4))
            for _ in range(8):
                with transaction.atomic():
                    for log_id in order:
                        Account.logs.append(log_id, Deposited(1), expected_version=ANY)

        return work

    answers = race(appends(1), appends(2), *works)

    assert [each for each in answers if isinstance(each, Exception)] == []
    assert balances(Inlined) == replayed(*states)
    seen = dict(Inlined.objects.values_list("log_id", "seen"))
    assert seen == {each: Account.logs.version(each) - 1 for each in log_ids}
    assert InlinedBalances.verify(sample=None)
