"""
System checks of PostgreSQL databases, run by ``check --database`` and ``migrate``.

    W008  the triggers that keep events append-only are missing
    W011  the trigger that fences the feed is missing
    W012  the sequence of positions does not give out one position after the other
    W013  the events are on several servers, so they have no feed
    W014  a subscription writes the events, so they have no feed
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from django.core.checks import CheckMessage, Tags, Warning, register
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.checks.databases import with_logs
from eventlogs.feed.sources import feed_source_for
from eventlogs.stores.made_for_tests import is_test_database

REFUSE_CHANGE: Final = "eventlogs_event_refuse_change"
REFUSE_TRUNCATE: Final = "eventlogs_event_refuse_truncate"

# The triggers that are missing on events, or on one of its partitions. A statement may name a
# partition itself, and PostgreSQL copies only triggers FOR EACH ROW to partitions.
MISSING_TRIGGERS: Final = """
SELECT wanted.name, tables.relid::regclass::text, tables.relid = 'eventlogs_event'::regclass
FROM (SELECT 'eventlogs_event'::regclass AS relid
      UNION SELECT relid FROM pg_partition_tree('eventlogs_event')) AS tables,
     unnest(%s::text[]) AS wanted (name)
WHERE NOT EXISTS (
    SELECT FROM pg_trigger
    WHERE tgrelid = tables.relid AND tgname = wanted.name AND tgenabled = 'A')
ORDER BY 3 DESC, 1, 2
"""

SEQUENCE: Final = """
SELECT seqcache, seqincrement, seqmin, seqcycle FROM pg_sequence
WHERE seqrelid = pg_get_serial_sequence('eventlogs_event', 'position')::regclass
"""


@register(Tags.database)
def check_append_only_triggers(
    *, databases: Sequence[str] | None = None, **kwargs: Any
) -> Iterable[CheckMessage]:
    """Check that PostgreSQL refuses to change events."""
    for connection in _migrated(databases):
        alias = connection.alias
        wanted = [REFUSE_CHANGE]
        if not is_test_database(connection):
            wanted.append(REFUSE_TRUNCATE)
        with connection.cursor() as cursor:
            cursor.execute(MISSING_TRIGGERS, [wanted])
            missing = cursor.fetchall()
        of_table = [name for name, _, is_table in missing if is_table]
        if of_table:
            triggers = "trigger is" if len(of_table) == 1 else "triggers are"
            yield Warning(
                f"The database {alias!r} does not refuse changes of events: its {triggers} "
                f"missing or not ENABLE ALWAYS: {', '.join(of_table)}.",
                hint=f"Run: {create_triggers(alias)}.",
                id="eventlogs.W008",
            )
        of_partitions = [(name, table) for name, table, is_table in missing if not is_table]
        if of_partitions and not of_table:
            name, table = of_partitions[0]
            others = len(of_partitions) - 1
            yield Warning(
                f"The database {alias!r} does not refuse changes of events in a partition: the "
                f"trigger {name} of {table} is missing or not ENABLE ALWAYS"
                + (f", and {others} more triggers are." if others else "."),
                hint=f"Run: {create_triggers(alias)}.",
                id="eventlogs.W008",
            )


@register(Tags.database)
def check_feed(*, databases: Sequence[str] | None = None, **kwargs: Any) -> Iterable[CheckMessage]:
    """Check that PostgreSQL fences the feed."""
    for connection in _migrated(databases):
        alias = connection.alias
        refusals = feed_source_for(alias).refusals()
        if "fence" in refusals:
            yield Warning(
                f"The database {alias!r} refuses to read the feed, because readers could skip "
                f"events: the trigger eventlogs_event_fence is missing or not ENABLE ALWAYS.",
                hint=f"Run: {create_triggers(alias)}. Then rebuild the projections that have read "
                "the feed without the trigger: they may lack events.",
                id="eventlogs.W011",
            )
        if "sequence" in refusals:
            yield Warning(
                f"The database {alias!r} refuses to read the feed, because readers could skip "
                f"events: the sequence of positions {_sequence(connection)}. It must have "
                f"CACHE 1, INCREMENT 1, MINVALUE 1 and NO CYCLE.",
                hint="Run: ALTER TABLE eventlogs_event ALTER position SET CACHE 1 SET INCREMENT 1 "
                "SET MINVALUE 1 SET NO CYCLE; Then restart every process that is connected: each "
                "connection still uses the positions that it has reserved. Check that the next "
                "position is above all that are stored.",
                id="eventlogs.W012",
            )
        if "distributed" in refusals:
            yield Warning(
                f"The database {alias!r} refuses to read the feed: its events are on several "
                f"servers, and no server sees the locks and positions of the others.",
                hint="Keep the tables of eventlogs on one server. On Citus, set "
                'EVENTLOGS["LAYOUT"] = "buckets" and run manage.py eventlogs layout buckets; then '
                "all of their schema may be distributed, by manage.py eventlogs distribute.",
                id="eventlogs.W013",
            )
        if "subscriber" in refusals:
            yield Warning(
                f"The database {alias!r} refuses to read the feed: a subscription of logical "
                f"replication writes its events, and commits them in another order than that of "
                f"their positions.",
                hint="Read the feed from the publisher. When this database takes the publisher's "
                "place, drop the subscription and set the sequence past the last position.",
                id="eventlogs.W014",
            )


def create_triggers(alias: str) -> str:
    """Return the command that creates the triggers of a database again."""
    return f"manage.py eventlogs triggers --database {alias}"


def _migrated(databases: Sequence[str] | None) -> Iterator[BaseDatabaseWrapper]:
    """Yield the connections to databases that have the table of events."""
    for connection in with_logs(databases, vendors=("postgresql",)):
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('eventlogs_event')")
            is_there = cursor.fetchone() != (None,)
        if is_there:
            yield connection


def _sequence(connection: BaseDatabaseWrapper) -> str:
    with connection.cursor() as cursor:
        cursor.execute(SEQUENCE)
        found = cursor.fetchone()
    if found is None:
        return "is missing"
    cache, increment, least, cycles = found
    text = f"has CACHE {cache}, INCREMENT {increment}, MINVALUE {least}"
    return f"{text} and CYCLE" if cycles else text
