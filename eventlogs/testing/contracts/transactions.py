"""The contract of stores that keep their logs in a database: the caller's transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs.events.unique import UniqueValue
from eventlogs.exceptions import (
    ConcurrentAppend,
    EventLogError,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogAlreadyExists,
    LogFull,
    LogNotFound,
    NameTaken,
    TransactionMustRetry,
)
from eventlogs.ids import LogId
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.models import UniqueValue as UniqueRow
from eventlogs.stores import AppendRequest, BaseStore, Rules
from eventlogs.testing.contracts.stores import amounts, append, create, encoded, new_key, new_log
from eventlogs.values import LogState

Refused = tuple[type[EventLogError], Callable[[], Any]]


def rows() -> list[int]:
    """Count logs, events, keys and unique values."""
    return [each.objects.count() for each in (EventLog, Event, IdempotencyKey, UniqueRow)]


class Unwanted(Exception):
    """An error that rolls the caller's transaction back."""


@contextmanager
def rolled_back() -> Iterator[None]:
    with pytest.raises(Unwanted), transaction.atomic():
        yield
        raise Unwanted


# Each prepares logs and keys, and returns an append and the error that refuses it.


def stale_append(store: BaseStore) -> Refused:
    log_id = create(store, 1, 2).log_id
    return ConcurrentAppend, lambda: append(store, log_id, 3, expected=1)


def stale_append_with_a_key(store: BaseStore) -> Refused:
    log_id, key = create(store, 1, 2).log_id, new_key()
    return ConcurrentAppend, lambda: append(store, log_id, 3, 4, expected=1, key=key)


def append_to_another_history(store: BaseStore) -> Refused:
    state = create(store, 1, 2)
    return ConcurrentAppend, lambda: append(
        store, state.log_id, 3, expected=2, position=state.position + 1, key=new_key()
    )


def append_to_no_log(store: BaseStore) -> Refused:
    return LogNotFound, lambda: append(store, new_log(), 1, expected=None, key=new_key())


def create_of_a_log_that_exists(store: BaseStore) -> Refused:
    log_id = create(store, 1).log_id
    return LogAlreadyExists, lambda: append(store, log_id, 1, expected=0)


def create_of_a_log_that_exists_with_a_free_key(store: BaseStore) -> Refused:
    log_id, key = create(store, 1).log_id, new_key()
    return LogAlreadyExists, lambda: append(store, log_id, 1, expected=0, key=key)


def replayed_append(store: BaseStore) -> Refused:
    log_id, key = create(store, 1).log_id, new_key()
    append(store, log_id, 2, expected=1, key=key)
    return IdempotentReplay, lambda: append(store, log_id, 2, expected=1, key=key)


def replayed_create(store: BaseStore) -> Refused:
    key = new_key()
    create(store, 1, key=key)
    return IdempotentReplay, lambda: create(store, 1, key=key)


def key_used_for_another_append(store: BaseStore) -> Refused:
    log_id, key = create(store, 1).log_id, new_key()
    append(store, log_id, 2, expected=1, key=key)
    return IdempotencyKeyReused, lambda: append(store, log_id, 3, expected=2, key=key)


def key_used_for_another_create(store: BaseStore) -> Refused:
    key = new_key()
    create(store, 1, key=key)
    return IdempotencyKeyReused, lambda: create(store, 2, key=key)


def append_to_a_full_log(store: BaseStore) -> Refused:
    log_id, key = create(store, 1).log_id, new_key()
    set_version(log_id, 2**31 - 1)
    return LogFull, lambda: append(store, log_id, 2, expected=None, key=key)


def under_rules(
    store: BaseStore, log_id: LogId, expected: int | None, key: str | None, rules: Rules
) -> LogState:
    """Append a deposit under rules."""
    request = AppendRequest(log_id, encoded(1), expected, key, "{}", None, rules)
    return store.append(request)


def taken_value(store: BaseStore) -> Rules:
    """Return rules that claim a value that is free, and one that another log has."""
    free, taken = UniqueValue("account.iban", uuid4()), UniqueValue("account.owner", uuid4())
    under_rules(store, new_log(), 0, None, Rules([taken]))
    return Rules([free, taken])


def append_of_a_taken_value(store: BaseStore) -> Refused:
    log_id, rules = create(store, 1).log_id, taken_value(store)
    return NameTaken, lambda: under_rules(store, log_id, 1, new_key(), rules)


def create_of_a_taken_value(store: BaseStore) -> Refused:
    rules = taken_value(store)
    return NameTaken, lambda: under_rules(store, new_log(), 0, new_key(), rules)


def append_behind_another_log_that_has_moved(store: BaseStore) -> Refused:
    log_id, other = create(store, 1).log_id, create(store, 1)
    append(store, other.log_id, 2, expected=1)
    rules = Rules([UniqueValue("account.iban", uuid4())], [other])
    return ConcurrentAppend, lambda: under_rules(store, log_id, None, new_key(), rules)


def set_version(log_id: Any, version: int) -> None:
    """Change a log's version directly, without an append."""
    identifier = log_id.uuid.hex if connection.vendor == "sqlite" else log_id.uuid
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE eventlogs_eventlog SET version = %s WHERE id = %s", [version, identifier]
        )
        assert cursor.rowcount == 1


REFUSALS = [
    stale_append,
    stale_append_with_a_key,
    append_to_another_history,
    append_to_no_log,
    create_of_a_log_that_exists,
    create_of_a_log_that_exists_with_a_free_key,
    replayed_append,
    replayed_create,
    key_used_for_another_append,
    key_used_for_another_create,
    append_to_a_full_log,
]
# Of a store that keeps rules across logs.
REFUSALS_BY_RULES = [
    append_of_a_taken_value,
    create_of_a_taken_value,
    append_behind_another_log_that_has_moved,
]


def skip_unless_kept(store: BaseStore, refusal: Callable[[BaseStore], Refused]) -> None:
    if refusal in REFUSALS_BY_RULES and not store.keeps_rules:
        pytest.skip("this store keeps no rules across logs")


class TransactionContract:
    """Subclass it with a fixture ``store``, of the default database, in autocommit mode."""

    @pytest.fixture
    def elsewhere(self) -> Callable[[Callable[[], Any]], Any]:
        """Return a function that makes a call over another connection."""

        def run(call: Callable[[], Any]) -> Any:
            def start() -> Any:
                try:
                    return call()
                finally:
                    connections.close_all()

            with ThreadPoolExecutor(1) as pool:
                return pool.submit(start).result(timeout=20)

        return run

    @pytest.mark.parametrize("refusal", [*REFUSALS, *REFUSALS_BY_RULES])
    def test_a_refusal_leaves_the_transaction_usable(
        self, store: BaseStore, refusal: Callable[[BaseStore], Refused]
    ) -> None:
        skip_unless_kept(store, refusal)
        error, refused_append = refusal(store)
        other = create(store, 1).log_id

        with transaction.atomic():
            append(store, other, 2, expected=1)
            with pytest.raises(error):
                refused_append()
            assert not connection.needs_rollback
            append(store, other, 3, expected=2)

        assert amounts(store, other) == [1, 2, 3]

    @pytest.mark.parametrize("refusal", [*REFUSALS, *REFUSALS_BY_RULES])
    def test_a_refusal_takes_no_savepoint_and_raises_nothing_in_the_database(
        self, store: BaseStore, refusal: Callable[[BaseStore], Refused]
    ) -> None:
        skip_unless_kept(store, refusal)
        error, refused_append = refusal(store)
        database_errors = []

        def watch(execute: Callable[..., Any], *call: Any) -> Any:
            try:
                return execute(*call)
            except Exception as database_error:
                database_errors.append(database_error)
                raise

        with (
            transaction.atomic(),
            CaptureQueriesContext(connection) as queries,
            connection.execute_wrapper(watch),
            pytest.raises(error),
        ):
            refused_append()

        assert len(queries) > 0
        assert not [query for query in queries if "SAVEPOINT" in query["sql"].upper()]
        assert database_errors == []

    @pytest.mark.parametrize("refusal", [*REFUSALS, *REFUSALS_BY_RULES])
    @pytest.mark.parametrize("mode", ["autocommit", "in a transaction"])
    def test_a_refusal_stores_nothing(
        self, store: BaseStore, refusal: Callable[[BaseStore], Refused], mode: str
    ) -> None:
        skip_unless_kept(store, refusal)
        error, refused_append = refusal(store)
        before = rows()

        if mode == "autocommit":
            with pytest.raises(error):
                refused_append()
        else:
            with transaction.atomic(), pytest.raises(error):
                refused_append()

        assert rows() == before

    def test_appends_take_no_savepoint(self, store: BaseStore) -> None:
        with transaction.atomic(), CaptureQueriesContext(connection) as queries:
            log_id = create(store, 1, key=new_key()).log_id
            append(store, log_id, 2, expected=1)
            append(store, log_id, 3, 4, expected=None, key=new_key())

        assert not [query for query in queries if "SAVEPOINT" in query["sql"].upper()]

    def test_a_rollback_leaves_nothing(self, store: BaseStore) -> None:
        key = new_key()
        existing = create(store, 1)
        before = rows()

        with rolled_back():
            create(store, 1, 2, key=key)
            append(store, existing.log_id, 2, expected=1, key=new_key())
            append(store, existing.log_id, 3, expected=2)

        assert rows() == before
        assert amounts(store, existing.log_id) == [1]
        assert store.claim("account", key) is None

    def test_after_a_rollback_the_same_append_is_a_first_one(self, store: BaseStore) -> None:
        key, log_id = new_key(), new_log()
        with rolled_back():
            append(store, log_id, 1, expected=0, key=key)

        state = append(store, log_id, 1, expected=0, key=key)

        assert state.version == 1
        assert amounts(store, log_id) == [1]

    def test_rolling_back_the_callers_savepoint_undoes_later_appends(
        self, store: BaseStore
    ) -> None:
        log_id, key = new_log(), new_key()

        with transaction.atomic():
            append(store, log_id, 1, expected=0)
            with rolled_back():
                append(store, log_id, 2, expected=1, key=key)
            append(store, log_id, 3, expected=1, key=key)

        assert amounts(store, log_id) == [1, 3]

    def test_other_connections_see_an_append_when_its_transaction_commits(
        self, store: BaseStore, elsewhere: Callable[[Callable[[], Any]], Any]
    ) -> None:
        log_id = create(store, 1).log_id

        with transaction.atomic():
            append(store, log_id, 2, expected=1)
            seen_before = elsewhere(lambda: store.version(log_id))

        assert (seen_before, elsewhere(lambda: store.version(log_id))) == (1, 2)

    def test_an_append_joins_a_transaction_that_began_without_atomic(
        self, store: BaseStore
    ) -> None:
        log_id = create(store, 1).log_id

        transaction.set_autocommit(False)
        try:
            append(store, log_id, 2, expected=1)
            with pytest.raises(LogAlreadyExists):
                append(store, log_id, 2, expected=0, key=new_key())
            transaction.rollback()
            append(store, log_id, 3, expected=1, key=new_key())
            append(store, log_id, 4, expected=2)
            transaction.commit()
        finally:
            transaction.set_autocommit(True)

        assert amounts(store, log_id) == [1, 3, 4]

    def test_an_append_in_a_broken_transaction_is_refused(self, store: BaseStore) -> None:
        log_id = create(store, 1).log_id

        with rolled_back():
            transaction.set_rollback(True)
            with pytest.raises(transaction.TransactionManagementError):
                append(store, log_id, 2, expected=1)

        assert amounts(store, log_id) == [1]

    def test_an_append_sees_the_earlier_writes_of_its_transaction(self, store: BaseStore) -> None:
        key = new_key()

        with transaction.atomic():
            state = create(store, 1)
            append(store, state.log_id, 2, expected=1, key=key)
            with pytest.raises(IdempotentReplay) as caught:
                append(store, state.log_id, 2, expected=1, key=key)
            with pytest.raises(ConcurrentAppend):
                append(store, state.log_id, 2, expected=1)

        assert caught.value.index == 1
        assert amounts(store, state.log_id) == [1, 2]

    def test_a_turn_is_its_own_transaction(self, store: BaseStore) -> None:
        log_id, other = create(store, 1).log_id, create(store, 1).log_id

        def call() -> None:
            assert connection.in_atomic_block
            append(store, other, 2, expected=1)
            append(store, log_id, 2, expected=1)
            raise Unwanted

        with pytest.raises(Unwanted):
            store.in_turn(log_id, call, conflicts=1)

        assert not connection.in_atomic_block
        assert amounts(store, log_id) == amounts(store, other) == [1]

    @pytest.mark.parametrize("in_atomic", [True, False])
    def test_a_turn_joins_the_callers_transaction(self, store: BaseStore, in_atomic: bool) -> None:
        log_id = create(store, 1).log_id

        def call() -> None:
            append(store, log_id, 2, expected=1)

        if in_atomic:
            with rolled_back(), CaptureQueriesContext(connection) as queries:
                store.in_turn(log_id, call, conflicts=1)
            assert not any("SAVEPOINT" in each["sql"] for each in queries)
        else:
            transaction.set_autocommit(False)
            try:
                store.in_turn(log_id, call, conflicts=1)
                transaction.rollback()
            finally:
                transaction.set_autocommit(True)

        assert amounts(store, log_id) == [1]

    def test_a_turn_that_the_database_aborts_is_retried(self, store: BaseStore) -> None:
        log_id = create(store, 1).log_id
        begun = []

        def call() -> LogState:
            begun.append(1)
            state = append(store, log_id, 2, expected=1)
            if len(begun) < 3:
                raise TransactionMustRetry(using="default", sqlstate="40P01") from deadlock()
            return state

        assert store.in_turn(log_id, call, conflicts=1).version == 2

        assert len(begun) == 3
        assert amounts(store, log_id) == [1, 2]


def deadlock() -> OperationalError:
    """Return an error by which the database of the run says that a transaction must retry."""
    error = OperationalError(1213, "deadlock")
    error.__cause__ = cause = Exception("deadlock")
    cause.sqlstate = "40P01"  # type: ignore[attr-defined]
    if connection.vendor == "sqlite":
        cause.sqlite_errorcode = 5  # type: ignore[attr-defined]
    return error
