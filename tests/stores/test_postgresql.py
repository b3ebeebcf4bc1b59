"""The store for PostgreSQL: one statement and one round trip."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from django.db import (
    DatabaseError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotentReplay,
    LogAlreadyExists,
    LogCorrupted,
    LogId,
    LogManager,
)
from eventlogs.events.unique import UniqueValue
from eventlogs.stores import AppendRequest, BaseStore, Rules, store_for
from eventlogs.stores.postgresql import (
    EVENTS_BACKWARDS,
    EVENTS_FORWARDS,
    PostgreSQLStore,
)
from eventlogs.testing.contracts.stores import amounts, append, create, new_key, new_log
from eventlogs.testing.contracts.transactions import under_rules
from tests.accounts import Account, Deposited, Opened, encoded
from tests.proxy import CountingProxy

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]


def a_value() -> Rules:
    """Return rules that claim a value which is free."""
    return Rules([UniqueValue("account.owner", uuid4())])


# Each appends once, to a log that exists at version 1 where it needs one.
SHAPES: dict[str, Callable[[BaseStore, Any], Any]] = {
    "one event": lambda store, log_id: append(store, log_id, 1, expected=1),
    "one event at any version": lambda store, log_id: append(store, log_id, 1, expected=None),
    "one event with a key": lambda store, log_id: append(
        store, log_id, 1, expected=1, key=new_key()
    ),
    "several events": lambda store, log_id: append(store, log_id, 1, 2, 3, expected=1),
    "several events with a key": lambda store, log_id: append(
        store, log_id, 1, 2, expected=1, key=new_key()
    ),
    "a thousand events": lambda store, log_id: append(store, log_id, *range(1_000), expected=1),
    "create": lambda store, log_id: create(store, 1),
    "create with a key": lambda store, log_id: create(store, 1, key=new_key()),
    "append under rules": lambda store, log_id: under_rules(store, log_id, 1, new_key(), a_value()),
    "create under rules": lambda store, log_id: under_rules(store, new_log(), 0, None, a_value()),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture
def store() -> BaseStore:
    store = store_for("default")
    assert isinstance(store, PostgreSQLStore)
    return store


@pytest.fixture
def proxy() -> Iterator[CountingProxy]:
    """A proxy through which this thread's connection goes, for the time of a test."""
    raw = connection.connection
    host, port = raw.info.host, raw.info.port
    server = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
    connection.close()
    original = connection.settings_dict
    with CountingProxy(server) as proxy:
        connection.settings_dict = {**original, "HOST": "127.0.0.1", "PORT": str(proxy.port)}
        try:
            connection.ensure_connection()
            yield proxy
        finally:
            connection.close()
            connection.settings_dict = original


def round_trips(proxy: CountingProxy, call: Callable[[], Any]) -> int:
    before = proxy.round_trips
    call()
    return proxy.round_trips - before


@pytest.fixture(autouse=True)
def _connected() -> None:
    connection.ensure_connection()


# Round trips


def test_the_proxy_counts_round_trips(proxy):
    def two_statements() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.execute("SELECT repeat('x', 1000000)")

    assert round_trips(proxy, two_statements) == 2
    assert round_trips(proxy, lambda: None) == 0


@each_shape
def test_an_append_on_a_warm_connection_is_one_round_trip(store, proxy, shape):
    logs = [create(store, 1).log_id for _ in range(3)]
    shape(store, logs[0])

    assert [round_trips(proxy, partial(shape, store, each)) for each in logs[1:]] == [1, 1]


@each_shape
def test_the_first_append_of_a_connection_takes_one_more_to_prepare(store, proxy, shape):
    log_id = create(store, 1).log_id
    connection.close()
    connection.ensure_connection()

    assert round_trips(proxy, lambda: shape(store, log_id)) == 2


@each_shape
def test_an_append_without_preparing_is_one_round_trip(store, proxy, settings, shape):
    settings.EVENTLOGS = {"PREPARED_STATEMENTS": False}
    log_id = create(store, 1).log_id

    assert round_trips(proxy, lambda: shape(store, log_id)) == 1


@each_shape
def test_in_a_callers_transaction_an_append_is_one_round_trip(store, proxy, shape):
    logs = [create(store, 1).log_id for _ in range(2)]
    shape(store, logs[0])

    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert round_trips(proxy, lambda: shape(store, logs[1])) == 1


def test_the_log_manager_adds_no_round_trip(proxy):
    state = Account.logs.create(Opened("ada"))
    state = Account.logs.append(state, Deposited(1))

    assert round_trips(proxy, lambda: Account.logs.append(state, Deposited(1))) == 1
    assert round_trips(proxy, lambda: Account.logs.create(Opened("ada"))) == 1
    assert round_trips(proxy, lambda: Account.logs.reduce(state.log_id)) == 1


def begun_by_sql() -> AbstractContextManager[Any]:
    @contextmanager
    def begin() -> Iterator[None]:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                yield
            finally:
                cursor.execute("COMMIT")

    return begin()


def begun_by_psycopg() -> AbstractContextManager[Any]:
    return connections["default"].connection.transaction()


@pytest.mark.parametrize("begun", [begun_by_sql, begun_by_psycopg])
def test_a_refusal_leaves_a_transaction_usable_that_django_does_not_know(store, begun):
    log_id, key = create(store, 1).log_id, new_key()

    with begun():
        with pytest.raises(LogAlreadyExists):
            append(store, log_id, 1, expected=0, key=key)
        append(store, log_id, 2, expected=1)

    assert amounts(store, log_id) == [1, 2]
    assert store.claim("account", key) is None


def test_a_refused_append_takes_one_round_trip_more(store, proxy):
    log_id = create(store, 1, 2).log_id

    def refused() -> None:
        with pytest.raises(ConcurrentAppend):
            append(store, log_id, 3, expected=1)

    refused()
    assert round_trips(proxy, refused) == 2


# Prepared statements


def prepared_names() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_prepared_statements")
        return {name for (name,) in cursor.fetchall()}


def test_appends_are_prepared_on_the_server(store):
    log_id = create(store, 1).log_id
    append(store, log_id, 2, expected=1)
    append(store, log_id, 3, 4, expected=2)

    kinds = {name.rpartition("_")[0] for name in prepared_names()}
    assert kinds >= {"eventlogs_create_one", "eventlogs_append_one", "eventlogs_append_many"}


def test_a_setting_turns_preparing_off(store, settings):
    connection.close()
    settings.EVENTLOGS = {"PREPARED_STATEMENTS": False}

    log_id = create(store, 1, key=new_key()).log_id
    append(store, log_id, 2, expected=1)
    append(store, log_id, 3, 4, expected=2)
    with pytest.raises(ConcurrentAppend):
        append(store, log_id, 5, expected=1)
    assert amounts(store, log_id) == [1, 2, 3, 4]

    assert prepared_names() == set()


@pytest.mark.parametrize("statement", ["DISCARD ALL", "DEALLOCATE ALL"])
def test_statements_that_were_deallocated_are_prepared_again(store, statement):
    log_id = create(store, 1).log_id
    append(store, log_id, 2, expected=1)
    append(store, log_id, 3, 4, expected=2)

    for version in (4, 6, 8):
        with connection.cursor() as cursor:
            cursor.execute(statement)
        append(store, log_id, 5, expected=version)
        append(store, log_id, 6, expected=version + 1)
        assert create(store, 1).version == 1

    assert store.version(log_id) == 10


def test_statements_are_prepared_again_after_a_change_of_the_tables(store):
    log_id = create(store, 1).log_id
    append(store, log_id, 2, expected=1)

    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE eventlogs_event ADD COLUMN note text")
    try:
        append(store, log_id, 3, expected=2)
        assert amounts(store, log_id) == [1, 2, 3]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE eventlogs_event DROP COLUMN note")

    append(store, log_id, 4, expected=3)
    assert amounts(store, log_id) == [1, 2, 3, 4]


@pytest.mark.parametrize("inside", ["a transaction", "autocommit"])
def test_an_append_after_a_rollback_finds_its_statements(store, inside):
    """Psycopg deallocates all statements of a connection after a rollback, if it made one."""
    log_id = create(store, 1).log_id
    append(store, log_id, 2, expected=1)
    assert store.events(log_id, start=0, limit=1)
    with transaction.atomic():
        append(store, log_id, 3, expected=2)
        transaction.set_rollback(True)

    if inside == "a transaction":
        with transaction.atomic():
            assert store.version(log_id) == 2
            append(store, log_id, 4, expected=2)
    else:
        assert store.version(log_id) == 2
        append(store, log_id, 4, expected=2)

    assert amounts(store, log_id) == [1, 2, 4]


def test_a_connection_that_was_opened_again_has_its_statements(store):
    log_id = create(store, 1).log_id
    append(store, log_id, 2, expected=1)

    connection.close()
    append(store, log_id, 3, expected=2)
    connection.close()

    assert amounts(store, log_id) == [1, 2, 3]


def test_a_connection_that_was_cut_is_an_operational_error_and_is_usable_again(store, elsewhere):
    log_id = create(store, 1).log_id
    append(store, log_id, 2, expected=1)
    pid = connection.connection.info.backend_pid

    def terminate() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    elsewhere(terminate)
    with pytest.raises(OperationalError):
        append(store, log_id, 3, expected=2)
    connection.close_if_unusable_or_obsolete()

    append(store, log_id, 4, expected=2)
    assert amounts(store, log_id) == [1, 2, 4]


# Watched connections


@each_shape
def test_an_append_counts_as_one_query(store, shape, django_assert_num_queries):
    log_id = create(store, 1).log_id

    with django_assert_num_queries(1) as queries:
        shape(store, log_id)

    assert "INSERT INTO eventlogs_event" in queries[0]["sql"]


@each_shape
def test_an_execute_wrapper_sees_an_append(store, shape):
    log_id = create(store, 1).log_id
    seen = []

    def watch(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        seen.append(sql)
        return execute(sql, *arguments)

    with connection.execute_wrapper(watch):
        shape(store, log_id)

    assert len(seen) == 1
    assert "INSERT INTO eventlogs_event" in seen[0]


def test_an_execute_wrapper_can_forbid_an_append(store):
    log_id = create(store, 1).log_id

    def forbid(*arguments: Any) -> Any:
        raise PermissionError

    with connection.execute_wrapper(forbid), pytest.raises(PermissionError):
        append(store, log_id, 2, expected=1)

    assert amounts(store, log_id) == [1]


def test_a_debug_toolbar_that_wraps_the_cursor_sees_an_append(store):
    log_id = create(store, 1).log_id
    seen = []
    original = connection.cursor

    def cursor(*arguments: Any) -> Any:
        seen.append("cursor")
        return original(*arguments)

    vars(connections["default"])["cursor"] = cursor
    try:
        append(store, log_id, 2, expected=1)
    finally:
        del connections["default"].cursor

    assert seen == ["cursor"]


def test_watched_and_unwatched_appends_answer_the_same(store):
    def history() -> list[Any]:
        log_id, key, answers = new_log(), new_key(), []
        for request in (
            AppendRequest(log_id, encoded(1), 0, key, "{}"),
            AppendRequest(log_id, encoded(2), 1, None, "{}"),
            AppendRequest(log_id, encoded(3, 4), 2, None, "{}"),
            AppendRequest(log_id, encoded(5), 1, None, "{}"),
            AppendRequest(log_id, encoded(1), 0, key, "{}"),
            AppendRequest(log_id, encoded(9), 0, new_key(), "{}"),
        ):
            try:
                answers.append(store.append(request).version)
            except (ConcurrentAppend, IdempotentReplay) as error:
                answers.append(type(error))
        return answers

    expected = [1, 2, 4, ConcurrentAppend, IdempotentReplay, LogAlreadyExists]

    assert history() == expected
    with CaptureQueriesContext(connection):
        assert history() == expected


# Errors


@pytest.mark.parametrize("watched", [False, True])
def test_errors_of_the_database_are_djangos(store, watched):
    log_id = create(store, 1).log_id

    def lose_the_table() -> None:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE eventlogs_event RENAME TO eventlogs_gone")
        if watched:
            with CaptureQueriesContext(connection):
                append(store, log_id, 2, expected=1)
        else:
            append(store, log_id, 2, expected=1)

    with pytest.raises(ProgrammingError) as caught, transaction.atomic():
        lose_the_table()

    assert isinstance(caught.value, DatabaseError)
    assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedTable)
    assert connection.is_usable()
    append(store, log_id, 3, expected=1)
    assert amounts(store, log_id) == [1, 3]


def test_an_append_from_another_thread_than_the_connections_is_refused(store, race):
    """Django forbids to share a connection; so do appends that go around its cursor."""
    log_id = create(store, 1).log_id
    mine = connections["default"]

    def append_there() -> None:
        connections["default"] = mine
        try:
            append(store, log_id, 2, expected=1)
        finally:
            del connections["default"]

    [error] = race(append_there)

    assert isinstance(error, DatabaseError)
    assert "thread" in str(error)
    assert amounts(store, log_id) == [1]


def test_text_with_special_characters_is_stored(store):
    accounts = LogManager(Account, store=store)
    text = "%s %(log)s {} \\ \" ' ; -- \x01 é ☃ \U0001f600 " * 100

    state = accounts.create(Opened(text), metadata={text: text}, idempotency_key=text[:250])
    state = accounts.append(state, Opened(text), metadata={text: text})

    for record in accounts.load(state.log_id):
        assert record.event == Opened(text)
        assert record.metadata == {text: text}


def test_the_prepare_setting_of_a_connection_is_not_changed(store):
    log_id = create(store, 1).log_id
    before = connection.connection.prepare_threshold

    store.events(log_id, start=0, limit=1)
    append(store, log_id, 2, expected=None)

    assert connection.connection.prepare_threshold == before


def test_an_append_that_waits_does_not_block_other_threads(race):
    """A thread that waits for a log's row lets another one commit."""
    accounts = Account.logs
    log_id = accounts.create(Opened("ada")).log_id

    def append_often() -> None:
        for _ in range(20):
            with transaction.atomic():
                accounts.append(log_id, Deposited(1), expected_version=ANY)

    answers = race(*[append_often] * 4)

    assert answers == [None] * 4
    assert accounts.version(log_id) == 81


# Pages of a long log, on a table of which the planner knows nothing yet.

BOUND = re.compile(r"  AND index (<|>=) \(.*?log_type\)s::text\)\n", re.DOTALL)


def rows_examined(sql: str, log_id: LogId, start: int) -> int:
    """Return the most rows that any step of the plan went through."""
    parameters = {"log": log_id.uuid, "log_type": log_id.log_type, "start": start, "limit": 100}
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters)  # type: ignore[arg-type]
        [[[found]]] = cursor.fetchall()
    steps = [found["Plan"]]
    for step in steps:
        steps.extend(step.get("Plans", []))
    return max(step["Actual Rows"] for step in steps)


@pytest.mark.parametrize("statement", [EVENTS_FORWARDS, EVENTS_BACKWARDS])
@pytest.mark.parametrize("start", [0, 2_500, 4_999])
def test_a_page_of_a_long_log_goes_through_no_more_rows_than_the_page(store, statement, start):
    log_id = create(store, *range(5_000)).log_id

    assert rows_examined(statement.sql, log_id, start) <= 100


def test_without_its_bound_a_page_may_go_through_the_rest_of_the_log(store):
    """A deliberately broken version of the test above: LIMIT alone, and a planner that sorts."""
    log_id = create(store, *range(5_000)).log_id
    unbounded = BOUND.sub("", EVENTS_FORWARDS.sql)
    assert unbounded != EVENTS_FORWARDS.sql

    with transaction.atomic(), connection.cursor() as cursor:
        # The planner's choice on a table without statistics, made certain.
        cursor.execute("SET LOCAL enable_indexscan = off")
        examined = rows_examined(unbounded, log_id, 0)

    assert examined == 5_000


@pytest.mark.parametrize("hole", [range(1, 2), range(98, 100), range(50, 150), range(0, 100)])
def test_events_behind_a_hole_are_answered_so_that_the_hole_is_seen(store, hole):
    log_id = create(store, *range(300)).log_id
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_refuse_change")
        cursor.execute(
            "DELETE FROM eventlogs_event WHERE log_id = %s AND index >= %s AND index < %s",
            [log_id.uuid, hole.start, hole.stop],
        )
        cursor.execute(
            "ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_change"
        )
    left = [index for index in range(300) if index not in hole]

    forwards = [row.index for row in store.stream(log_id, page=100)]
    page = store.events(log_id, start=199, limit=100, reverse=True)

    # The first event behind the hole exists, and is not the next one.
    assert forwards[: hole.start + 1] == left[: hole.start + 1]
    assert [row.index for row in page][:1] == [199]
    if hole.stop > 100:
        assert [row.index for row in page][-1] < hole.start


def test_a_log_with_a_hole_is_not_reduced(store):
    manager = LogManager(Account)
    state = manager.create(Opened(owner="Ada"))
    manager.append(state, *[Deposited(amount=1)] * 2_500)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_refuse_change")
        cursor.execute("DELETE FROM eventlogs_event WHERE index BETWEEN 1900 AND 1999")
        cursor.execute(
            "ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_change"
        )

    with pytest.raises(LogCorrupted) as caught:
        manager.reduce(state.log_id)

    assert (caught.value.expected_index, caught.value.actual_index) == (1_900, 2_000)
