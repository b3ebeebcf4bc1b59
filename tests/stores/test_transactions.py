"""The transaction of an append, and the handling of its abort by the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Barrier, Event
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    OperationalError,
    ProgrammingError,
    connection,
    transaction,
)

from eventlogs import ANY, LogManager, LogState, TransactionMustRetry
from eventlogs.stores.retries import ATTEMPTS, must_retry, run_again
from tests.accounts import Account, Deposited, Opened
from tests.processes import until

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])

LEVELS = ["REPEATABLE READ", "SERIALIZABLE"]


class Failure(Exception):
    """The error of a database driver."""

    def __init__(self, *, sqlstate: str | None = None, sqlite_errorcode: int | None = None) -> None:
        if sqlstate is not None:
            self.sqlstate = sqlstate
        if sqlite_errorcode is not None:
            self.sqlite_errorcode = sqlite_errorcode


def error(cause: Exception | None, *args: Any) -> OperationalError:
    found = OperationalError(*args)
    found.__cause__ = cause
    return found


SERIALIZATION_FAILURE = error(Failure(sqlstate="40001"))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (SERIALIZATION_FAILURE, True),
        (error(Failure(sqlstate="40P01")), True),
        (error(Failure(sqlstate="23505")), False),
        (error(Failure(sqlstate="57014")), False),
        (error(Failure(sqlite_errorcode=5)), True),
        (error(Failure(sqlite_errorcode=5 | 2 << 8)), True),
        (error(Failure(sqlite_errorcode=1)), False),
        (error(Failure(sqlite_errorcode=19)), False),
        (error(None, 1213, "Deadlock found"), True),
        (error(None, 1205, "Lock wait timeout exceeded"), True),
        (error(None, 1062, "Duplicate entry"), False),
        (error(None, "database is locked"), False),
        (error(None), False),
        (ProgrammingError(), False),
    ],
)
def test_a_database_says_that_a_transaction_should_be_run_again(found, expected):
    assert must_retry(found) is expected


def failing(times: int, found: DatabaseError) -> Callable[[Any], int]:
    """Return an append that fails a number of times, and then returns the number of tries."""
    calls = []

    def attempt(connection: Any) -> int:
        calls.append(connection.alias)
        if len(calls) <= times:
            raise found
        return len(calls)

    return attempt


@pytest.mark.parametrize("times", range(ATTEMPTS))
def test_outside_of_a_transaction_an_append_is_retried(times):
    assert run_again("default", failing(times, SERIALIZATION_FAILURE)) == times + 1


def test_an_append_is_retried_a_limited_number_of_times():
    with pytest.raises(TransactionMustRetry) as caught:
        run_again("default", failing(ATTEMPTS, SERIALIZATION_FAILURE))

    assert (caught.value.using, caught.value.sqlstate) == ("default", "40001")
    assert caught.value.__cause__ is SERIALIZATION_FAILURE


def test_another_error_of_the_database_is_raised_unchanged():
    broken = ProgrammingError("no such table")

    with pytest.raises(ProgrammingError) as caught:
        run_again("default", failing(1, broken))

    assert caught.value is broken


def test_inside_of_a_transaction_only_the_caller_can_run_it_again():
    with transaction.atomic():
        with pytest.raises(TransactionMustRetry) as caught:
            run_again("default", failing(1, SERIALIZATION_FAILURE))
        assert connection.needs_rollback

    assert caught.value.__cause__ is SERIALIZATION_FAILURE


# With PostgreSQL's own failures


@contextmanager
def isolated(level: str) -> Iterator[None]:
    """Open a transaction at an isolation level, with its snapshot taken."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
            cursor.execute("SELECT count(*) FROM eventlogs_eventlog")
        yield


def assert_must_retry(caught: pytest.ExceptionInfo[TransactionMustRetry], sqlstate: str) -> None:
    assert (caught.value.using, caught.value.sqlstate) == ("default", sqlstate)
    assert isinstance(caught.value.__cause__, OperationalError)
    assert getattr(caught.value.__cause__.__cause__, "sqlstate", None) == sqlstate


Append = Callable[[LogManager[Account], LogState], Any]

# Conflicts of two transactions on the same log or key.
CLASHES: dict[str, tuple[Append, Append]] = {
    "append": (
        lambda accounts, state: accounts.append(state, Deposited(1)),
        lambda accounts, state: accounts.append(state, Deposited(2)),
    ),
    "append whatever the version is": (
        lambda accounts, state: accounts.append(state, Deposited(1)),
        lambda accounts, state: accounts.append(state.log_id, Deposited(2), expected_version=ANY),
    ),
    "append several": (
        lambda accounts, state: accounts.append(state, Deposited(1)),
        lambda accounts, state: accounts.append(state, Deposited(2), Deposited(3)),
    ),
    "append with a key": (
        lambda accounts, state: accounts.append(state, Deposited(1)),
        lambda accounts, state: accounts.append(state, Deposited(2), idempotency_key="k"),
    ),
    "append with the same key": (
        lambda accounts, state: accounts.append(state, Deposited(1), idempotency_key="k"),
        lambda accounts, state: accounts.append(state, Deposited(1), idempotency_key="k"),
    ),
    "create with the same key": (
        lambda accounts, state: accounts.create(Opened("bob"), idempotency_key="k"),
        lambda accounts, state: accounts.create(Opened("bob"), idempotency_key="k"),
    ),
    "append with the key of another log": (
        lambda accounts, state: accounts.create(Opened("bob"), idempotency_key="k"),
        lambda accounts, state: accounts.append(state, Deposited(1), idempotency_key="k"),
    ),
}


@pytest.mark.postgresql
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("theirs", "ours"), CLASHES.values(), ids=CLASHES)
def test_a_snapshot_that_is_too_old_means_that_the_transaction_must_retry(
    database_accounts, elsewhere, level, theirs, ours
):
    state = database_accounts.create(Opened("ada"))

    with pytest.raises(TransactionMustRetry) as caught, isolated(level):
        elsewhere(lambda: theirs(database_accounts, state))
        ours(database_accounts, state)

    assert_must_retry(caught, "40001")
    stored = database_accounts.load(state.log_id)
    assert [record.event for record in stored][1:] in ([], [Deposited(1)])


@pytest.mark.postgresql
@pytest.mark.parametrize("level", LEVELS)
def test_a_log_that_was_created_meanwhile_means_that_the_transaction_must_retry(
    database_accounts, elsewhere, level
):
    log_id = database_accounts.new_id()

    with pytest.raises(TransactionMustRetry) as caught, isolated(level):
        elsewhere(lambda: database_accounts.create(Opened("ada"), log_id=log_id))
        database_accounts.create(Opened("bob"), log_id=log_id)

    assert_must_retry(caught, "40001")
    assert [record.event for record in database_accounts.load(log_id)] == [Opened("ada")]


@pytest.mark.postgresql
@pytest.mark.parametrize("level", LEVELS)
def test_a_transaction_that_is_run_again_succeeds(database_accounts, elsewhere, level):
    state = database_accounts.create(Opened("ada"))
    tries = []

    def transfer() -> LogState:
        with isolated(level):
            reduction = database_accounts.reduce(state.log_id)
            tries.append(reduction.version)
            if len(tries) == 1:
                elsewhere(lambda: database_accounts.append(state, Deposited(1)))
            return database_accounts.append(reduction, Deposited(2))

    with pytest.raises(TransactionMustRetry):
        transfer()

    assert transfer().version == 3
    assert tries == [1, 2]


@pytest.mark.postgresql
@pytest.mark.parametrize("level", LEVELS)
def test_a_refusal_that_the_snapshot_shows_rightly_leaves_the_transaction_usable(
    database_accounts, level
):
    state = database_accounts.create(Opened("ada"), idempotency_key="k")
    refused = []

    with isolated(level):
        for call in (
            lambda: database_accounts.append(state.log_id, Deposited(1), expected_version=7),
            lambda: database_accounts.create(Opened("ada"), log_id=state.log_id),
            lambda: database_accounts.create(Opened("ada"), idempotency_key="k"),
            lambda: database_accounts.create(Opened("bob"), idempotency_key="k"),
            lambda: database_accounts.append(
                database_accounts.new_id(), Deposited(1), expected_version=ANY
            ),
        ):
            with pytest.raises(Exception) as caught:  # noqa: PT011 (each another; see below)
                call()
            refused.append(type(caught.value).__name__)
        database_accounts.append(state, Deposited(1))

    assert refused == [
        "ConcurrentAppend",
        "LogAlreadyExists",
        "IdempotentReplay",
        "IdempotencyKeyReused",
        "LogNotFound",
    ]
    assert database_accounts.version(state.log_id) == 2


@pytest.mark.postgresql
def test_of_two_transactions_in_a_deadlock_one_must_retry(database_accounts, race):
    states = [database_accounts.create(Opened("ada")) for _ in range(2)]
    both_have_one = Barrier(2)

    def transfer(first: LogState, second: LogState) -> None:
        with transaction.atomic():
            database_accounts.append(first, Deposited(-1))
            both_have_one.wait(timeout=10)
            database_accounts.append(second, Deposited(1))

    answers = race(lambda: transfer(*states), lambda: transfer(*reversed(states)))

    [lost] = [answer for answer in answers if answer is not None]
    assert isinstance(lost, TransactionMustRetry)
    assert lost.sqlstate == "40P01"
    assert isinstance(lost.__cause__, OperationalError)
    assert [database_accounts.version(state.log_id) for state in states] == [2, 2]


@pytest.mark.postgresql
@pytest.mark.one_server
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", [None, "k"])
def test_an_append_by_itself_that_the_database_aborts_is_retried(
    database_accounts, race, level, key
):
    """An append waits for a row that is newer than its snapshot once it gets it."""
    log_id = database_accounts.create(Opened("ada")).log_id
    locked = Event()
    backends: list[Any] = []

    def hold_the_log() -> None:
        with transaction.atomic():
            database_accounts.append(log_id, Deposited(1), expected_version=ANY)
            locked.set()
            wait_for_a_waiter(backends)

    def append() -> LogState:
        assert locked.wait(timeout=10)
        with connection.cursor() as cursor:
            cursor.execute(f"SET default_transaction_isolation = '{level.lower()}'")
            cursor.execute("SELECT pg_backend_pid()")
            backends.append(cursor.fetchone()[0])
        return database_accounts.append(
            log_id, Deposited(2), expected_version=ANY, idempotency_key=key
        )

    held, state = race(hold_the_log, append)

    assert held is None
    assert isinstance(state, LogState)
    assert state.version == 3


def wait_for_a_waiter(backends: list[int]) -> None:
    """Wait until the backend waits for a lock."""

    def is_waiting() -> bool:
        if not backends:
            return False
        with connection.cursor() as cursor:
            cursor.execute("SELECT cardinality(pg_blocking_pids(%s))", backends)
            return bool(cursor.fetchone()[0])

    until(is_waiting, what="a wait for the lock")
