"""The statement that stores the appends of several callers at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs import LogId, LogState
from eventlogs.models import EventLog, IdempotencyKey
from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.verification import Scope
from eventlogs.stores import AppendRequest, BaseStore, group_commit, store_for
from eventlogs.stores.base import HELD, UNDECIDED
from eventlogs.stores.group_commit import APPEND_GROUP, append_group
from eventlogs.testing.contracts.stores import amounts, append, create, new_key, new_log
from tests.accounts import encoded
from tests.locks import a_session_waits
from tests.processes import until
from tests.stores.grouped import WaitsForLogs

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.fence,  # with buckets, no appends are joined
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]


@pytest.fixture
def store() -> BaseStore:
    return store_for("default")


def request(
    log_id: LogId,
    *numbers: int,
    expected: int | None = None,
    key: str | None = None,
    position: int | None = None,
    metadata: str = "{}",
) -> AppendRequest:
    return AppendRequest(log_id, encoded(*numbers), expected, key, metadata, position)


def group(*requests: AppendRequest) -> list[Any]:
    return [*append_group("default", requests)]


@contextmanager
def elsewhere() -> Iterator[psycopg.Connection[Any]]:
    """Give a connection of another client, with a transaction that is rolled back."""
    known = connection.get_connection_params()
    names = ("dbname", "host", "port", "user", "password")
    with psycopg.connect(**{name: known[name] for name in names if name in known}) as other:
        yield other
        other.rollback()


def test_appends_and_creates_with_and_without_keys_are_stored_together(store):
    one, other = create(store, 1), create(store, 2)
    new, newer = new_log(), new_log()
    keys = [new_key(), new_key()]

    with CaptureQueriesContext(connection) as queries:
        answers = group(
            request(one.log_id, 3, 4, expected=1, position=one.position),
            request(new, 5, expected=0, key=keys[0]),
            request(other.log_id, 6, key=keys[1], metadata='{"till":7}'),
            request(newer, 7, 8, expected=0),
        )

    assert len(queries) == 1
    assert [(each.log_id, each.version) for each in answers] == [
        (one.log_id, 3),
        (new, 1),
        (other.log_id, 2),
        (newer, 2),
    ]
    assert [amounts(store, each.log_id) for each in answers] == [[1, 3, 4], [5], [2, 6], [7, 8]]
    for state in answers:
        assert store.last(state.log_id, limit=1)[0].position == state.position
    assert [store.claim("account", key).state for key in keys] == [answers[1], answers[2]]
    [last] = store.last(other.log_id, limit=1)
    assert (json.loads(last.metadata), last.idempotency_key) == ({"till": 7}, keys[1])


def test_without_the_setting_appends_to_chained_logs_are_joined_once_one_was_met(store, settings):
    settings.EVENTLOGS = {"CHAIN": True}
    one, other = create(store, 1), create(store, 2)
    settings.EVENTLOGS = {"CHAIN": False}
    assert group(request(one.log_id, 3)) == [UNDECIDED]
    append(store, one.log_id, 3, expected=1)

    answers = group(request(one.log_id, 4), request(other.log_id, 5))

    assert [each.version for each in answers] == [3, 2]
    # A log that is created is not chained, and so is not joined with them.
    new = new_log()
    assert group(request(new, 6, expected=0), request(one.log_id, 7))[1] is UNDECIDED
    verifier = ChainVerifier()
    assert list(verifier.verify(Scope("default"))) == []
    assert (verifier.chained, verifier.unchained) == (2, 1)


@pytest.mark.parametrize("watched", [False, True])
def test_appends_that_cannot_be_stored_do_not_affect_the_others(store, watched):
    one, other, key = create(store, 1), create(store, 2), new_key()
    append(store, one.log_id, 9, expected=1, key=key)
    requests = [
        request(one.log_id, 3, expected=1),  # a conflict
        request(other.log_id, 3, key=key),  # another append's key
        request(new_log(), 3),  # no such log
        request(new_log(), 4, expected=0),
        request(LogId.stored("parcel", one.log_id.uuid), 3),  # of another type
    ]

    if watched:
        with CaptureQueriesContext(connection):
            answers = group(*requests)
    else:
        answers = group(*requests)

    assert [type(each) is LogState for each in answers] == [False, False, False, True, False]
    assert {*answers[:3], answers[4]} == {UNDECIDED}
    assert amounts(store, one.log_id) == [1, 9]
    assert amounts(store, other.log_id) == [2]
    assert EventLog.objects.count() == 3


def test_another_position_or_a_full_log_is_not_stored(store):
    one, full = create(store, 1), create(store, 1)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE eventlogs_eventlog SET version = 2147483646 WHERE id = %s", [full.log_id.uuid]
        )

    answers = group(
        request(one.log_id, 3, expected=1, position=one.position + 1),
        request(full.log_id, 3, 4),
    )

    # Not HELD: the statement would be retried for seconds, although no session holds the logs.
    assert answers == [UNDECIDED, UNDECIDED]
    assert amounts(store, one.log_id) == [1]


def test_a_create_of_a_log_that_exists_leaves_no_key_behind(store):
    one, key = create(store, 1), new_key()

    answers = group(request(one.log_id, 2, expected=0, key=key), request(new_log(), 3, expected=0))

    assert answers[0] is UNDECIDED
    assert isinstance(answers[1], LogState)
    assert not IdempotencyKey.objects.filter(key=key).exists()


def test_a_log_that_another_transaction_has_locked_is_not_waited_for(store):
    held, other = create(store, 1), create(store, 2)

    with elsewhere() as holder:
        holder.execute(
            "SELECT FROM eventlogs_eventlog WHERE id = %s FOR UPDATE", [held.log_id.uuid]
        )
        answers = group(request(held.log_id, 3, expected=1), request(other.log_id, 4, expected=1))

    assert answers[0] is HELD
    assert amounts(store, other.log_id) == [2, 4]
    [state] = group(request(held.log_id, 3, expected=1))
    assert state.version == 2


def test_a_statement_that_waits_for_logs_gives_up_and_stores_nothing(store):
    """The broken version of the test above: the other append is not stored either."""
    held, other = create(store, 1), create(store, 2)

    with elsewhere() as holder, connection.execute_wrapper(WaitsForLogs("default")._change):
        holder.execute(
            "SELECT FROM eventlogs_eventlog WHERE id = %s FOR UPDATE", [held.log_id.uuid]
        )
        answers = group(request(held.log_id, 3, expected=1), request(other.log_id, 4, expected=1))

    assert answers == [UNDECIDED, UNDECIDED]
    assert amounts(store, other.log_id) == [2]


def test_a_key_that_another_transaction_claims_is_not_waited_for_long(store):
    one, other, key = create(store, 1), create(store, 2), new_key()

    with elsewhere() as holder:
        holder.execute(
            "INSERT INTO eventlogs_idempotencykey"
            " (log_type, key, log_id, first_index, count, fingerprint, created_at)"
            " VALUES ('account', %s, %s, 0, 1, '', now())",
            [key, new_log().uuid],
        )
        answers = group(request(one.log_id, 3, key=key), request(other.log_id, 4, key=new_key()))

    assert answers == [UNDECIDED, UNDECIDED]
    assert (amounts(store, one.log_id), amounts(store, other.log_id)) == ([1], [2])
    with connection.cursor() as cursor:  # the setting was the statement's own
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("0",)


def test_statements_that_claim_the_same_keys_do_not_end_in_a_deadlock(store):
    keys = sorted(new_key() for _ in range(2))
    logs = [create(store, 1).log_id for _ in range(4)]
    barrier = threading.Barrier(2)
    answers: list[list[Any]] = []

    def claim(first: LogId, second: LogId, names: list[str]) -> None:
        barrier.wait(60)
        answers.append(group(request(first, 2, key=names[0]), request(second, 3, key=names[1])))
        connection.close()

    threads = [
        threading.Thread(target=claim, args=(logs[0], logs[1], keys)),
        threading.Thread(target=claim, args=(logs[2], logs[3], keys[::-1])),
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    stored = [each for found in answers for each in found if isinstance(each, LogState)]
    assert len(stored) == 2  # each key once, by one of the statements or both


@pytest.mark.parametrize("begin", ["atomic", "BEGIN", "no autocommit"])
def test_a_transaction_of_a_caller_is_never_joined(store, begin):
    one = create(store, 1)

    if begin == "atomic":
        with transaction.atomic():
            answers = group(request(one.log_id, 2), request(new_log(), 3, expected=0))
    elif begin == "BEGIN":
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            answers = group(request(one.log_id, 2), request(new_log(), 3, expected=0))
            cursor.execute("ROLLBACK")
    else:
        transaction.set_autocommit(False)
        answers = group(request(one.log_id, 2), request(new_log(), 3, expected=0))
        transaction.rollback()
        transaction.set_autocommit(True)

    assert answers == [UNDECIDED, UNDECIDED]
    assert amounts(store, one.log_id) == [1]


def test_data_that_the_database_refuses_stores_nothing(store):
    one = create(store, 1)
    odd = AppendRequest(new_log(), encoded(1), 0, None, '{"odd":"\\u0000"}')

    assert group(request(one.log_id, 2), odd) == [UNDECIDED, UNDECIDED]
    assert amounts(store, one.log_id) == [1]


def test_a_statement_that_the_server_cancels_has_stored_nothing(store):
    one = create(store, 1)
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '100ms'")

    with elsewhere() as holder:
        holder.execute("LOCK TABLE eventlogs_event")
        answers = group(request(one.log_id, 2), request(new_log(), 3, expected=0))

    assert answers == [UNDECIDED, UNDECIDED]
    assert amounts(store, one.log_id) == [1]
    connection.close()


def test_each_caller_gets_its_own_error_if_the_connection_is_lost(store):
    one, pid = create(store, 1), _backend()
    answers: list[Any] = []

    def end_it() -> None:
        until(a_session_waits)
        with elsewhere() as other:
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
        connection.close()

    with elsewhere() as locker:
        locker.execute("LOCK TABLE eventlogs_event")
        thread = threading.Thread(target=end_it)
        thread.start()
        answers = group(request(one.log_id, 2), request(new_log(), 3, expected=0))
        thread.join()

    assert [type(each) for each in answers] == [OperationalError] * 2
    assert answers[0] is not answers[1]
    assert answers[0].__cause__ is not None
    connection.close()
    assert amounts(store, one.log_id) == [1]


def _backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return int(pid)


def test_a_server_that_is_not_there_fails_each_call(store):
    connection.close()
    before = connection.settings_dict["PORT"], connection.settings_dict["HOST"]
    connection.settings_dict.update(PORT="1", HOST="127.0.0.1")
    try:
        answers = group(request(new_log(), 2, expected=0), request(new_log(), 3, expected=0))
    finally:
        connection.settings_dict.update(PORT=before[0], HOST=before[1])

    assert [type(each) for each in answers] == [OperationalError] * 2


def test_an_error_that_is_not_the_servers_does_not_let_the_appends_be_tried_again(store):
    one, other = create(store, 1), create(store, 1)

    def raise_afterwards(execute, *arguments):
        execute(*arguments)
        raise DatabaseError("too slow")

    with connection.execute_wrapper(raise_afterwards):
        answers = group(request(one.log_id, 2), request(other.log_id, 3))

    assert [(type(each), each.args) for each in answers] == [(DatabaseError, ("too slow",))] * 2
    assert amounts(store, one.log_id) == [1, 2]


def test_psycopgs_autocommit_that_was_switched_off_is_a_callers_transaction(store):
    one, other = create(store, 1), create(store, 1)
    connection.connection.autocommit = False
    try:
        assert group(request(one.log_id, 2), request(other.log_id, 3)) == [UNDECIDED, UNDECIDED]
    finally:
        connection.close()
    assert amounts(store, one.log_id) == [1]


# The plan of a prepared statement is kept while the tables grow.

MANY_LOGS = """
WITH log AS (
    INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
    SELECT gen_random_uuid(), 'account', 1, now(), now() FROM generate_series(1, 3000)
    RETURNING id
)
INSERT INTO eventlogs_event
    (log_type, log_id, index, type, schema_version, data, metadata, recorded_at)
SELECT 'account', id, 0, 'account.deposited', 1, '{"amount": 1}', '{}', now() FROM log
"""


def rows_examined(requests: list[AppendRequest]) -> int:
    """Return the most rows that a step of the statement's plan reads of the tables."""
    parameters = group_commit._parameters([*enumerate(requests)])
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {APPEND_GROUP.sql}", parameters)
        [[[found]]] = cursor.fetchall()
    steps, most = [found["Plan"]], 0
    for step in steps:
        steps.extend(step.get("Plans", []))
        if "Scan" in step["Node Type"] and step.get("Relation Name", "").startswith("eventlogs_"):
            rows = step["Actual Rows"] + step.get("Rows Removed by Filter", 0)
            most = max(most, rows * step["Actual Loops"])
    return most


@pytest.mark.one_table  # partitions of so few rows are scanned, as small tables are
def test_the_plan_reads_the_rows_of_its_requests_however_many_logs_there_are(store):
    states = [create(store, 1) for _ in range(3)]
    with connection.cursor() as cursor:
        cursor.execute(MANY_LOGS)
        cursor.execute("ANALYZE eventlogs_eventlog, eventlogs_event")
    requests = [
        request(states[0].log_id, 2, expected=1, position=states[0].position),
        request(states[1].log_id, 2, expected=1, position=states[1].position, key=new_key()),
        request(states[2].log_id, 2),
        request(new_log(), 2, expected=0),
        request(new_log(), 2),  # no such log
    ]

    assert rows_examined(requests) <= len(requests)

    assert [amounts(store, state.log_id) for state in states] == [[1, 2]] * 3
