"""Projections that are inline: a row is right when its append is committed."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, OperationalError, connection, connections, transaction

from eventlogs import (
    ANY,
    ConcurrentAppend,
    Feed,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogAlreadyExists,
    LogManager,
    LogNotFound,
    ProjectionFailed,
    ProjectionUnavailable,
    TransactionMustRetry,
)
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import (
    AppliedVersion,
    Checkpoint,
    Event,
    EventLog,
    ParkedEvent,
    ProjectionState,
)
from eventlogs.operations import jsonl
from eventlogs.projections import checkpoints, inline, leases, partitions
from eventlogs.projections.starting import begin, lease_partition
from eventlogs.stores import retries, store_for
from eventlogs.testing import MemoryStore
from tests.accounts import Account, Deposited, Opened, Withdrawn, withdraw
from tests.locks import a_session_waits
from tests.projections import readmodels
from tests.projections.readmodels import (
    Inlined,
    InlinedBalances,
    balances,
    fail_on,
    replayed,
    until,
)

pytestmark = pytest.mark.usefixtures("tables")


def rows():
    return balances(Inlined)


def seen():
    return dict(Inlined.objects.values_list("log_id", "seen"))


# With the append


@pytest.mark.usefixtures("inlined")
def test_a_row_is_right_when_the_append_returns():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2))
    assert rows() == {ada.log_id: 3}

    ada = Account.logs.append(ada, Deposited(10))
    ada = Account.logs.append(ada, Opened("eve"))
    ada = Account.logs.append(ada, Withdrawn(1))

    assert rows() == replayed(ada)
    assert seen() == {ada.log_id: 4}


@pytest.mark.feed
@pytest.mark.usefixtures("inlined")
def test_a_worker_has_nothing_to_do_after_appends():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2))

    assert InlinedBalances.catch_up() == 0
    assert seen() == {ada.log_id: 2}


@pytest.mark.usefixtures("inlined")
def test_several_appends_in_one_transaction_are_all_in_the_row():
    with transaction.atomic():
        ada = Account.logs.create(Deposited(5))
        for amount in range(5):
            ada = Account.logs.append(ada, Deposited(amount))
        bob = Account.logs.create(Deposited(7))
        ada = Account.logs.append(ada, Withdrawn(3))

    assert rows() == replayed(ada, bob)


@pytest.mark.usefixtures("inlined")
def test_a_rollback_undoes_the_row_with_the_events():
    ada = Account.logs.create(Deposited(5))

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Account.logs.append(ada, Deposited(7))
        assert rows() == {ada.log_id: 12}
        raise ZeroDivisionError
    assert rows() == {ada.log_id: 5}

    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Account.logs.append(ada, Deposited(7))
            raise ZeroDivisionError
        ada = Account.logs.append(ada, Deposited(1))
    assert rows() == replayed(ada)


@pytest.mark.usefixtures("inlined")
def test_a_handler_that_fails_undoes_only_its_append():
    ada = Account.logs.create(Deposited(5))
    fail_on(Withdrawn)

    with pytest.raises(ProjectionFailed) as caught:
        Account.logs.append(ada, Deposited(1), Withdrawn(2))
    assert isinstance(caught.value.__cause__, ValueError)
    assert "4111" not in str(caught.value)
    assert (Account.logs.version(ada.log_id), rows()) == (1, {ada.log_id: 5})

    with transaction.atomic():
        bob = Account.logs.create(Deposited(7))
        with pytest.raises(ProjectionFailed):
            Account.logs.append(ada, Withdrawn(2), idempotency_key="k")
        ada = Account.logs.append(ada, Deposited(3), idempotency_key="k")

    assert rows() == replayed(ada, bob)
    assert Event.objects.count() == 3


@pytest.mark.usefixtures("inlined")
@pytest.mark.parametrize(("value", "kind"), [(None, IntegrityError), ("much", ValueError)])
def test_a_value_that_the_column_refuses_leaves_the_callers_transaction_usable(
    monkeypatch, value, kind
):
    def deposited(self, row, record):
        row.balance = value

    ada = Account.logs.create(Deposited(5))
    monkeypatch.setattr(InlinedBalances, "deposited", deposited)

    with transaction.atomic():
        with pytest.raises(ProjectionFailed) as caught:
            Account.logs.append(ada, Deposited(1))
        assert isinstance(caught.value.__cause__, kind)
        assert rows() == {ada.log_id: 5}
    assert Account.logs.version(ada.log_id) == 1


@pytest.mark.postgresql
@pytest.mark.usefixtures("inlined")
def test_a_deadlock_in_a_handler_is_no_failure_of_its_event():
    calls = []

    def before(record):
        calls.append(record.index)
        if len(calls) == 1:
            with connection.cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$")

    readmodels.behaviour["before"] = before
    ada = Account.logs.create(Deposited(5))

    assert calls == [0, 0]
    assert rows() == replayed(ada)


@pytest.mark.usefixtures("inlined")
@pytest.mark.parametrize("inside", [False, True])
def test_replays_and_refusals_are_the_same_as_without_a_projection(inside):
    ada = Account.logs.create(Deposited(5), idempotency_key="k")
    with transaction.atomic() if inside else nullcontext():
        with pytest.raises(IdempotentReplay) as caught:
            Account.logs.create(Deposited(5), idempotency_key="k")
        assert caught.value.log_id == ada.log_id
        with pytest.raises(IdempotencyKeyReused):
            Account.logs.append(ada, Deposited(6), idempotency_key="k")
        with pytest.raises(ConcurrentAppend):
            Account.logs.append(ada.log_id, Deposited(6), expected_version=4)
        with pytest.raises(LogAlreadyExists):
            Account.logs.create(Deposited(6), log_id=ada.log_id)
        with pytest.raises(LogNotFound):
            Account.logs.append(Account.logs.new_id(), Deposited(6), expected_version=ANY)
        assert rows() == {ada.log_id: 5}
        ada = Account.logs.append(ada, Deposited(6))

    assert rows() == replayed(ada)
    assert AppliedVersion.objects.count() == 1


@pytest.mark.usefixtures("inlined")
def test_every_method_that_appends_updates_the_row():
    ada, created = Account.logs.get_or_create(Deposited(5), idempotency_key="a")
    again, _ = Account.logs.get_or_create(Deposited(5), idempotency_key="a")
    assert (created, again.log_id) == (True, ada.log_id)
    ada, _ = Account.logs.get_or_append(ada, Deposited(1), idempotency_key="b")
    ada = Account.logs.execute(ada.log_id, withdraw, amount=2)

    async def append():
        return await Account.logs.aappend(ada, Deposited(10))

    ada = async_to_sync(append)()

    assert rows() == replayed(ada)
    assert seen() == {ada.log_id: 4}


@pytest.mark.usefixtures("inlined")
def test_a_store_without_a_database_takes_no_part():
    logs = LogManager(Account, store=MemoryStore())

    logs.create(Deposited(5))

    assert rows() == {}


@pytest.mark.usefixtures("inlined")
def test_appends_to_another_database_take_no_part(second_database):
    logs = LogManager(Account, using=second_database)

    state = logs.create(Deposited(5))

    assert logs.reduce(state.log_id).aggregate.balance == 5
    assert rows() == {}


# Events that were missed


def test_events_appended_without_the_projection_are_applied_by_the_next_append(request):
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    request.getfixturevalue("inlined")
    assert rows() == {}

    ada = Account.logs.append(ada, Withdrawn(2))

    assert rows() == replayed(ada)
    assert seen() == {ada.log_id: 2}


@pytest.mark.feed
def test_events_appended_without_the_projection_are_applied_by_a_worker(request, monkeypatch):
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    request.getfixturevalue("inlined")
    bob = Account.logs.create(Deposited(7))
    monkeypatch.setattr("eventlogs.stores.participants.registered", {})
    bob = Account.logs.append(bob, Deposited(1), Withdrawn(2))
    assert rows() == {bob.log_id: 7}

    InlinedBalances.catch_up()

    assert rows() == replayed(ada, bob)
    assert InlinedBalances.catch_up() == 0
    assert InlinedBalances.verify(sample=None)


@pytest.mark.feed
@pytest.mark.usefixtures("inlined")
def test_imported_events_are_applied_by_a_worker():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Deposited(6))
    other = Account.logs.new_id()
    last = Feed().settled()
    lines = [jsonl.header(after=0)]
    for page in jsonl.export_pages("default", until=last):
        lines += [line.replace(str(ada.log_id), str(other)) for line in page.lines]
    lines.append(jsonl.footer(events=3, until=last))
    raw = [f"{line.rstrip()}\n".encode() for line in lines]

    assert jsonl.import_lines(store_for("default"), raw).stored == 3
    assert rows() == {ada.log_id: 11}
    InlinedBalances.catch_up()

    assert rows() == {ada.log_id: 11, other: 11}


@pytest.mark.feed
def test_a_row_that_was_made_from_the_feed_is_rebuilt(request, monkeypatch):
    monkeypatch.setattr(InlinedBalances, "mode", "async")
    states = [Account.logs.create(Deposited(5)) for _ in range(3)]
    InlinedBalances.catch_up()
    states[1] = Account.logs.append(states[1], Deposited(6))
    monkeypatch.undo()
    request.getfixturevalue("inlined")

    states[0] = Account.logs.append(states[0], Withdrawn(2))
    assert checkpoints.state_of("inlined-balances", "default").mode == "inline"
    InlinedBalances.catch_up()

    assert rows() == replayed(*states)
    assert [seen()[state.log_id] for state in states] == [2, 2, 1]
    assert InlinedBalances.verify(sample=None)


@pytest.mark.feed
@pytest.mark.usefixtures("inlined")
def test_changing_back_to_async_is_refused_until_a_rebuild(monkeypatch):
    ada = Account.logs.create(Deposited(5))
    monkeypatch.setattr("eventlogs.stores.participants.registered", {})
    monkeypatch.setattr(InlinedBalances, "mode", "async")

    with pytest.raises(ProjectionUnavailable) as caught:
        InlinedBalances.catch_up()
    assert caught.value.reason == "mode"
    assert InlinedBalances.is_rebuild_due()
    InlinedBalances.rebuild()
    ada = Account.logs.append(ada, Deposited(6))
    InlinedBalances.catch_up()

    assert rows() == replayed(ada)
    assert not AppliedVersion.objects.exists()


def test_a_worker_of_the_old_mode_gets_no_lease(monkeypatch):
    """The worker started before, and asks for a lease afterwards."""
    monkeypatch.setattr(InlinedBalances, "mode", "async")
    begin(InlinedBalances, "default")
    checkpoints.become_inline("inlined-balances", using="default")

    with pytest.raises(ProjectionUnavailable):
        lease_partition(InlinedBalances, 0, using="default", owner=leases.new_owner())
    assert Checkpoint.objects.get(projection="inlined-balances").owner == ""


# Events that a worker cannot apply


@pytest.mark.feed
def test_a_worker_holds_the_event_that_fails_and_applies_those_before_it(request):
    ada = Account.logs.create(Deposited(5), Withdrawn(2), Deposited(10), Withdrawn(1))
    bob = Account.logs.create(Deposited(7))
    request.getfixturevalue("inlined")
    fail_on(Withdrawn)

    InlinedBalances.catch_up()

    assert rows() == {ada.log_id: 5, bob.log_id: 7}
    assert ParkedEvent.objects.get().index == 1
    assert InlinedBalances.verify(sample=None)
    until(lambda: InlinedBalances.catch_up() == 0 and InlinedBalances.parked())
    readmodels.reset()
    assert InlinedBalances.skip(ada.log_id)
    InlinedBalances.catch_up()
    assert rows() == {ada.log_id: 14, bob.log_id: 7}
    assert InlinedBalances.verify(sample=None)

    InlinedBalances.rebuild()
    assert rows() == {ada.log_id: 14, bob.log_id: 7}


@pytest.mark.feed
def test_a_worker_holds_an_event_whose_value_the_column_refuses(request, monkeypatch):
    def withdrawn(self, row, record):
        row.balance = None

    ada = Account.logs.create(Deposited(5), Withdrawn(2))
    bob = Account.logs.create(Deposited(7))
    request.getfixturevalue("inlined")
    with monkeypatch.context() as patch:
        patch.setattr(InlinedBalances, "withdrawn", withdrawn)
        InlinedBalances.catch_up()
        assert ParkedEvent.objects.get().log_id == ada.log_id
        assert rows()[bob.log_id] == 7

    InlinedBalances.retry()
    InlinedBalances.catch_up()
    assert rows() == replayed(ada, bob)


@pytest.mark.feed
def test_an_append_that_applies_a_parked_event_is_not_applied_twice(request):
    ada = Account.logs.create(Deposited(5), Withdrawn(2))
    request.getfixturevalue("inlined")
    fail_on(Withdrawn)
    InlinedBalances.catch_up()
    readmodels.reset()

    ada = Account.logs.append(ada, Deposited(1))
    assert rows() == replayed(ada)
    assert InlinedBalances.verify(sample=None)
    InlinedBalances.retry()
    InlinedBalances.catch_up()

    assert rows() == replayed(ada)
    assert not ParkedEvent.objects.exists()


def test_an_append_behind_an_event_that_cannot_be_decoded_is_refused(request):
    ada = Account.logs.create(Deposited(5))
    bad = EncodedEvent("account.deposited", 1, '{"amount": "secret"}')
    state = EventLog.objects.append(ada.log_id, [bad], expected_version=1)
    request.getfixturevalue("inlined")

    with pytest.raises(ProjectionFailed) as caught:
        Account.logs.append(state, Deposited(1))

    assert caught.value.position == state.position


# Races


@pytest.mark.usefixtures("inlined")
def test_threads_that_race_for_one_log_leave_its_row_right(race):
    ada = Account.logs.create(Deposited(0))

    def append():
        for _ in range(10):
            Account.logs.append(ada.log_id, Deposited(1), expected_version=ANY)

    assert race(*[append] * 4) == [None] * 4
    assert rows() == {ada.log_id: 40}
    assert seen() == {ada.log_id: 41}


@pytest.mark.usefixtures("inlined")
def test_executes_that_race_for_one_log_leave_its_row_right(race):
    ada = Account.logs.create(Deposited(0))

    def execute():
        for _ in range(10):
            Account.logs.execute(ada.log_id, lambda _: Deposited(1), retries=1)

    assert race(*[execute] * 4) == [None] * 4
    assert rows() == {ada.log_id: 40}
    assert seen() == {ada.log_id: 41}


@pytest.mark.postgresql
@pytest.mark.usefixtures("inlined")
@pytest.mark.one_server
def test_transactions_that_make_a_projection_inline_at_once_do_not_deadlock(monkeypatch):
    """The second one waits for the first one's commit, and has not locked its log yet."""
    one, other = (Account.logs.create(Opened("ada")).log_id for _ in range(2))
    ProjectionState.objects.all().delete()
    Checkpoint.objects.all().delete()
    monkeypatch.setattr(inline, "_begun", set())

    def append(log_id):
        Account.logs.append(log_id, Deposited(1), expected_version=ANY)

    def append_later():
        try:
            with transaction.atomic():
                append(other)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            append(one)  # makes it inline
            later = pool.submit(append_later)
            until(a_session_waits)
            append(other)
        later.result(60)

    assert rows() == {one: 1, other: 2}


@pytest.mark.feed
def test_workers_and_transactions_over_several_logs_do_not_deadlock(request, race):
    states = [Account.logs.create(Deposited(1)) for _ in range(6)]
    request.getfixturevalue("inlined")
    log_ids = [state.log_id for state in states]
    numbers = itertools.count()

    def append():
        order = sorted(random.Random(next(numbers)).sample(log_ids, 4))
        for _ in range(8):
            with transaction.atomic():
                for log_id in order:
                    Account.logs.append(log_id, Deposited(1), expected_version=ANY)

    answers = race(append, append, InlinedBalances.catch_up, InlinedBalances.catch_up)

    assert [each for each in answers if isinstance(each, Exception)] == []
    InlinedBalances.catch_up()
    assert rows() == replayed(*states)
    assert InlinedBalances.verify(sample=None)


REPEATABLE_READ = {
    "postgresql": {"options": r"-c default_transaction_isolation=repeatable\ read"},
    "mysql": {"isolation_level": "repeatable read"},
}


@pytest.mark.locks
@pytest.mark.usefixtures("inlined")
def test_appends_under_a_stricter_isolation_are_right_too(race, monkeypatch):
    connections.close_all()
    for name, value in REPEATABLE_READ[connection.vendor].items():
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], name, value)
    try:
        ada = Account.logs.create(Deposited(0))

        def append():
            done = 0
            while done < 5:
                try:
                    Account.logs.append(ada.log_id, Deposited(1), expected_version=ANY)
                    done += 1
                except TransactionMustRetry:
                    continue

        assert race(*[append] * 3) == [None] * 3
        assert rows() == {ada.log_id: 15}
    finally:
        monkeypatch.undo()
        connections.close_all()


@pytest.mark.locks
@pytest.mark.usefixtures("inlined")
@pytest.mark.fence
def test_transactions_on_snapshots_that_create_logs_do_not_block_each_other(race, monkeypatch):
    """On MariaDB, a locking read that found no row would lock the gap that others insert into."""
    connections.close_all()
    for name, value in REPEATABLE_READ[connection.vendor].items():
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], name, value)
    Account.logs.create(Deposited(0))  # the projection has begun, and its state is committed

    def create():
        for _ in range(10):
            with transaction.atomic():
                for _ in range(2):
                    Account.logs.create(Deposited(1))

    try:
        assert race(*[create] * 4) == [None] * 4
        assert sum(rows().values()) == 80
    finally:
        monkeypatch.undo()
        connections.close_all()


def begun_by_atomic(work):
    with transaction.atomic():
        work()


def begun_without_autocommit(work):
    transaction.set_autocommit(False)
    try:
        work()
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


@pytest.mark.locks
@pytest.mark.usefixtures("inlined")
@pytest.mark.parametrize("begun", [begun_by_atomic, begun_without_autocommit])
@pytest.mark.parametrize("what", ["rebuild", "rebuild one", "repair"])
def test_no_row_is_made_of_a_snapshot_that_is_older_than_its_log(
    what, begun, monkeypatch, elsewhere
):
    connections.close_all()
    for name, value in REPEATABLE_READ[connection.vendor].items():
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], name, value)
    states = [Account.logs.create(Deposited(1)) for _ in range(3)]
    Inlined.objects.filter(pk=states[1].log_id).update(balance=99)

    def work():
        assert Inlined.objects.count() == 3  # takes the snapshot
        elsewhere(lambda: [Account.logs.append(state, Deposited(5)) for state in states])
        if what == "rebuild":
            InlinedBalances.rebuild()
        elif what == "rebuild one":
            InlinedBalances.rebuild(states[0].log_id)
        else:
            InlinedBalances.verify(sample=None, repair=True)

    try:
        # MariaDB raises nothing by itself; PostgreSQL says that it could not serialize.
        with pytest.raises((TransactionMustRetry, OperationalError)):
            begun(work)

        assert sorted(rows().values()) == [6, 6, 104]
        assert set(AppliedVersion.objects.values_list("version", flat=True)) == {2}
    finally:
        monkeypatch.undo()
        connections.close_all()


@pytest.mark.postgresql
@pytest.mark.usefixtures("inlined")
@pytest.mark.parametrize("level", [r"repeatable\ read", "serializable"])
def test_a_rebuild_beside_appends_is_run_again_under_a_stricter_isolation(
    level, monkeypatch, elsewhere
):
    connections.close_all()
    options = connection.settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "options", f"-c default_transaction_isolation={level}")
    lock_log = inline.lock_log
    appended: list[int] = []

    def lock_after_an_append(log_id, using):
        if connection.in_atomic_block and not appended:
            appended.append(EventLog.objects.count())  # takes the snapshot
            elsewhere(lambda: Account.logs.append(log_id, Deposited(5), expected_version=ANY))
        return lock_log(log_id, using)

    try:
        ada = Account.logs.create(Deposited(1))
        Inlined.objects.update(balance=99)
        monkeypatch.setattr(inline, "lock_log", lock_after_an_append)

        assert InlinedBalances.rebuild() == 2

        assert appended == [1]
        assert rows() == {ada.log_id: 6}
    finally:
        monkeypatch.undo()
        connections.close_all()


# Deliberately broken versions


@pytest.mark.postgresql
@pytest.mark.usefixtures("inlined")
def test_a_broken_version_that_does_not_run_a_rebuild_again_fails_beside_an_append(
    monkeypatch, elsewhere
):
    for module in (partitions, retries):
        monkeypatch.setattr(module, "ATTEMPTS", 1)

    with pytest.raises((AssertionError, ProjectionFailed, TransactionMustRetry)):
        test_a_rebuild_beside_appends_is_run_again_under_a_stricter_isolation(
            "serializable", monkeypatch, elsewhere
        )


def count_from_its_own_first_event(projection, log_id, using, *, upto, since=None):
    start = since or 0
    for records in inline._pages(projection, log_id, start, upto, set(), using):
        projection.change(records, using)


def test_a_broken_version_that_applies_only_its_own_events_misses_earlier_ones(
    request, monkeypatch
):
    monkeypatch.setattr(inline, "_apply", count_from_its_own_first_event)

    with pytest.raises(AssertionError):
        test_events_appended_without_the_projection_are_applied_by_the_next_append(request)


@pytest.mark.feed
def test_a_broken_version_whose_worker_ignores_applied_versions_counts_twice(request, monkeypatch):
    monkeypatch.setattr(inline, "_apply", count_from_its_own_first_event)
    monkeypatch.setattr(
        inline,
        "missing",
        lambda projection, rows, using: list({row.log_id: row for row in rows}.values()),
    )
    request.getfixturevalue("inlined")
    ada = Account.logs.create(Deposited(5))

    InlinedBalances.catch_up()

    assert seen() == {ada.log_id: 2}
