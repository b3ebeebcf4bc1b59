"""Observers are told what happens in appends, reductions, refreshes and projections."""

from __future__ import annotations

import logging

import pytest
from django.db import connection, transaction

from eventlogs import (
    ConcurrentAppend,
    ConstraintViolated,
    IdempotentReplay,
    InvalidEvent,
    LogId,
    LogManager,
    LogNotFound,
    NameTaken,
    ProjectionFailed,
    TransactionMustRetry,
)
from eventlogs.observers import (
    Batch,
    CacheUse,
    EventFailed,
    EventParked,
    EventSkipped,
    Observer,
    Reaction,
    Reduce,
    RefreshRun,
    observers,
    register,
    unregister,
)
from eventlogs.projections import Reactor, handles
from eventlogs.projections.base import projections
from eventlogs.reductions.reader import ReductionReader
from eventlogs.refreshers import ImmediateRefresher
from eventlogs.stores import participants
from eventlogs.stores.participants import Participant
from eventlogs.testing import MemoryStore
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Deposited, Noted, Opened, withdraw
from tests.members import Joined, Member
from tests.parked import parked_payment
from tests.watching import Notes, watched

TRANSACTIONS = pytest.mark.django_db(transaction=True)


class Letters(Reactor):
    """A reactor of one test."""

    log_types = ["account"]
    name = "letters-observed"
    version = 1

    @handles(Opened)
    def write(self, record):
        if record.event.owner == "nobody":
            raise ValueError(record.event.owner)


@pytest.fixture
def letters(monkeypatch):
    """The reactor, declared for one test."""
    monkeypatch.setattr(Letters, "max_attempts", 1)
    monkeypatch.setitem(projections, Letters.name, Letters)
    return Letters


@pytest.fixture
def notes():
    with watched() as notes:
        yield notes


def test_nobody_observes_by_default():
    assert observers == []


def test_an_observer_is_registered_once():
    notes = Notes()

    register(notes)
    register(notes)
    unregister(notes)
    unregister(notes)

    assert observers == []


@TRANSACTIONS
def test_appends_have_an_outcome(notes):
    accounts = Account.logs
    state = accounts.create(Opened("ada"), Deposited(1), Deposited(2), idempotency_key="k")
    accounts.append(state, Deposited(3))
    with pytest.raises(ConcurrentAppend):
        accounts.append(state, Deposited(3))
    with pytest.raises(IdempotentReplay):
        accounts.create(Opened("ada"), Deposited(1), Deposited(2), idempotency_key="k")
    accounts.get_or_create(Opened("ada"), Deposited(1), Deposited(2), idempotency_key="k")
    with pytest.raises(InvalidEvent):
        accounts.append(state, Noted(float("nan")))
    with pytest.raises(LogNotFound):
        accounts.append(accounts.new_id(), Deposited(1), expected_version=1)

    assert notes.outcomes == [
        *["appended", "appended", "conflict", "replayed", "replayed", "refused", "refused"]
    ]
    first, second, *others = notes.of(type(notes.ended[0]))
    assert (first.aggregate, first.log_id, first.using) == (Account, state.log_id, "default")
    assert (first.is_create, first.events, first.index) == (True, 3, 0)
    assert first.event_types == ("account.opened", "account.deposited")
    assert first.state == state
    assert first.seconds > 0
    assert (second.is_create, second.events, second.index) == (False, 1, 3)
    assert [type(each.error) for each in others[:2]] == [ConcurrentAppend, IdempotentReplay]
    assert notes.commits == [first, second]


@TRANSACTIONS
def test_a_taken_name_is_refused(notes):
    Member.logs.create(Joined("a@b.example"))
    with pytest.raises(NameTaken):
        Member.logs.create(Joined("a@b.example"))

    assert notes.outcomes == ["appended", "refused"]


@TRANSACTIONS
def test_an_append_that_was_refused_in_the_end_by_decoding_is_a_replay(notes, scratch_registry):
    """The store sees other fingerprints; the manager finds equal events, and so do observers."""
    accounts = Account.logs
    accounts.create(Noted({"a": 1}), idempotency_key="k")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE eventlogs_idempotencykey SET fingerprint = %s", [b"x" * 32])

    with pytest.raises(IdempotentReplay):
        accounts.create(Noted({"a": 1}), idempotency_key="k")

    assert notes.outcomes == ["appended", "replayed"]


@TRANSACTIONS
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ProjectionFailed("balances", LogId.new("account"), 1), "failed"),
        (
            ConstraintViolated(
                "balances", LogId.new("account"), 1, constraint="unique", fields=("owner",)
            ),
            "refused",
        ),
        (TransactionMustRetry(using="default", sqlstate="40001"), "failed"),
        (ZeroDivisionError(), "failed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_takes_part_in_an_append_may_refuse_it_or_fail(notes, monkeypatch, error, outcome):
    def take_part(using, state, request):
        raise error

    monkeypatch.setitem(participants.registered, "one", Participant({"account"}, take_part))

    with pytest.raises(type(error)):
        Account.logs.create(Opened("ada"))

    assert notes.outcomes == [outcome]
    assert notes.commits == []


@TRANSACTIONS
def test_an_append_counts_as_committed_after_the_commit(notes):
    with transaction.atomic():
        Account.logs.create(Opened("ada"))
        assert (notes.outcomes, notes.commits) == (["appended"], [])

    assert len(notes.commits) == 1


@TRANSACTIONS
def test_an_append_that_is_rolled_back_is_never_committed(notes):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Account.logs.create(Opened("ada"))
        raise ZeroDivisionError
    with transaction.atomic():
        state = Account.logs.create(Opened("eve"))
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Account.logs.append(state, Deposited(1))
            raise ZeroDivisionError
        Account.logs.append(state, Deposited(2))

    assert [each.index for each in notes.commits] == [0, 1]
    assert notes.outcomes == ["appended"] * 4


@TRANSACTIONS
def test_without_autocommit_nobody_knows_of_a_commit(notes):
    connection.set_autocommit(False)
    try:
        Account.logs.create(Opened("ada"))
        connection.rollback()
    finally:
        connection.set_autocommit(True)

    assert (notes.outcomes, notes.commits) == (["appended"], [])


def test_a_store_in_memory_commits_at_once(notes):
    LogManager(Account, store=MemoryStore()).create(Opened("ada"))

    [append] = notes.commits
    assert append.using is None


@TRANSACTIONS
def test_each_attempt_of_execute_is_an_append(notes):
    state = Account.logs.create(Opened("ada"), Deposited(9))
    attempts = []

    def decide(account):
        attempts.append(account.balance)
        if len(attempts) == 1:
            Account.logs.append(state, Deposited(1))
        yield from withdraw(account, 1)

    Account.logs.execute(state.log_id, decide)

    assert notes.outcomes == ["appended", "appended", "conflict", "appended"]


@TRANSACTIONS
def test_reductions_say_whether_the_cache_had_them(notes):
    accounts = LogManager(Account, refresher=ImmediateRefresher())
    state = accounts.create(Opened("ada"), Deposited(1))

    accounts.reduce(state.log_id)
    accounts.reduce(state.log_id)
    accounts.append(state, Deposited(1))
    accounts.reduce(state.log_id)
    accounts.reduce(state.log_id, fresh=True)
    with pytest.raises(LogNotFound):
        accounts.reduce(accounts.new_id())

    assert [(each.outcome, each.reason, each.events) for each in notes.of(Reduce)] == [
        ("miss", "absent", 2),
        ("hit", "", 0),
        ("miss", "behind", 1),
        ("uncached", "", 3),
        ("not_found", "", 0),
    ]
    assert {each.outcome for each in notes.of(CacheUse)} == {"hit", "miss", "refresh"}


@TRANSACTIONS
def test_a_cache_that_cannot_be_reached_is_one_reduction(notes, unreachable_cache):
    state = Account.logs.create(Opened("ada"))
    LogManager(Account, cache=unreachable_cache).reduce(state.log_id)

    [reduce] = notes.of(Reduce)
    assert (reduce.outcome, reduce.reason, reduce.events) == ("miss", "unreachable", 1)


@pytest.fixture
def unreachable_cache(settings):
    settings.CACHES = {
        **settings.CACHES,
        "gone": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": "redis://127.0.0.1:1",
        },
    }
    pytest.importorskip("redis")
    return "gone"


@TRANSACTIONS
def test_refreshes_say_whether_they_wrote(notes):
    accounts = LogManager(Account, refresher=ImmediateRefresher(), refresh_on_append=True)

    state = accounts.create(Opened("ada"))

    [run] = notes.of(RefreshRun)
    assert (run.log_id, run.outcome) == (state.log_id, "written")


@TRANSACTIONS
def test_an_entry_of_an_erased_log_is_removed_and_not_written(notes):
    reader = ReductionReader(Account, using="default")
    log_id = Account.logs.new_id()
    reader.cache.replace(reader.key(log_id), b"of a log that was erased", timeout=60)

    assert reader.refresh(log_id) is True
    assert reader.refresh(log_id) is False

    assert [run.outcome for run in notes.of(RefreshRun)] == ["removed", "unneeded"]


@pytest.mark.feed
@TRANSACTIONS
def test_batches_and_reactions(notes, letters):
    state = Account.logs.create(Opened("ada"), Deposited(1))

    letters.catch_up()
    letters.catch_up()

    [batch] = notes.of(Batch)
    assert (batch.projection, batch.using, batch.outcome) == (letters, "default", "applied")
    assert (batch.read, batch.events, batch.is_retry) == (1, 1, False)
    [reaction] = notes.of(Reaction)
    assert (reaction.record.log_id, reaction.error) == (state.log_id, None)


@pytest.mark.feed
@TRANSACTIONS
def test_a_handler_that_fails_is_a_failed_reaction_and_a_parked_event(notes, letters):
    state = Account.logs.create(Opened("nobody"))

    letters.catch_up()

    assert [type(each.error.error) for each in notes.of(Reaction)] == [ValueError]
    for kind in (EventFailed, EventParked):
        [fact] = notes.of(kind)
        assert (fact.projection, fact.log_id, fact.index) == (letters, state.log_id, 0)
        assert (fact.event_type, fact.error) == ("account.opened", "ValueError")

    letters.skip(state.log_id)

    [fact] = notes.of(EventSkipped)
    assert fact.position == state.position


@pytest.mark.feed
@TRANSACTIONS
def test_rows_that_fail_are_parked_after_the_commit(notes, monkeypatch):
    parked_payment(monkeypatch, "no")

    assert [fact.projection for fact in notes.of(EventParked)] == [PaymentSummaries]
    assert len(notes.of(EventFailed)) == 1
    assert sum(each.events for each in notes.of(Batch)) == 1


@TRANSACTIONS
def test_an_observer_that_raises_changes_nothing(caplog):
    class Broken(Observer):
        def begin(self, operation):
            raise ValueError("secret")

        committed = happened = begin

    class BrokenEnd(Observer):
        def end(self, operation, token):
            raise ValueError("secret")

    caplog.set_level(logging.ERROR, "eventlogs.observers")
    with watched(Broken()), watched(BrokenEnd()), watched() as notes:
        state = Account.logs.create(Opened("ada"))
        Account.logs.reduce(state.log_id)

    assert len(notes.commits) == 1
    assert "Broken failed: ValueError" in caplog.text
    assert "secret" not in caplog.text
    assert "Traceback" not in caplog.text


def test_what_observers_get_has_no_payload_data(notes):
    accounts = LogManager(Account, store=MemoryStore())
    accounts.create(Opened("secret owner"))

    assert "secret" not in repr(notes.ended[0])
    assert isinstance(notes.ended[0].log_id, LogId)
