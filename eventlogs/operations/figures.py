"""
Figures for ``eventlogs stats``: events by type and day, lengths of logs, sizes on disk.

Unless exact figures are asked for, at most NEWEST rows of a table are read, along an index: the
events and keys with the highest positions and ids, and the logs that were created last.
Shares and lengths are those of the rows that were read, and are not scaled up. The number of all
rows is the planner's estimate then (PostgreSQL), or at least what was read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date
from itertools import accumulate
from math import ceil
from typing import Any, Final

from django.db import connections, models
from django.db.models import Count, Q
from django.db.models.functions import TruncDate

from eventlogs.models import Event, EventLog, IdempotencyKey

NEWEST: Final = 100_000  # rows that are read of each table, unless all are asked for
PERCENTILES: Final = (0.5, 0.9, 0.99)

# A partitioned table has no pages of its own: its partitions' are summed. reltuples is -1 for a
# table that was never analyzed, and so it is then for the sum.
TABLES: Final = """
SELECT owner.relname,
       CASE WHEN min(part.reltuples) < 0 THEN -1 ELSE sum(part.reltuples)::bigint END,
       sum(pg_table_size(part.oid))::bigint, sum(pg_indexes_size(part.oid))::bigint
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
           WHEN 'I' THEN (SELECT sum(pg_table_size(relid)) FROM pg_partition_tree(class.oid))
           ELSE pg_table_size(class.oid) END::bigint AS bytes
FROM pg_index AS index
JOIN pg_class AS class ON class.oid = index.indexrelid
JOIN pg_class AS owner ON owner.oid = index.indrelid
WHERE index.indrelid = ANY (%s::regclass[])
ORDER BY bytes DESC, class.relname
"""


@dataclass
class LogFigures:
    """The logs of one type, of those that were read."""

    log_type: str
    logs: int
    events: int
    percentiles: tuple[int, ...]  # of the logs' lengths, at PERCENTILES
    longest: int


@dataclass
class TableFigures:
    """
    One table: rows, and bytes on disk where the database tells them.

    ``mark`` is "" if ``rows`` is exact, "~" for the planner's estimate, and "≥" if there are more
    rows than were read and the database has no estimate.
    """

    name: str
    read: int  # rows, NEWEST at most unless all were asked for
    rows: int = -1
    mark: str = ""
    table_bytes: int = 0
    index_bytes: int = 0
    indexes: dict[str, int] = field(default_factory=dict)


@dataclass
class Figures:
    """
    Figures of one database.

    ``by_type``, ``by_day`` and ``logs`` are those of the rows that were read; ``tables`` has
    ``events``, ``logs`` and ``keys``.
    """

    by_type: Counter[str]
    by_day: Counter[date]
    logs: list[LogFigures]
    tables: dict[str, TableFigures]


def figures(using: str, *, exact: bool) -> Figures:
    """Return the figures of a database; ``exact`` reads all rows."""
    limit = None if exact else NEWEST
    events, logs, keys = (
        newest(model.objects.using(using), limit, name)
        for model, name in ((Event, "pk"), (EventLog, "created_at"), (IdempotencyKey, "pk"))
    )
    by_type: Counter[str] = Counter()
    by_day: Counter[date] = Counter()
    days = events.annotate(day=TruncDate("recorded_at", tzinfo=UTC)).values_list("type", "day")
    for event_type, day, count in days.annotate(Count("pk")):
        by_type[event_type] += count
        by_day[day] += count
    lengths: dict[str, dict[int, int]] = {}
    versions = logs.values_list("log_type", "version").order_by("log_type", "version")
    for log_type, version, count in versions.annotate(Count("pk")):
        lengths.setdefault(log_type, {})[version] = count
    of_types = [_lengths(log_type, histogram) for log_type, histogram in lengths.items()]
    tables = {
        "events": TableFigures(Event._meta.db_table, by_type.total()),
        "logs": TableFigures(EventLog._meta.db_table, sum(each.logs for each in of_types)),
        "keys": TableFigures(IdempotencyKey._meta.db_table, keys.count()),
    }
    if connections[using].vendor == "postgresql":
        _add_sizes(tables.values(), using)
    for each in tables.values():
        if each.read == limit:
            each.mark = "~" if each.rows > each.read else "≥"
            each.rows = max(each.rows, each.read)
        else:
            each.rows = each.read
    return Figures(by_type, by_day, of_types, tables)


def newest(rows: models.QuerySet[Any], limit: int | None, name: str) -> models.QuerySet[Any]:
    """Return the ``limit`` rows that are last by a column, and then by key: a range of an index."""
    if limit is None:
        return rows.order_by()
    lowest = rows.order_by(f"-{name}", "-pk").values(name, "pk")[limit - 1 : limit].first()
    if lowest is None:
        return rows.order_by()
    value, key = lowest[name], lowest["pk"]
    found = rows.order_by().filter(**{f"{name}__gte": value})
    return found if name == "pk" else found.filter(Q(**{f"{name}__gt": value}) | Q(pk__gte=key))


def _lengths(log_type: str, histogram: Mapping[int, int]) -> LogFigures:
    """Return the figures of logs; ``histogram`` has their number by version, ascending."""
    versions, up_to = list(histogram), list(accumulate(histogram.values()))
    logs = up_to[-1]
    return LogFigures(
        log_type,
        logs,
        sum(version * count for version, count in histogram.items()),
        tuple(versions[bisect_left(up_to, ceil(share * logs))] for share in PERCENTILES),
        versions[-1],
    )


def _add_sizes(tables: Iterable[TableFigures], using: str) -> None:
    by_name = {each.name: each for each in tables}
    with connections[using].cursor() as cursor:
        cursor.execute(TABLES, [list(by_name)])
        for name, *facts in cursor.fetchall():
            table = by_name[name]
            table.rows, table.table_bytes, table.index_bytes = facts
        cursor.execute(INDEXES, [list(by_name)])
        for name, index, size in cursor.fetchall():
            by_name[name].indexes[index] = size


def as_json(found: Figures) -> dict[str, Any]:
    """Return the figures as JSON values."""
    return {
        "estimated": [name for name, each in found.tables.items() if each.mark],
        "events": found.tables["events"].rows,
        "events_counted": found.tables["events"].read,
        "by_type": dict(found.by_type.most_common()),
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
            for each in found.logs
        },
        "tables": {
            each.name: {
                name: getattr(each, name)
                for name in ("rows", "table_bytes", "index_bytes", "indexes")
            }
            for each in found.tables.values()
        },
    }
