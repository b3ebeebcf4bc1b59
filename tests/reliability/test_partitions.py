"""A partitioned table of 200,000 events: what it reads, and every promise."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import IntegrityError, connections, transaction

from eventlogs import ANY, Feed, IdempotentReplay, LogId, LogManager
from eventlogs.operations import figures, partitioning
from eventlogs.stores import erasing
from tests.accounts import Account, Deposited, Opened
from tests.reliability.test_feed_schemas import alias_for, sql

pytestmark = pytest.mark.postgresql

EVENTS = 200_000
LOGS = 2_000

FILL = f"""
INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'account', {EVENTS // LOGS}, now(), now()
FROM generate_series(0, {LOGS - 1}) AS n;
INSERT INTO eventlogs_event
    (log_type, log_id, index, type, schema_version, data, metadata, recorded_at)
SELECT 'account', lpad(to_hex(n % {LOGS}), 32, '0')::uuid, n / {LOGS}, 'account.deposited', 1,
       '{{"amount": 1}}', '{{}}', now()
FROM generate_series(0, {EVENTS - 1}) AS n
"""


@pytest.fixture(scope="module")
def events(django_db_setup: None, django_db_blocker: Any) -> Iterator[str]:
    """The alias of a database whose events were partitioned."""
    name = f"eventlogs_partitions_{os.getpid()}"
    with django_db_blocker.unblock():
        sql("default", f"CREATE DATABASE {name}")
        with alias_for("default", "public", name=name) as alias:
            call_command("migrate", "eventlogs", database=alias, verbosity=0)
            sql(alias, FILL)
            partitioning.partition(16, using=alias)
            yield alias
        sql("default", f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def partitioned(events: str, django_db_blocker: Any) -> Iterator[str]:
    with django_db_blocker.unblock():
        yield events


def rows_read(plan: dict[str, Any]) -> int:
    """Return how many events the leaves of a plan have read, including filtered ones."""
    below = [rows_read(each) for each in plan.get("Plans", ())]
    if not re.fullmatch(r"eventlogs_event(_p\d+)?", plan.get("Relation Name", "")):
        return sum(below)
    rows = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    return round(rows * plan["Actual Loops"]) + sum(below)


def cost_of(alias: str, work: Any) -> tuple[int, int]:
    """Return how many events and pages the statements of a call read."""
    statements: list[tuple[str, Any]] = []

    def note(execute, statement, parameters, many, context):
        statements.append((statement, parameters))
        return execute(statement, parameters, many, context)

    with connections[alias].execute_wrapper(note):
        work()
    rows = pages = 0
    with connections[alias].cursor() as cursor:
        for statement, parameters in statements:
            if "FROM eventlogs_event\n" in statement or "FROM eventlogs_event WHERE" in statement:
                cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
                [(found,)] = cursor.fetchall()
                [explained] = found if isinstance(found, list) else json.loads(found)
                rows += rows_read(explained["Plan"])
                plan = explained["Plan"]
                pages += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert statements
    assert pages
    return rows, pages


def test_the_feed_of_a_partitioned_table_reads_by_position(partitioned):
    feed = Feed(using=partitioned)
    last = feed.settled()
    assert last == EVENTS

    for work, most in (
        (lambda: feed.read(after=last), 0),
        (feed.settled, 0),
        (lambda: feed.read(after=last // 2, limit=100, decode=False), 100),
        (lambda: feed.read(after=last // 2, limit=1000, decode=False), 1000),
    ):
        rows, pages = cost_of(partitioned, work)
        # Besides the page: a row of each of the 16 partitions for each of three statements, and
        # the bounds of a page, which is an eighth wider than its limit.
        assert rows <= most * 1.2 + 3 * 16
        # An index of three levels, its leaves, and a page of the table for each row at worst.
        assert pages <= most * 4 + 3 * 16 * 8

    # The index is used.
    with transaction.atomic(using=partitioned):
        sql(partitioned, "DROP INDEX eventlogs_event_by_position")
        rows, _ = cost_of(partitioned, feed.settled)
        assert rows > EVENTS * 0.99
        transaction.set_rollback(True, using=partitioned)


def test_a_log_of_a_partitioned_table_is_erased_and_no_other_event(partitioned):
    log_id = LogManager(Account, using=partitioned).create(Opened("ada"), Deposited(1)).log_id
    before = sql(partitioned, "SELECT count(*) FROM eventlogs_event")

    erasing.erase(partitioned, log_id, by="grace", reason="order 7")

    [(count,)] = before
    assert sql(partitioned, "SELECT count(*) FROM eventlogs_event") == [(count - 2,)]
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(using=partitioned):
        sql(partitioned, "DELETE FROM eventlogs_event WHERE position = 1")


def test_stats_of_a_partitioned_table_are_summed(partitioned, monkeypatch):
    sql(partitioned, "VACUUM ANALYZE eventlogs_event")
    [(table_bytes, index_bytes)] = sql(
        partitioned,
        "SELECT sum(pg_table_size(relid)), sum(pg_indexes_size(relid))"
        " FROM pg_partition_tree('eventlogs_event')",
    )
    found = figures.figures(partitioned, exact=False)

    event = found.tables["events"]
    assert (event.table_bytes, event.index_bytes) == (table_bytes, index_bytes)
    assert set(event.indexes) == {
        "eventlogs_event_one_per_log_and_index",
        "eventlogs_event_by_position",
        "eventlogs_event_by_time",
    }
    assert sum(event.indexes.values()) == index_bytes
    assert figures.figures(partitioned, exact=True).by_type == {"account.deposited": EVENTS}

    monkeypatch.setattr(figures, "NEWEST", EVENTS // 4)
    event = figures.figures(partitioned, exact=False).tables["events"]
    assert (event.read, event.rows, event.mark) == (EVENTS // 4, EVENTS, "~")


def test_a_partitioned_table_keeps_every_promise(partitioned):
    accounts, feed = LogManager(Account, using=partitioned), Feed(using=partitioned)
    last = feed.settled()
    of_tables = run_checks(tags=["database"], databases=[partitioned])
    assert [each for each in of_tables if "eventlogs" in each.id] == []
    assert sql(partitioned, "SELECT count(*) FROM pg_partition_tree('eventlogs_event')") == [(17,)]

    # Appends and keys.
    state = accounts.create(Opened("ada"), Deposited(1), idempotency_key="k")
    assert state.position > last
    with pytest.raises(IdempotentReplay):
        accounts.create(Opened("ada"), Deposited(1), idempotency_key="k")
    old = LogId.stored("account", UUID(int=7))
    assert accounts.append(old, Deposited(1), expected_version=ANY).version == EVENTS // LOGS + 1
    found = feed.read(after=last)
    assert [(record.log_id, record.index) for record in found] == [
        (state.log_id, 0),
        (state.log_id, 1),
        (old, EVENTS // LOGS),
    ]

    # The fence: the parent's, whichever partitions the rows go to.
    last = feed.settled()
    with alias_for(partitioned, "public") as other, transaction.atomic(using=other):
        late = LogManager(Account, using=other).create(Opened("late"))
        for _ in range(20):
            accounts.create(Opened("early"))
        assert feed.settled() < late.position
        assert len(feed.holding_back()) == 1
    assert len(feed.read(after=last)) == 21

    # The triggers of the table can be created again, as the page says.
    for target, fake in (("0001", True), ("0003", False), (None, True)):
        arguments = ["eventlogs"] if target is None else ["eventlogs", target]
        call_command("migrate", *arguments, fake=fake, database=partitioned, verbosity=0)
    last = feed.settled()
    with alias_for(partitioned, "public") as other, transaction.atomic(using=other):
        LogManager(Account, using=other).create(Opened("late"))
        accounts.create(Opened("early"))
        assert feed.settled() == last
    assert len(feed.read(after=last)) == 2

    # No statement changes events, or inserts without a fence.
    for statement in (
        "UPDATE eventlogs_event SET type = 'account.lied'",
        "DELETE FROM eventlogs_event",
        "TRUNCATE eventlogs_event",
        "UPDATE eventlogs_event_p3 SET type = 'account.lied'",
        "DELETE FROM eventlogs_event_p3",
        "TRUNCATE eventlogs_event_p3",
        "INSERT INTO eventlogs_event_p3 SELECT * FROM eventlogs_event_p3",
    ):
        for role in ("origin", "replica"):
            with transaction.atomic(using=partitioned):
                sql(partitioned, f"SET LOCAL session_replication_role = {role}")
                with (
                    pytest.raises(IntegrityError, match="is append-only"),
                    transaction.atomic(using=partitioned),
                ):
                    sql(partitioned, statement)

    # The checks look at the partitions, too.
    for tampering, said in (
        (
            "DROP TRIGGER eventlogs_event_refuse_truncate ON eventlogs_event_p5",
            "eventlogs_event_p5",
        ),
        ("ALTER TABLE eventlogs_event_p6 DISABLE TRIGGER eventlogs_event_refuse_change", "1 more"),
        (
            "DROP TRIGGER eventlogs_event_refuse_truncate ON eventlogs_event",
            "its trigger is",
        ),
    ):
        sql(partitioned, tampering)
        messages = run_checks(databases=[partitioned])
        assert any(each.id == "eventlogs.W008" and said in each.msg for each in messages)
