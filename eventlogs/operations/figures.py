"""
What ``eventlogs stats`` counts: events by type and day, lengths of logs, sizes on disk.

On PostgreSQL nothing is scanned that is large: of a table of more than SAMPLED_PAGES pages, so
many are drawn at random (https://www.postgresql.org/docs/current/sql-select.html, TABLESAMPLE
SYSTEM) and what they hold is scaled up. Rows are drawn by whole pages, so a day's or a rare
type's figure can be off by a good deal; sums over the table are off by a few percent. Other
databases are counted through the ORM, the newest NEWEST events where there are more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date
from math import ceil
from typing import Any, Final

from django.db import connections
from django.db.models import Count, Max
from django.db.models.functions import TruncDate

from eventlogs.models import Event, EventLog, IdempotencyKey

SAMPLED_PAGES: Final = 2_000  # pages of 8 KiB, read from each table at most
NEWEST: Final = 200_000  # events counted on other databases
PERCENTILES: Final = (0.5, 0.9, 0.99)

# A partitioned table has no pages of its own: its partitions' are summed. reltuples is -1 for a
# table that was never analyzed, and so it is then for the sum.
TABLES: Final = """
SELECT owner.relname,
       CASE WHEN min(part.reltuples) < 0 THEN -1 ELSE sum(part.reltuples)::bigint END,
       sum(pg_table_size(part.oid))::bigint, sum(pg_indexes_size(part.oid))::bigint,
       sum(pg_relation_size(part.oid) / current_setting('block_size')::bigint)::bigint
FROM pg_class AS owner
JOIN LATERAL (
    SELECT owner.oid AS relid WHERE owner.relkind <> 'p'
    UNION ALL
    SELECT relid FROM pg_partition_tree(owner.oid) WHERE owner.relkind = 'p' AND isleaf
) AS parts ON true
JOIN pg_class AS part ON part.oid = parts.relid
WHERE owner.oid = ANY (%s::regclass[])
GROUP BY owner.oid, owner.relname
"""

INDEXES: Final = """
SELECT owner.relname, class.relname,
       CASE class.relkind
           WHEN 'I' THEN (SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(class.oid))
           ELSE pg_relation_size(class.oid) END::bigint AS bytes
FROM pg_index AS index
JOIN pg_class AS class ON class.oid = index.indexrelid
JOIN pg_class AS owner ON owner.oid = index.indrelid
WHERE index.indrelid = ANY (%s::regclass[])
ORDER BY bytes DESC, class.relname
"""

# SYSTEM (100) reads the whole table, and is exact.
EVENTS: Final = """
SELECT type, (recorded_at AT TIME ZONE 'UTC')::date, count(*)
FROM eventlogs_event TABLESAMPLE SYSTEM (%s)
GROUP BY GROUPING SETS ((type), ((recorded_at AT TIME ZONE 'UTC')::date))
"""

LOGS: Final = """
SELECT log_type, count(*), sum(version), max(version),
       percentile_disc(%s::float8[]) WITHIN GROUP (ORDER BY version)
FROM eventlogs_eventlog TABLESAMPLE SYSTEM (%s)
GROUP BY log_type
"""


@dataclass
class LogFigures:
    """The logs of one type."""

    log_type: str
    logs: int
    events: int
    percentiles: tuple[int, ...]  # of the logs' lengths, at PERCENTILES
    longest: int  # with an estimate: of the logs that were looked at


@dataclass
class TableFigures:
    """One table on disk; bytes."""

    name: str
    rows: int
    table_bytes: int
    index_bytes: int
    estimated: bool = False
    indexes: dict[str, int] = field(default_factory=dict)


@dataclass
class Figures:
    """
    What there is.

    ``estimated`` names what is not exact: ``events``, ``logs``, ``keys``.
    ``events_counted`` is how many events the figures by type and day are from.
    """

    estimated: set[str] = field(default_factory=set)
    events: int = 0
    events_counted: int = 0
    by_type: dict[str, int] = field(default_factory=dict)
    by_day: dict[date, int] = field(default_factory=dict)
    logs: list[LogFigures] = field(default_factory=list)
    tables: list[TableFigures] = field(default_factory=list)


def figures(using: str, *, exact: bool) -> Figures:
    """Return the figures of a database; ``exact`` scans its tables."""
    if connections[using].vendor == "postgresql":
        return _of_postgresql(using, exact=exact)
    return _of_others(using, exact=exact)


def _of_postgresql(using: str, *, exact: bool) -> Figures:
    found = Figures()
    names = [model._meta.db_table for model in (Event, EventLog, IdempotencyKey)]
    with connections[using].cursor() as cursor:
        cursor.execute(TABLES, [names])
        facts = {row[0]: row[1:] for row in cursor.fetchall()}
        cursor.execute(INDEXES, [names])
        indexes = cursor.fetchall()
        pages = {name: facts[name][3] for name in names}

        percent = _percent(pages[names[0]], exact)
        cursor.execute(EVENTS, [percent])
        types: Counter[str] = Counter()
        days: Counter[date] = Counter()
        for event_type, day, count in cursor.fetchall():
            if day is None:
                types[event_type] = count
            else:
                days[day] = count
        found.events_counted = types.total()
        found.events = _scale(found.events_counted, percent)
        if percent < 100:
            found.estimated.add("events")
            if facts[names[0]][0] > 0:
                found.events = facts[names[0]][0]
        factor = found.events / found.events_counted if found.events_counted else 1
        found.by_type = {name: round(count * factor) for name, count in types.items()}
        found.by_day = {day: round(count * factor) for day, count in days.items()}

        percent = _percent(pages[names[1]], exact)
        cursor.execute(LOGS, [list(PERCENTILES), percent])
        found.logs = [
            LogFigures(
                log_type,
                _scale(logs, percent),
                _scale(int(events), percent),
                tuple(percentiles),
                longest,
            )
            for log_type, logs, events, longest, percentiles in cursor.fetchall()
        ]
        if percent < 100:
            found.estimated.add("logs")

        counted = {names[0]: found.events, names[1]: sum(each.logs for each in found.logs)}
        if exact or pages[names[2]] <= SAMPLED_PAGES:
            counted[names[2]] = IdempotencyKey.objects.using(using).count()
        else:
            found.estimated.add("keys")
        for name, what in zip(names, ("events", "logs", "keys"), strict=True):
            rows, table_bytes, index_bytes, _ = facts[name]
            found.tables.append(
                TableFigures(
                    name,
                    counted.get(name, max(rows, 0)),
                    table_bytes,
                    index_bytes,
                    what in found.estimated,
                    {index: size for owner, index, size in indexes if owner == name},
                )
            )
    return found


def _percent(pages: int, exact: bool) -> float:
    return 100.0 if exact or pages <= SAMPLED_PAGES else 100.0 * SAMPLED_PAGES / pages


def _scale(count: int, percent: float) -> int:
    return count if percent >= 100 else round(count * 100 / percent)


def _of_others(using: str, *, exact: bool) -> Figures:
    found = Figures()
    events = Event.objects.using(using).order_by()
    last = events.aggregate(last=Max("position"))["last"] or 0
    if last > NEWEST and not exact:
        found.estimated.add("events")
        events = events.filter(position__gt=last - NEWEST)
    found.by_type = dict(events.values_list("type").annotate(Count("position")))
    day = TruncDate("recorded_at", tzinfo=UTC)
    found.by_day = dict(events.annotate(day=day).values_list("day").annotate(Count("position")))
    found.events_counted = sum(found.by_type.values())
    # Positions have few gaps where there is one writer at a time: the last one is close.
    found.events = last if "events" in found.estimated else found.events_counted
    lengths: dict[str, list[tuple[int, int]]] = {}
    logs = EventLog.objects.using(using).order_by("log_type", "version")
    for log_type, version, count in logs.values_list("log_type", "version").annotate(Count("id")):
        lengths.setdefault(log_type, []).append((version, count))
    for log_type, histogram in lengths.items():
        total = sum(count for _, count in histogram)
        found.logs.append(
            LogFigures(
                log_type,
                total,
                sum(version * count for version, count in histogram),
                tuple(_percentile(histogram, ceil(share * total)) for share in PERCENTILES),
                histogram[-1][0],
            )
        )
    for model, rows in (
        (Event, found.events),
        (EventLog, sum(each.logs for each in found.logs)),
        (IdempotencyKey, IdempotencyKey.objects.using(using).count()),
    ):
        estimated = model is Event and "events" in found.estimated
        found.tables.append(TableFigures(model._meta.db_table, rows, 0, 0, estimated))
    return found


def _percentile(histogram: Iterable[tuple[int, int]], rank: int) -> int:
    """Return the version of the log at this place, of logs sorted by their versions."""
    up_to = 0
    for version, count in histogram:
        up_to += count
        if up_to >= rank:
            return version
    return 0


def as_json(found: Figures) -> dict[str, Any]:
    """Return the figures as JSON values."""
    return {
        "estimated": sorted(found.estimated),
        "events": found.events,
        "events_counted": found.events_counted,
        "by_type": dict(sorted(found.by_type.items(), key=lambda each: -each[1])),
        "by_day": {day.isoformat(): count for day, count in sorted(found.by_day.items())},
        "logs": {
            each.log_type: {
                "logs": each.logs,
                "events": each.events,
                "length": {
                    **dict(zip(("p50", "p90", "p99"), each.percentiles, strict=True)),
                    "longest": each.longest,
                },
            }
            for each in sorted(found.logs, key=lambda each: each.log_type)
        },
        "tables": {
            each.name: {
                "rows": each.rows,
                "table_bytes": each.table_bytes,
                "index_bytes": each.index_bytes,
                "indexes": each.indexes,
            }
            for each in found.tables
        },
    }
