"""The statements of the feed are prepared; that they are lost, or planned once, changes nothing."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, transaction

from eventlogs import Feed, LogManager
from eventlogs.feed.postgresql import FENCE, LAST, LAST_EVENT, NEAR, PAGE
from eventlogs.feed.sources import FeedQuery, UnknownTypes, feed_source_for, partition_of
from eventlogs.operations import partitioning
from eventlogs.stores import psycopg_connections, statements
from tests.accounts import Account, Deposited, Opened
from tests.operations.partitioning.logs import sql
from tests.reliability.test_feed_schemas import alias_for, schemas  # noqa: F401
from tests.stores.test_statements import alarm, interrupt

pytestmark = [pytest.mark.postgresql, pytest.mark.fence]

COMMITS = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])
POSITIONS = "eventlogs_event_position_seq"
HOT = (LAST, FENCE, LAST_EVENT.upto(9), PAGE.upto(9))
STATEMENTS = [
    "DISCARD ALL",
    "DEALLOCATE ALL",
    *(f"DEALLOCATE {each._name.decode()}" for each in HOT),
]


@pytest.fixture(autouse=True)
def _prepared() -> Iterator[None]:
    """Have statements prepared again after a test that has given that up."""
    yield
    psycopg_connections.unprepared.clear()


@pytest.fixture
def made(transactional_db: None) -> list[Any]:
    """The records of some events, and a connection that has prepared nothing."""
    state = Account.logs.create(Opened("ada"))
    for amount in range(5):
        state = Account.logs.append(state, Deposited(amount))
    connection.close()
    return list(Account.logs.load(state.log_id))


def name_of(each: Any) -> str:
    return each if isinstance(each, str) else str(each.name)


def names(made: list[Any]) -> dict[statements.HotRead, str]:
    """Return the names by which a reader of these events has prepared its statements."""
    end = made[-1].position
    used = LAST, FENCE, LAST_EVENT.upto(end), PAGE.upto(end)
    return {each: variant._name.decode() for each, variant in zip(HOT, used, strict=True)}


def runs(alias: str = "default") -> dict[str, int]:
    """Return how often this session has run the statements that it has prepared."""
    return dict(sql(alias, "SELECT name, generic_plans + custom_plans FROM pg_prepared_statements"))


@COMMITS
def test_a_look_and_a_page_are_prepared(made):
    for number in range(1, 4):
        assert list(Feed().read(after=made[0].position - 1)) == made

        found = runs()
        assert [found.get(each) for each in names(made).values()] == [number] * 4


@COMMITS
@pytest.mark.parametrize("types", [None, ["account.deposited"], [], ['a"b,{c}\\', "NULL", ""]])
@pytest.mark.parametrize("log_types", [None, ["account"], []])
@pytest.mark.parametrize("partition", [None, (0, 2)])
@pytest.mark.parametrize("unknown", [None, UnknownTypes(["account.opened"], ["account"])])
def test_each_filter_finds_what_it_does_in_another_way(made, types, log_types, partition, unknown):
    if types is None:
        unknown = None
    source, end = feed_source_for("default"), made[-1].position
    query = FeedQuery(0, end, 3, types, log_types, partition, unknown)

    found = [source.events(query) for _ in range(8)]  # by both kinds of plans

    wanted = [
        each.index
        for each in made
        if (
            types is None
            or each.type in types
            or (unknown is not None and each.type not in unknown.known)
        )
        and (log_types is None or "account" in log_types)
        and (partition is None or partition_of(each.log_id.uuid, 2) == 0)
    ]
    assert [[each.index for each in events] for events, _ in found] == [wanted[:3]] * 8
    assert found == found[:1] * 8


@COMMITS
@pytest.mark.parametrize("gap", [0, 1, NEAR - 1, NEAR, NEAR + 1, 5_000])
def test_the_last_event_is_found_below_positions_that_were_rolled_back(made, gap):
    """Those are not among the first that are searched once there are NEAR of them."""
    sql("default", "SELECT setval(%s, %s)", [POSITIONS, made[-1].position + gap])

    page = Feed().read(after=made[0].position)

    assert list(page) == made[1:]
    assert page.settled == page.next_after == Feed().settled() == made[-1].position


@COMMITS
@pytest.mark.parametrize("lost", ["DISCARD ALL", "DEALLOCATE ALL", *HOT], ids=name_of)
def test_statements_that_are_lost_are_prepared_again(made, lost):
    statement = lost if isinstance(lost, str) else f"DEALLOCATE {names(made)[lost]}"
    for _ in range(2):
        assert list(Feed().read()) == made
        sql("default", statement)

    assert list(Feed().read()) == made
    assert set(names(made).values()) <= set(runs())
    assert "default" not in psycopg_connections.unprepared


@COMMITS
@pytest.mark.parametrize("which", HOT, ids=name_of)
def test_a_statement_of_that_name_of_another_client_causes_no_error(made, which):
    """As behind a pooler that shares sessions between clients."""
    sql("default", f"PREPARE {names(made)[which]} AS SELECT 1")

    assert list(Feed().read()) == made
    assert "default" in psycopg_connections.unprepared
    assert list(Feed().read()) == made


@COMMITS
@pytest.mark.parametrize("which", HOT, ids=name_of)
def test_statements_that_are_lost_for_good_are_sent_unprepared(made, which, monkeypatch):
    """As behind a pooler that gives each statement to another session."""
    assert list(Feed().read()) == made
    prepare = psycopg_connections.Session.prepare

    def in_another_session(session: Any, raw: Any, name: bytes, statement: bytes) -> bool:
        is_ours = prepare(session, raw, name, statement)
        if name.decode() == names(made)[which]:
            session.command(raw, b"DEALLOCATE " + name)
        return is_ours

    monkeypatch.setattr(psycopg_connections.Session, "prepare", in_another_session)
    sql("default", "DEALLOCATE ALL")

    assert list(Feed().read()) == made
    assert "default" in psycopg_connections.unprepared


@COMMITS
def test_in_a_transaction_nothing_is_prepared_and_nothing_can_be_lost(made):
    with transaction.atomic():
        assert list(Feed().read()) == made
        sql("default", "DEALLOCATE ALL")
        assert list(Feed().read()) == made
        assert runs() == {}

    assert list(Feed().read()) == made
    with transaction.atomic():
        sql("default", "DEALLOCATE ALL")
        assert list(Feed().read()) == made
    assert list(Feed().read()) == made


@COMMITS
def test_columns_of_another_type_are_noticed(made):
    alter = "ALTER TABLE eventlogs_event ALTER COLUMN type TYPE {}"
    try:
        for kind in ("text", "varchar(300)", "text"):
            assert list(Feed().read()) == made
            sql("default", alter.format(kind))
            assert list(Feed().read()) == made
    finally:
        sql("default", alter.format("varchar(100)"))
    assert "default" not in psycopg_connections.unprepared


@COMMITS
def test_a_page_that_is_interrupted_leaves_the_connection_usable(made):
    """It waits for a table that is locked, and a signal comes."""
    assert list(Feed().read()) == made
    raw, held, release = connection.connection, threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                sql("default", "LOCK TABLE eventlogs_event")
                held.set()
                release.wait(20)
        finally:
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(20)
        with alarm(interrupt), pytest.raises(KeyboardInterrupt):
            Feed().read()
    finally:
        release.set()
        thread.join()

    assert list(Feed().read()) == made
    assert connection.connection is raw


# The table is another one.


@contextmanager
def open_append(alias: str) -> Iterator[int]:
    """Have another connection append an event, and commit it in the end; give its position."""
    with alias_for(alias, "public") as other, transaction.atomic(using=other):
        yield LogManager(Account, using=other).create(Opened("late")).position


@pytest.mark.parametrize("first", [0, 4])
def test_a_table_that_is_replaced_under_a_reader_keeps_its_fence(second_database, first):
    """A statement with the old table's oid would look at fences that nobody takes any more."""
    alias, logs = second_database, LogManager(Account, using=second_database)
    partitioning.partition(first, using=alias)
    position = logs.create(Opened("ada")).position
    for _ in range(8):
        assert len(Feed(using=alias).read()) == 1

    for wanted in (3, 0, 2):
        with alias_for(alias, "public") as other:  # this session keeps what it has prepared
            partitioning.partition(wanted, using=other)
        with open_append(alias) as late:
            after_it = logs.create(Opened("early")).position
            assert late < after_it

            page = Feed(using=alias).read(after=position)
            assert list(page) == []
            assert Feed(using=alias).settled() == position

        page = Feed(using=alias).read(after=position)
        assert [each.position for each in page] == [late, after_it]
        position = after_it
    assert len(runs(alias)) >= len(HOT)


def test_another_search_path_is_another_feed(schemas):  # noqa: F811
    """As of tenants that one connection serves in turns."""
    alias = schemas("ann")
    for name in ("ann", "bob"):
        sql(alias, f"SET search_path = {name}")
        for _ in range(len(name) + (name == "bob")):
            LogManager(Account, using=alias).create(Opened(name))

    for _ in range(4):
        for name, events in (("ann", 3), ("bob", 4)):
            sql(alias, f"SET search_path = {name}")
            with alias_for(alias, name) as other, transaction.atomic(using=other):
                late = LogManager(Account, using=other).create(Opened("late")).position
                LogManager(Account, using=alias).create(Opened("early"))
                page = Feed(using=alias).read()

                assert {each.event for each in page} == {Opened(name)}
                assert len(page) == events
                assert page.next_after < late
                transaction.set_rollback(True, using=other)
            sql(
                alias,
                "ALTER TABLE eventlogs_event DISABLE TRIGGER USER;"
                f"DELETE FROM eventlogs_event WHERE position > {late};"
                "ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_fence",
            )


# The plans.

MANY = 40_000
FILL = """
INSERT INTO eventlogs_event
    (log_type, log_id, index, type, schema_version, data, metadata, recorded_at)
SELECT 'account', gen_random_uuid(), 0, 'account.deposited', 1, '{"amount": 1}', '{}', now()
FROM generate_series(1, %s)
"""
PARAMETERS = {
    "after": "bigint",
    "upto": "bigint",
    "limit": "integer",
    "types": "text[]",
    "known": "text[]",
    "unknown_in": "text[]",
    "log_types": "text[]",
    "of": "integer",
    "number": "integer",
}
HIDDEN = r"(?:\$\d+|\(InitPlan \d+\)\.col1)"  # a value that the planner did not know
BOUNDS = rf'Index Cond: \(\("position" > {HIDDEN}\) AND \("position" <= {HIDDEN}\)\)'
# What the planner knows of the table.
KNOWN = {
    "what is there": "ANALYZE eventlogs_event",
    "nothing": "SELECT 1",
    "that it was empty": "UPDATE pg_class SET reltuples = 0, relpages = 1"
    " WHERE relname ~ '^eventlogs_event(_p.*)?$'",
    "that it is huge": "SET min_parallel_table_scan_size = 0; SET min_parallel_index_scan_size = 0;"
    " ANALYZE eventlogs_event; UPDATE pg_class SET reltuples = 1e5 * reltuples"
    " WHERE relname ~ '^eventlogs_event(_.*)?$'",
}


def plan_of(alias: str, statement: statements.HotRead, **values: str) -> str:
    """Return the plan that this session uses for a statement that it has prepared."""
    given = ", ".join(values.get(each, "NULL") for each in statement._order)
    rows = sql(alias, f"EXPLAIN (COSTS OFF) EXECUTE {statement._name.decode()}({given})")
    return "\n".join(line for (line,) in rows)


@pytest.mark.parametrize("partitions", [0, 4])
@pytest.mark.parametrize("types", [None, ["account.opened"]])
@pytest.mark.parametrize("known", KNOWN)
def test_the_plan_for_all_values_reads_a_range_of_each_index(
    second_database, partitions, types, known
):
    alias = second_database
    partitioning.partition(partitions, using=alias)
    sql(alias, FILL, [MANY])
    sql(alias, KNOWN[known])
    feed = Feed(using=alias)
    end = feed.settled()

    for _ in range(7):
        feed.read(after=end // 2, limit=5, types=types)

    page = PAGE.upto(end, ("types",) if types else ())
    plan = plan_of(alias, page, after=f"{end // 2}", upto=f"{end // 2 + 6}", limit="5")
    bounds = re.findall(BOUNDS, plan)
    assert not re.search("Seq Scan|Gather", plan), plan
    assert len(bounds) == max(partitions, 1), plan
    assert plan.count("Filter: ") == (len(bounds) if types else 0), plan
    last = plan_of(alias, LAST_EVENT.upto(end), upto=f"{end}")
    assert last.count("Index Scan Backward") == max(partitions, 1), last
    assert not re.search(r"(Seq Scan.*|Sort|Gather.*)$", last, re.MULTILINE)
    kinds = dict(sql(alias, "SELECT name, generic_plans FROM pg_prepared_statements"))
    assert kinds[page._name.decode()] >= 2
    assert kinds[LAST_EVENT.upto(end)._name.decode()] >= 2


@pytest.mark.parametrize("partitions", [0, 4])
def test_a_plan_for_a_small_table_is_not_used_for_a_large_one(second_database, partitions):
    """Here nobody analyzes the table, as before autovacuum has come."""
    alias = second_database
    partitioning.partition(partitions, using=alias)
    sql(alias, FILL, [9])
    sql(alias, "VACUUM ANALYZE eventlogs_event")
    feed = Feed(using=alias)
    for _ in range(8):
        assert len(feed.read()) == 9

    sql(alias, FILL, [MANY])
    end = feed.settled()
    for _ in range(8):
        feed.read(after=end - 3)

    page = plan_of(alias, PAGE.upto(end), after=f"{end - 3}", upto=f"{end}", limit="5")
    last = plan_of(alias, LAST_EVENT.upto(end), upto=f"{end}")
    assert "Seq Scan" not in page + last


# How arrays are sent


@COMMITS
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text[]", []),
        ("text[]", ["", "NULL", 'a"b', "{c,d}", "\\", "ä€😀", " x "]),
        ("bigint[]", []),
        ("bigint[]", [0, -1, 2**63 - 1, -(2**63)]),
    ],
)
def test_an_array_arrives_as_it_was(kind, values):
    encode, form = statements.ENCODERS[kind]
    connection.ensure_connection()

    result = connection.connection.pgconn.exec_params(
        f"SELECT to_jsonb($1::{kind})".encode(), [encode(values)], param_formats=[form]
    )

    assert json.loads(result.get_value(0, 0)) == values
