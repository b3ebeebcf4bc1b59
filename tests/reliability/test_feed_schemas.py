"""The feeds of several schemas of one database: each has fences and a sequence of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connections, transaction

from eventlogs import Feed, LogManager
from eventlogs.feed.sources import source_in
from eventlogs.stores import store_for
from tests.accounts import Account, Deposited, Opened

pytestmark = pytest.mark.postgresql

INSERT = (
    "INSERT INTO {schema}.eventlogs_event (log_type, log_id, index, type, schema_version, data,"
    " metadata, recorded_at) SELECT 'account', gen_random_uuid(), 0, 'account.deposited', 1,"
    " '{{\"amount\": 1}}', '{{}}', pg_catalog.now()"
)
NUMBERS = (
    "SELECT DISTINCT classid::bigint >> 16 FROM pg_locks"
    " WHERE locktype = 'advisory' AND mode = 'ShareLock' AND pid = pg_backend_pid()"
)


@contextmanager
def alias_for(database: str, search_path: str, name: str | None = None) -> Iterator[str]:
    """Give another alias of a database, or of its neighbour ``name``, with a search_path."""
    alias = f"schema_{uuid4().hex[:8]}"
    connections.databases[alias] = {
        **(settings := connections[database].settings_dict),
        "NAME": name or settings["NAME"],
        "TEST": {**settings["TEST"], "NAME": None},
        "OPTIONS": {"options": f"-c search_path={search_path}"},
    }
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.databases[alias]
        store_for.cache_clear()
        source_in.cache_clear()


@pytest.fixture
def schemas(second_database: str) -> Iterator[Callable[[str], str]]:
    """A function that gives an alias for a schema; ``ann`` and ``bob`` have our tables."""
    with ExitStack() as stack:

        def alias_of(search_path: str) -> str:
            return stack.enter_context(alias_for(second_database, search_path))

        for schema in ("ann", "bob"):
            sql(second_database, f"CREATE SCHEMA {schema}")
            call_command("migrate", "eventlogs", database=alias_of(schema), verbosity=0)
        yield alias_of


def sql(alias: str, statement: str) -> list[tuple[Any, ...]]:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def events(alias: str, after: int = 0) -> list[object]:
    return [record.event for record in Feed(using=alias).read(after=after)]


def test_an_open_append_in_one_schema_does_not_hold_back_the_feed_of_another(schemas):
    ann, bob, another_ann = schemas("ann"), schemas("bob"), schemas("ann")
    with transaction.atomic(using=ann):
        late = LogManager(Account, using=ann).create(Opened("late"))
        state = LogManager(Account, using=bob).create(Opened("bob"))
        LogManager(Account, using=another_ann).create(Opened("early"))

        assert Feed(using=bob).settled() == state.position
        assert events(bob) == [Opened("bob")]
        assert Feed(using=bob).holding_back() == []
        assert Feed(using=another_ann).settled() < late.position
        assert len(Feed(using=another_ann).holding_back()) == 1

    assert events(another_ann) == [Opened("late"), Opened("early")]


def test_a_fence_of_another_table_with_the_same_number_delays_and_skips_nothing(schemas):
    ann, stranger = schemas("ann"), schemas("bob")
    accounts = LogManager(Account, using=ann)
    state = accounts.create(Opened("ann"))
    with transaction.atomic(using=stranger):
        # As the trigger of such a table would take it, at a position in the middle of ours.
        sql(
            stranger,
            "SELECT pg_advisory_xact_lock_shared((1 + mod('ann.eventlogs_event'::regclass::oid"
            f"::bigint, 65534)) << 48 | {state.position})",
        )
        accounts.append(state, Deposited(1))
        assert events(ann) == [Opened("ann")]

    assert events(ann) == [Opened("ann"), Deposited(1)]


def test_a_connection_that_changes_its_schema_reads_the_feed_of_the_new_one(schemas):
    alias, late = schemas("ann"), schemas("bob")
    LogManager(Account, using=alias).create(Opened("ann"))
    assert events(alias) == [Opened("ann")]

    with transaction.atomic(using=late):
        LogManager(Account, using=late).create(Opened("late"))
        sql(alias, "SET search_path = bob")
        LogManager(Account, using=alias).create(Opened("early"))
        assert events(alias) == []
        assert len(Feed(using=alias).holding_back()) == 1

    assert events(alias) == [Opened("late"), Opened("early")]
    sql(alias, "SET search_path = ann")
    assert events(alias) == [Opened("ann")]


def test_one_transaction_that_appends_in_two_schemas_has_a_fence_in_each(schemas):
    ann, bob, both = schemas("ann"), schemas("bob"), schemas("ann")
    LogManager(Account, using=bob).create(Opened("bob"), *[Deposited(n) for n in range(50)])
    settled = Feed(using=bob).settled()
    with transaction.atomic(using=both):
        for number in range(3):
            LogManager(Account, using=both).create(Opened(f"ann {number}"))
            sql(both, "SET LOCAL search_path = bob")
            LogManager(Account, using=both).create(Opened(f"bob {number}"))
            sql(both, "SET LOCAL search_path = ann")

        assert len(sql(both, NUMBERS)) == 2
        # The fence in bob is below bob's own positions, not as low as the one in ann.
        assert Feed(using=bob).settled() == settled
        assert Feed(using=ann).settled() == 0

    assert len(events(ann)) == 3
    assert len(events(bob, after=settled)) == 3


@pytest.mark.parametrize("search_path", ["''", "pg_temp", "bob", "bob, pg_catalog"])
def test_the_fence_is_that_of_the_table_under_any_search_path(schemas, search_path):
    ann, bob, writer = schemas("ann"), schemas("bob"), schemas("ann")
    LogManager(Account, using=bob).create(Opened("bob"))
    with transaction.atomic(using=writer):
        sql(writer, f"SET LOCAL search_path = {search_path}")
        sql(writer, INSERT.format(schema="ann"))
        LogManager(Account, using=ann).create(Opened("early"))

        assert Feed(using=ann).settled() == 0
        assert Feed(using=bob).settled() == 1


def test_a_trigger_that_calls_the_function_of_another_schema_is_right_as_well(schemas):
    ann, bob, writer = schemas("ann"), schemas("bob"), schemas("ann")
    sql(
        ann,
        "CREATE OR REPLACE TRIGGER eventlogs_event_fence BEFORE INSERT ON ann.eventlogs_event"
        " FOR EACH STATEMENT EXECUTE FUNCTION bob.eventlogs_fence();"
        " ALTER TABLE ann.eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_fence",
    )
    # The sequence in bob is ahead: a fence made from it would stand above positions of ann.
    LogManager(Account, using=bob).create(Opened("bob"), *[Deposited(n) for n in range(50)])
    with transaction.atomic(using=writer):
        late = LogManager(Account, using=writer).create(Opened("late"))
        LogManager(Account, using=ann).create(Opened("early"))

        assert Feed(using=ann).settled() < late.position
        assert Feed(using=bob).settled() == 51

    assert events(ann) == [Opened("late"), Opened("early")]


# Behind a statement that writes, an append does not take the first step of the function.
@pytest.mark.parametrize("before", ["", "SELECT pg_current_xact_id()"])
@pytest.mark.parametrize("name", ["ann.eventlogs_event_position_seq", "gone.positions"])
def test_oids_of_other_objects_in_a_copied_database_are_not_used(schemas, name, before):
    ann, bob, writer = schemas("ann"), schemas("bob"), schemas("ann")
    for _ in range(2):  # prepares the statement
        LogManager(Account, using=writer).create(Opened("ann"))
    last = Feed(using=ann).settled()
    # As in a copy of a database in which the table has its old oid and another sequence that of
    # its sequence. That one is ahead: a fence made from it would be too high.
    LogManager(Account, using=bob).create(Opened("bob"), *[Deposited(n) for n in range(50)])
    [(table,)] = sql(ann, "SELECT 'ann.eventlogs_event'::regclass::oid")
    [(sequence,)] = sql(ann, "SELECT 'bob.eventlogs_event_position_seq'::regclass::oid")
    fence = import_module("eventlogs.migrations.0005_lighter_appends")
    sql(ann, fence.function(table, sequence, f"'{name}'"))
    with transaction.atomic(using=writer):
        if before:
            sql(writer, before)
        late = LogManager(Account, using=writer).create(Opened("late"))
        LogManager(Account, using=ann).create(Opened("early"))

        assert Feed(using=ann).settled() < late.position

    assert events(ann, after=last) == [Opened("late"), Opened("early")]


def test_a_table_that_replaces_another_has_the_fence_of_its_own_sequence(schemas):
    ann, writer = schemas("ann"), schemas("ann")
    LogManager(Account, using=ann).create(Opened("ann"), *[Deposited(n) for n in range(50)])
    sql(
        ann,
        "ALTER TABLE eventlogs_event RENAME TO archive;"
        "CREATE TABLE eventlogs_event (LIKE archive INCLUDING ALL);"
        "CREATE TRIGGER eventlogs_event_fence BEFORE INSERT ON eventlogs_event"
        " FOR EACH STATEMENT EXECUTE FUNCTION eventlogs_fence();"
        "ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_fence",
    )
    with transaction.atomic(using=writer):
        late = LogManager(Account, using=writer).create(Opened("late"))
        LogManager(Account, using=ann).create(Opened("early"))

        assert late.position == 1
        assert Feed(using=ann).settled() == 0

    assert events(ann) == [Opened("late"), Opened("early")]


def test_a_renamed_table_or_sequence_keeps_its_fence(schemas):
    ann, writer = schemas("ann"), schemas("ann")
    sql(ann, 'ALTER SEQUENCE ann.eventlogs_event_position_seq RENAME TO "the ""positions"""')
    sql(ann, 'ALTER SCHEMA ann RENAME TO "Ann\'s"')
    for alias in (ann, writer):
        sql(alias, 'SET search_path = "Ann\'s"')
    with transaction.atomic(using=writer):
        late = LogManager(Account, using=writer).create(Opened("late"))
        LogManager(Account, using=ann).create(Opened("early"))

        assert Feed(using=ann).settled() < late.position

    assert events(ann) == [Opened("late"), Opened("early")]
