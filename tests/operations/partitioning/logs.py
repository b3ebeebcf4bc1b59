"""Logs to partition, and what is in their tables."""

from __future__ import annotations

from typing import Any

from django.db import connections

from eventlogs import Feed, LogManager
from tests.accounts import Account, Deposited, Opened

LOGS = 12


def accounts(alias: str) -> LogManager[Account]:
    """Return the logs of accounts in a database."""
    return LogManager(Account, using=alias)


def fill(alias: str) -> list[Any]:
    """Create some logs; return their ids."""
    logs = accounts(alias)
    return [logs.create(Opened(f"owner {n}"), Deposited(n + 1)).log_id for n in range(LOGS)]


def sql(alias: str, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Execute a statement; return its rows."""
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def everything(alias: str) -> list[tuple[Any, ...]]:
    """Return all events, byte for byte, in the order of positions."""
    return sql(
        alias,
        "SELECT position, log_id, index, type, schema_version, data::text, metadata::text,"
        " idempotency_key, recorded_at, log_type, digest FROM eventlogs_event ORDER BY position",
    )


def partitions(alias: str) -> int:
    """Return the number of partitions; 0 for one table."""
    [(count,)] = sql(
        alias, "SELECT count(*) FROM pg_partition_tree('eventlogs_event') WHERE level > 0"
    )
    return int(count)


def leftovers(alias: str) -> list[tuple[Any, ...]]:
    """Return the tables and functions of a copy that are there still."""
    return sql(
        alias,
        "SELECT relname FROM pg_class WHERE relname ~ '(partitioning|event_next|event_before)'"
        " UNION ALL SELECT proname FROM pg_proc WHERE proname LIKE 'eventlogs_partitioning%%'",
        (),
    )


def check_whole(alias: str) -> None:
    """Check that each log has as many events as its row says, and that the feed has them all."""
    # An erased or archived log has no events there.
    wrong = sql(
        alias,
        "SELECT id, version, count(position)"
        " FROM (SELECT id, CASE log_type WHEN '' THEN 0 ELSE version END AS version"
        "       FROM eventlogs_eventlog) AS logs"
        " LEFT JOIN eventlogs_event ON log_id = id"
        " GROUP BY id, version HAVING count(position) <> version OR max(index) <> version - 1",
    )
    assert wrong == []
    feed = Feed(using=alias)
    [(stored,)] = sql(alias, "SELECT count(*) FROM eventlogs_event")
    seen, after = 0, 0
    while page := feed.read(after=after, limit=1_000, decode=False):
        seen, after = seen + len(page), page.next_after
    assert seen == stored
