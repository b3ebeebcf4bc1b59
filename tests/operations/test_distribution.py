"""Distributing a schema over a cluster of Citus, and what refuses it."""

from __future__ import annotations

import json
import os

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from eventlogs import Feed
from eventlogs.exceptions import CannotChangeLayout
from eventlogs.feed.sources import FeedHolder
from eventlogs.operations.distribution import distribute
from eventlogs.operations.verification import Scope
from eventlogs.operations.verification import verify as verify_all
from tests.accounts import Account, Opened

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


@pytest.mark.one_server
def test_a_database_without_citus_is_refused():
    with pytest.raises(CannotChangeLayout, match="no database of Citus") as caught:
        distribute(using="default")
    assert caught.value.using == "default"
    assert Account.logs.create(Opened("ada")).version == 1


def test_a_transaction_is_refused():
    with transaction.atomic(), pytest.raises(RuntimeError, match="outside of a transaction"):
        distribute(using="default")


@pytest.mark.citus
def test_it_may_be_distributed_again(capsys):
    state = Account.logs.create(Opened("ada"))

    assert distribute(using="default") == "tenant"
    call_command("eventlogs", "distribute", json=True)

    document = json.loads(capsys.readouterr().out)
    assert (document["database"], document["schema"]) == ("default", "tenant")
    assert Account.logs.version(state.log_id) == 1


@pytest.mark.citus
def test_all_tables_are_on_one_node_and_all_functions_and_triggers_are_right():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(DISTINCT (nodename, nodeport)), count(DISTINCT table_name)"
            " FROM citus_shards WHERE table_name::text LIKE '%%eventlogs_%%'"
        )
        nodes, tables = cursor.fetchone()
    assert nodes == 1
    assert tables >= 20
    assert list(verify_all(Scope("default"))) == []


@pytest.mark.citus
@pytest.mark.parametrize(
    "statement", ["UPDATE eventlogs_event SET type = 'x'", "DELETE FROM eventlogs_event"]
)
def test_events_are_append_only_on_the_nodes_too(statement):
    Account.logs.create(Opened("ada"))
    with pytest.raises(Exception, match="append-only"), connection.cursor() as cursor:
        cursor.execute(statement)
    assert Account.logs.version is not None


@pytest.mark.citus
def test_a_role_that_owns_nothing_sees_what_holds_the_feed_back(elsewhere):
    role = f"reader_{os.getpid()}"

    def look() -> list[FeedHolder]:
        with connection.cursor() as cursor:
            cursor.execute(f"SET ROLE {role}")
        return Feed().holding_back()

    with connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {role} LOGIN")
        cursor.execute(f"GRANT USAGE ON SCHEMA tenant TO {role}")
        cursor.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA tenant TO {role}")
    try:
        with transaction.atomic():
            Account.logs.create(Opened("ada"))
            [holder] = elsewhere(look)
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP OWNED BY {role}")
            cursor.execute(f"DROP ROLE {role}")
    assert holder.user == connection.settings_dict["USER"]
