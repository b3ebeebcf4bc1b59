"""The store for Citus: what its function stores, and on a cluster, how it is sent."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

from eventlogs import LogManager
from eventlogs.models import Bucket, Event, EventLog, IdempotencyKey
from eventlogs.stores import store_for
from eventlogs.stores.citus import STAY, CitusStore, is_citus
from eventlogs.stores.postgresql import PostgreSQLStore
from tests.accounts import Account, Deposited, Opened
from tests.citus import SCHEMA, nodes_of
from tests.locks import a_session_waits
from tests.processes import until

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.buckets,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]


@pytest.fixture
def accounts() -> LogManager[Account]:
    return LogManager(Account, store=CitusStore("default"))


@pytest.mark.one_server
def test_the_store_of_one_server_is_another():
    assert not is_citus(connection)
    assert type(store_for("default")) is PostgreSQLStore


@pytest.mark.citus
def test_the_store_of_a_cluster():
    assert is_citus(connection)
    assert type(store_for("default")) is CitusStore


def test_an_append_is_one_statement(accounts, django_assert_num_queries):
    state = accounts.create(Opened("ada"))  # and the types of the log are noted
    state = accounts.append(state, Deposited(1), idempotency_key="first")

    with django_assert_num_queries(1):
        state = accounts.append(state, Deposited(2), Deposited(3), idempotency_key="second")

    assert state.version == 4
    assert state.position == Event.objects.get(log=state.log_id.uuid, index=3).position
    assert Bucket.objects.order_by("-number")[0].number == state.position // 64


def test_it_stores_what_the_portable_store_would(accounts):
    state = accounts.create(Opened("ada"), Deposited(1), idempotency_key="k", metadata={"by": "x"})

    log = EventLog.objects.get(pk=state.log_id.uuid)
    first, last = Event.objects.filter(log=log).order_by("index")
    key = IdempotencyKey.objects.get(key="k")
    assert (log.version, log.head, log.updated_at) == (2, None, last.recorded_at)
    assert (first.recorded_at, first.metadata["by"]) == (last.recorded_at, "x")
    assert last.position - first.position == 64
    assert (key.log_id, key.first_index, key.count) == (log.pk, 0, 2)
    assert accounts.reduce(state.log_id).aggregate.balance == 1


def test_a_key_that_another_transaction_has_claimed_leaves_nothing_of_a_new_log(accounts):
    """The function finds no key, and meets the other one's at its own INSERT."""
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            first = accounts.create(Opened("ada"), idempotency_key="same")

            def create() -> Any:
                try:
                    return accounts.get_or_create(Opened("ada"), idempotency_key="same")
                finally:
                    connection.close()

            waiting = pool.submit(create)
            until(a_session_waits)
        state, is_new = waiting.result(timeout=20)

    assert (state.log_id, is_new) == (first.log_id, False)
    assert [each.pk for each in EventLog.objects.all()] == [first.log_id.uuid]
    assert Event.objects.count() == 1


PORT = "SELECT nodeport FROM citus_shards WHERE table_name = 'eventlogs_event'::regclass"
MOVE = "SELECT citus_schema_move(%s, %s, %s, 'block_writes')"


def move(url: str, *, patience: str) -> str:
    """Try to move the schema to its other node, by another connection; return the error."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_move, url, patience).result(timeout=60)


def _move(url: str, patience: str) -> str:
    workers = [each for each in nodes_of(url) if not each.is_coordinator]
    try:
        with connection.cursor() as cursor:
            cursor.execute(PORT)
            [port] = cursor.fetchone()
            node = next(each for each in workers if each.port != port)
            cursor.execute(f"SET statement_timeout = '{patience}'")
            cursor.execute(MOVE, [SCHEMA, node.host, node.port])
    except DatabaseError as error:
        return str(error)
    finally:
        connection.close()
    return ""


@pytest.mark.citus
def test_a_schema_is_not_moved_while_an_append_is_open(accounts, citus_url):
    state = accounts.create(Opened("ada"))

    with transaction.atomic():
        accounts.append(state, Deposited(1))
        assert "timeout" in move(citus_url, patience="15s")

    assert accounts.version(state.log_id) == 2


@pytest.mark.citus
def test_a_row_lock_alone_would_let_it_move_away(accounts, citus_url):
    """So a store that begins with SELECT FOR UPDATE, as others do, may write by what is old."""
    state = accounts.create(Opened("ada"))

    with transaction.atomic():
        EventLog.objects.select_for_update().get(pk=state.log_id.uuid)
        assert move(citus_url, patience="30s") == ""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(STAY)
        assert "timeout" in move(citus_url, patience="15s")


@pytest.mark.citus
def test_a_schema_is_not_moved_in_somebodys_turn(accounts, citus_url):
    state = accounts.create(Opened("ada"))

    error = CitusStore("default").in_turn(
        state.log_id, lambda: move(citus_url, patience="15s"), conflicts=1
    )

    assert "timeout" in error


@pytest.mark.citus
def test_the_function_runs_where_the_tables_are(accounts):
    state = accounts.create(Opened("ada"))
    with connection.cursor() as cursor:
        cursor.execute(
            "EXPLAIN (FORMAT JSON) SELECT * FROM eventlogs_append(%s::uuid, 'account', 1, NULL,"
            " '[]'::jsonb, '{}'::jsonb, NULL, NULL)",
            [state.log_id.uuid],
        )
        [plan] = cursor.fetchone()
    plan = plan if isinstance(plan, list) else json.loads(plan)
    assert plan[0]["Plan"]["Custom Plan Provider"] == "Citus Adaptive"
