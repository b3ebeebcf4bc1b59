"""Prepared statements inside of a caller's transaction: they are used, and never break it."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import psycopg
import pytest
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper

from eventlogs import ConcurrentAppend, LogAlreadyExists, LogId, TransactionMustRetry, conf
from eventlogs.stores import BaseStore, psycopg_connections, store_for
from eventlogs.stores.append_statements import VARIANTS
from eventlogs.testing.contracts.stores import amounts, append, create, new_key
from tests.stores.test_statements import alarm, interrupt, locked

APPEND_ONE = VARIANTS[False, conf.has_buckets()].append_one

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
    pytest.mark.skipif(not psycopg.Pipeline.is_supported(), reason="libpq 14 has pipelines"),
]


@pytest.fixture
def store() -> BaseStore:
    return store_for("default")


@pytest.fixture(autouse=True)
def _prepared() -> Iterator[None]:
    """Have statements prepared again after a test that has given that up."""
    connection.close()
    yield
    psycopg_connections.unprepared.clear()


def run(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def history(store: BaseStore) -> LogId:
    """Append in each shape inside of the transaction that is open; see HISTORY."""
    log_id = create(store, 1, key=new_key()).log_id
    for _ in range(2):
        version = store.version(log_id)
        append(store, log_id, 2, expected=version)
        append(store, log_id, 3, 4, expected=version + 1)
        append(store, log_id, 5, expected=version + 3, key=new_key())
    return log_id


HISTORY = [1, 2, 3, 4, 5, 2, 3, 4, 5]


def calls_of_append_one() -> int:
    """Return how often this session's server has run APPEND_ONE as a prepared statement."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT generic_plans + custom_plans FROM pg_prepared_statements WHERE name = %s",
            [APPEND_ONE._name.decode()],
        )
        rows = cursor.fetchall()
    return rows[0][0] if rows else 0


@pytest.mark.parametrize("before", ["nothing", "a query"])
def test_an_append_in_a_transaction_is_prepared(store, before):
    log_id = create(store, 0).log_id

    for number in range(1, 4):
        with transaction.atomic():
            if before == "a query":
                run("SELECT 1")
            append(store, log_id, number, expected=2 * number - 1)
            append(store, log_id, -number, expected=2 * number)

    assert calls_of_append_one() == 6
    assert amounts(store, log_id) == [0, 1, -1, 2, -2, 3, -3]


STATEMENTS = ["DISCARD ALL", "DEALLOCATE ALL", f"DEALLOCATE {APPEND_ONE._name.decode()}"]


@pytest.mark.parametrize("before", ["nothing", "a query"])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_statements_that_are_lost_between_transactions_cause_no_error(store, statement, before):
    with transaction.atomic():
        history(store)

    for _ in range(2):
        run(statement)
        with transaction.atomic():
            if before == "a query":
                run("CREATE TEMPORARY TABLE mine AS SELECT 7 AS number")
            log_id = history(store)
            if before == "a query":
                run("SELECT 1 / (number - 6) FROM mine; DROP TABLE mine")
        assert amounts(store, log_id) == HISTORY

    assert "default" not in psycopg_connections.unprepared


def test_a_statement_that_the_caller_deallocates_in_the_transaction_is_to_be_run_again(store):
    log_id = create(store, 1).log_id

    with pytest.raises(TransactionMustRetry), transaction.atomic():
        append(store, log_id, 2, expected=1)
        run("DEALLOCATE ALL")
        append(store, log_id, 3, expected=2)
    with transaction.atomic():
        append(store, log_id, 2, expected=1)
        append(store, log_id, 3, expected=2)

    assert amounts(store, log_id) == [1, 2, 3]


@pytest.mark.parametrize("before", ["nothing", "a query"])
def test_a_statement_of_that_name_of_another_client_causes_no_error(store, before):
    """As behind a pooler that shares sessions between clients."""
    log_id = create(store, 1).log_id
    connection.close()
    run(f"PREPARE {APPEND_ONE._name.decode()} AS SELECT 1")

    with transaction.atomic():
        if before == "a query":
            run("CREATE TEMPORARY TABLE mine AS SELECT 7 AS number")
        append(store, log_id, 2, expected=1)
        append(store, log_id, 3, expected=2)
        if before == "a query":
            run("DROP TABLE mine")

    assert amounts(store, log_id) == [1, 2, 3]
    assert "default" in psycopg_connections.unprepared


def test_psycopg_that_deallocates_is_no_error(store, connect):
    """psycopg with prepared statements deallocates all after ALTER, DROP and ROLLBACK TO."""
    wrapper = connect(DatabaseWrapper)
    options = {**wrapper.settings_dict["OPTIONS"], "server_side_binding": True}
    connect(DatabaseWrapper, OPTIONS={**options, "prepare_threshold": 0})
    log_id = create(store, 1).log_id

    with transaction.atomic():
        for version in (1, 3):
            append(store, log_id, 2, expected=version)
            with transaction.atomic():
                run("SELECT 1")
                transaction.set_rollback(True)
            run("CREATE TEMPORARY TABLE mine (number integer)")
            run("DROP TABLE mine")
            run("SELECT 1")
            append(store, log_id, 3, expected=version + 1)

    assert amounts(store, log_id) == [1, 2, 3, 2, 3]


def test_appends_of_one_transaction_have_its_transaction_id(store):
    """More than 64 that are open make all snapshots of the server slow."""
    log_id = create(store, 0).log_id

    with transaction.atomic():
        run("SELECT 1")
        for number in range(1, 101):
            append(store, log_id, number, expected=number)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(DISTINCT xmin::text) FROM eventlogs_event")
            [(found,)] = cursor.fetchall()

    assert found == 2  # create's, and the transaction's own: the savepoint has written nothing
    assert amounts(store, log_id) == list(range(101))


@pytest.mark.parametrize("begun", ["by SQL", "without autocommit"])
def test_a_transaction_that_django_has_not_begun_has_no_savepoints(store, begun):
    log_id = create(store, 0).log_id
    if begun == "by SQL":
        run("BEGIN")
    else:
        transaction.set_autocommit(False)
    try:
        run("SELECT 1")
        for number in range(1, 11):
            append(store, log_id, number, expected=number)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(DISTINCT xmin::text) FROM eventlogs_event")
            [(found,)] = cursor.fetchall()
    finally:
        run("COMMIT")
        if begun == "without autocommit":
            transaction.set_autocommit(True)

    assert found == 2
    assert amounts(store, log_id) == list(range(11))


def test_statements_are_prepared_again_in_the_next_transaction(store):
    """Not where atomic() is only a part of a transaction that the caller commits, either."""
    log_id = create(store, 1).log_id
    transaction.set_autocommit(False)
    try:
        for version in (1, 3):
            with transaction.atomic():
                append(store, log_id, 2, expected=version)
            transaction.commit()
            run("DEALLOCATE ALL")
            with transaction.atomic():
                append(store, log_id, 3, expected=version + 1)
            transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert amounts(store, log_id) == [1, 2, 3, 2, 3]


@pytest.mark.parametrize("before", ["nothing", "a query"])
def test_a_refusal_leaves_the_transaction_usable(store, before):
    log_id, key = create(store, 1).log_id, new_key()

    for version in (1, 2):
        with transaction.atomic():
            if before == "a query":
                run("SELECT 1")
            with pytest.raises(ConcurrentAppend):
                append(store, log_id, 9, expected=7)
            with pytest.raises(LogAlreadyExists):
                append(store, log_id, 9, expected=0, key=key)
            append(store, log_id, 2, expected=version)

    assert amounts(store, log_id) == [1, 2, 2]
    assert store.claim("account", key) is None


@pytest.mark.parametrize("before", ["nothing", "a query"])
@pytest.mark.parametrize("prepared", [True, False])
def test_an_error_of_the_database_is_raised_and_undone_by_the_callers_savepoint(
    store, prepared, before
):
    log_id = create(store, 1).log_id
    if prepared:
        append(store, log_id, 2, expected=1)
    else:
        append(store, log_id, 2, expected=1, key=new_key())

    with transaction.atomic():
        if before == "a query":
            run("SELECT 1")
        with pytest.raises(DatabaseError), transaction.atomic():
            append(store, log_id, 3, expected=2, metadata="no JSON")
        append(store, log_id, 3, expected=2)
        with pytest.raises(DatabaseError), transaction.atomic():
            append(store, log_id, 4, expected=3, metadata="no JSON")
        append(store, log_id, 4, expected=3)

    assert amounts(store, log_id) == [1, 2, 3, 4]


def test_an_error_at_the_first_statement_ends_the_transaction(store):
    log_id = create(store, 1).log_id

    for _ in range(2):
        with pytest.raises(DatabaseError), transaction.atomic():
            append(store, log_id, 2, expected=1, metadata="no JSON")
        append(store, log_id, 2, expected=None)

    assert amounts(store, log_id) == [1, 2, 2]


LEVELS = [None, *psycopg.IsolationLevel]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("read_only", [None, False])
@pytest.mark.parametrize("deferrable", [None, False, True])
def test_a_transaction_begins_with_the_statement_of_psycopg(
    connect, store, level, read_only, deferrable
):
    log_id = create(store, 1).log_id
    options = {**connections["default"].settings_dict["OPTIONS"]}
    if level is not None:
        options["isolation_level"] = level
    wrapper = connect(DatabaseWrapper, OPTIONS=options)
    wrapper.ensure_connection()
    wrapper.connection.read_only = read_only
    wrapper.connection.deferrable = deferrable
    found = []

    for begin in (lambda: append(store, log_id, 2, expected=1), lambda: run("SELECT 1")):
        with transaction.atomic():
            begin()
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT current_setting('transaction_isolation'),"
                    " current_setting('transaction_read_only'),"
                    " current_setting('transaction_deferrable')"
                )
                found.append(cursor.fetchone())

    assert found[0] == found[1]
    if level is not None:
        assert found[0][0] == level.name.replace("_", " ").lower()


def test_a_read_only_transaction_refuses_its_first_append(store):
    log_id = create(store, 1).log_id
    connection.connection.read_only = True

    with pytest.raises(DatabaseError, match="read-only"), transaction.atomic():
        append(store, log_id, 2, expected=1)

    connection.connection.read_only = None
    append(store, log_id, 2, expected=1)
    assert amounts(store, log_id) == [1, 2]


def test_a_commit_that_fails_is_an_error(store):
    """After a pipeline, psycopg has to see the answer to its COMMIT."""
    log_id = create(store, 1).log_id
    run(
        "CREATE TABLE refusing (number integer UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO refusing VALUES (1)"
    )
    try:
        for version in (1, 1):
            with pytest.raises(IntegrityError), transaction.atomic():
                append(store, log_id, 2, expected=version)
                run("INSERT INTO refusing VALUES (1)")
            with pytest.raises(IntegrityError), transaction.atomic():
                run("INSERT INTO refusing VALUES (1)")
                append(store, log_id, 2, expected=version)
    finally:
        run("DROP TABLE refusing")

    append(store, log_id, 2, expected=1)
    assert amounts(store, log_id) == [1, 2]


@pytest.mark.parametrize("before", ["nothing", "a query"])
def test_a_statement_that_the_socket_does_not_take_at_once_is_sent(store, before):
    log_id = create(store, 1).log_id

    for version in (1, 2):
        with transaction.atomic():
            if before == "a query":
                run("SELECT 1")
            append(store, log_id, 2, expected=version, metadata=f'{{"note": "{"x" * 2**24}"}}')

    assert amounts(store, log_id) == [1, 2, 2]


@pytest.mark.parametrize("before", ["nothing", "a query"])
def test_a_connection_that_is_cut_is_an_error(store, elsewhere, before):
    log_id = create(store, 1).log_id
    append(store, log_id, 2, expected=1)
    pid = connection.connection.info.backend_pid

    def terminate() -> None:
        run(f"SELECT pg_terminate_backend({pid}, 5000)")

    with pytest.raises(DatabaseError), transaction.atomic():
        if before == "a query":
            run("SELECT 1")
        elsewhere(terminate)
        append(store, log_id, 3, expected=2)
    connection.close_if_unusable_or_obsolete()

    append(store, log_id, 3, expected=2)
    assert amounts(store, log_id) == [1, 2, 3]


def test_names_of_savepoints_are_not_the_callers(store):
    log_id = create(store, 1).log_id

    with transaction.atomic():
        run("SAVEPOINT eventlogs_append")
        append(store, log_id, 2, expected=1)
        run("ROLLBACK TO SAVEPOINT eventlogs_append")
        append(store, log_id, 3, expected=1)

    assert amounts(store, log_id) == [1, 3]


@pytest.mark.parametrize("before", ["nothing", "a query"])
class TestInterruptions:
    """The append waits for its log, which another connection holds, and a signal comes."""

    def test_the_transaction_is_rolled_back_and_the_connection_stays_usable(self, store, before):
        log_id, other = create(store, 1).log_id, create(store, 1).log_id
        raw = connection.connection

        with locked(log_id, Event()):
            with transaction.atomic():
                if before == "a query":
                    run("SELECT 1")
                with alarm(interrupt), pytest.raises(KeyboardInterrupt):
                    append(store, log_id, 2, expected=1)
                assert not raw.pgconn.pipeline_status
                with pytest.raises(transaction.TransactionManagementError):
                    append(store, other, 2, expected=1)
            run("SELECT 1")
            assert connection.connection is raw

        with transaction.atomic():
            append(store, log_id, 3, expected=1)
        assert (amounts(store, log_id), amounts(store, other)) == ([1, 3], [1])

    def test_a_savepoint_of_the_caller_rolls_back_only_the_append(self, store, before):
        log_id, other = create(store, 1).log_id, create(store, 1).log_id

        with locked(log_id, Event()), transaction.atomic():
            if before == "a query":
                run("SELECT 1")
            with alarm(interrupt), pytest.raises(KeyboardInterrupt), transaction.atomic():
                append(store, log_id, 2, expected=1)
            append(store, other, 2, expected=1)

        assert (amounts(store, log_id), amounts(store, other)) == ([1], [1, 2])

    def test_a_server_that_does_not_cancel_costs_the_connection(self, store, monkeypatch, before):
        log_id = create(store, 1).log_id
        raw = connection.connection
        monkeypatch.setattr(psycopg_connections, "PATIENCE", 0.2)
        monkeypatch.setattr(psycopg_connections, "_cancel", lambda pgconn: None)

        with locked(log_id, Event()):
            with pytest.raises(KeyboardInterrupt), transaction.atomic():
                if before == "a query":
                    run("SELECT 1")
                with alarm(interrupt):
                    append(store, log_id, 2, expected=1)
            assert raw.closed
            assert store.version(log_id) == 1
