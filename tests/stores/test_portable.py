"""The store for any database: its specific behaviour."""

from __future__ import annotations

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from eventlogs import IdempotentReplay
from eventlogs.models import EventLog
from eventlogs.stores.portable import PortableStore
from eventlogs.testing.contracts.restoring import deposit
from eventlogs.testing.contracts.stores import append, create, new_key, new_log


@pytest.fixture
def store(transactional_db):
    return PortableStore("default")


def test_an_append_by_itself_is_one_transaction(store):
    log_id = create(store, 1).log_id

    with CaptureQueriesContext(connection) as queries:
        append(store, log_id, 2, expected=1, key=new_key())

    statements = [query["sql"].split()[0].upper() for query in queries]
    assert statements.count("BEGIN") == 1
    assert statements[0] == "BEGIN"
    assert statements[-1] == "COMMIT"


@pytest.mark.sqlite
def test_on_sqlite_the_transaction_takes_the_write_lock_at_once(store):
    with CaptureQueriesContext(connection) as queries:
        create(store, 1)

    assert queries[0]["sql"] == "BEGIN IMMEDIATE"


@pytest.mark.postgresql
def test_with_row_locks_the_log_is_locked_first(store):
    log_id = create(store, 1).log_id

    with CaptureQueriesContext(connection) as queries:
        append(store, log_id, 2, expected=1)

    assert "FOR NO KEY UPDATE" in queries[1]["sql"]


def test_a_large_batch_goes_in_several_inserts_all_or_none(store):
    log_id = new_log()

    with CaptureQueriesContext(connection) as queries:
        append(store, log_id, *range(1_001), expected=0)

    table = connection.ops.quote_name("eventlogs_event")
    inserts = [query for query in queries if f"INTO {table} " in query["sql"]]
    assert len(inserts) >= 3
    assert store.version(log_id) == 1_001


def test_a_row_at_version_0_is_never_left_behind(store):
    key = new_key()
    create(store, 1, key=key)

    with pytest.raises(IdempotentReplay):
        append(store, new_log(), 1, expected=0, key=key)

    assert not EventLog.objects.filter(version=0).exists()


def test_the_number_of_queries_of_an_append_does_not_depend_on_the_log(store):
    short, long = create(store, 1).log_id, create(store, *range(3_000)).log_id

    with CaptureQueriesContext(connection) as of_short:
        append(store, short, 2, expected=1, key=new_key())
    with CaptureQueriesContext(connection) as of_long:
        append(store, long, 2, expected=3_000, key=new_key())

    assert len(of_short) == len(of_long)


class GivenUp(Exception):
    """The error of a driver if the database asks to run the transaction again."""

    sqlstate = "40001"


@pytest.mark.parametrize(
    "read",
    [
        lambda store, log_id: store.version(log_id) == 1,
        lambda store, log_id: len(store.events(log_id, start=0, limit=9)) == 1,
        lambda store, log_id: store.claim("account", "no such key") is None,
    ],
)
def test_a_read_that_the_database_aborts_is_retried(store, read):
    log_id = create(store, 1).log_id
    failures = [1, 2]

    def give_up(execute, *arguments):
        if failures and failures.pop():
            raise OperationalError("could not serialize access") from GivenUp()
        return execute(*arguments)

    with connection.execute_wrapper(give_up):
        assert read(store, log_id)
    assert failures == []


def test_the_versions_of_many_restored_logs_are_raised_by_few_statements(store):
    events = [deposit(new_log(), 0) for _ in range(150)]

    with CaptureQueriesContext(connection) as queries:
        store.restore(events)

    updates = [query["sql"] for query in queries if query["sql"].lstrip().startswith("UPDATE")]
    assert len([each for each in updates if "eventlogs_bucket" not in each]) == 2
