"""``eventlogs stats``: numbers of events and logs, cache, projections, sizes on disk."""

from __future__ import annotations

from dataclasses import asdict
from math import ceil
from typing import Any

from django.core.management.base import CommandParser

from eventlogs.management import arguments
from eventlogs.management.output import Output
from eventlogs.operations.cache_figures import CacheFigures, cache_figures
from eventlogs.operations.commands import command
from eventlogs.operations.figures import NEWEST, Figures, TableFigures, as_json, figures
from eventlogs.projections.base import BaseProjection, declared
from eventlogs.projections.status import ProjectionStatus, statuses
from eventlogs.utils.times import duration
from eventlogs.utils.words import counted

HELP = "Count events by type and day, lengths of logs, cache, projections, sizes on disk."

DAYS = 14
BAR = 24  # columns of the longest bar


def add_arguments(parser: CommandParser) -> None:
    """Add --exact and --days."""
    arguments.add_flags(parser, exact="Read whole tables, however large they are.")
    text = f"Show the last N days that have events ({DAYS} by default)."
    arguments.add_number(parser, "--days", lowest=0, default=DAYS, text=text)


def run(out: Output, *, using: str, exact: bool, days: int, **options: Any) -> None:
    """Write the figures; a ``~`` marks an estimate, a ``≥`` a figure that may be higher."""
    found = figures(using, exact=exact)
    cached = cache_figures(using)
    stand = statuses(declared(BaseProjection, using=using), using=using)
    if out.as_json:
        out.document({**as_json(found), "cache": asdict(cached), "projections": stand})
        return
    write_events(out, found, days)
    write_logs(out, found)
    write_cache(out, cached)
    write_projections(out, stand, using)
    write_tables(out, found)
    if any(each.mark for each in found.tables.values()):
        out.line()
        out.paragraph(
            f"~ is an estimate of the database, ≥ a figure that may be higher; --exact counts. "
            f"Types, days and lengths are those of the newest {NEWEST:,} events and logs.",
            out.style.WARNING,
        )


def total(found: Figures, what: str) -> str:
    """Return a heading: how many there are, and how many of them the figures are from."""
    table = found.tables[what]
    of = f"; of the newest {table.read:,}" if table.mark else ""
    return f"{number(table)} {what}{of}"


def write_events(out: Output, found: Figures, days: int) -> None:
    """Write a row for each event type, the most frequent first, and one for each of some days."""
    out.line(total(found, "events"), out.style.MIGRATE_HEADING)
    read = found.tables["events"].read
    out.table(
        [(name, count, f"{count / read:.1%}") for name, count in found.by_type.most_common()],
        head=("type", "events", "share"),
        right=(1, 2),
    )
    last = sorted(found.by_day.items())[-days:] if days else []
    if last:
        most, first = max(count for _, count in last), min(found.by_day)
        oldest = "≥" if found.tables["events"].mark else ""  # its first events were not read
        out.heading(f"Days (UTC), the last {len(last)} of {len(found.by_day):,}")
        out.table(
            [
                (day, f"{oldest if day == first else ''}{count:,}", "█" * ceil(BAR * count / most))
                for day, count in last
            ],
            head=("day", "events", ""),
            right=(1,),
        )


def write_logs(out: Output, found: Figures) -> None:
    """Write a row for each log type."""
    out.heading(total(found, "logs"))
    out.table(
        [
            (each.log_type, each.logs, each.events, *each.percentiles, each.longest)
            for each in sorted(found.logs, key=lambda each: -each.logs)
        ],
        head=("log type", "logs", "events", "median", "90%", "99%", "longest"),
        right=range(1, 7),
    )


def write_cache(out: Output, found: CacheFigures) -> None:
    """Write how many logs of the newest events the cache has."""
    if found.alias is None:
        return
    out.heading(f"Cache {found.alias!r}, {found.policy}")
    if not found.is_shared:
        name = found.backend.rpartition(".")[2]
        out.line(f"{name} is in the memory of each process: this command cannot see it.")
    elif not found.is_reachable:
        out.line("It cannot be reached: each reduction replays its log.", out.style.ERROR)
    elif not found.aggregates:
        out.line("No aggregate of the newest logs is cached.")
    if not found.aggregates:
        return
    out.table(
        [
            (
                each.aggregate,
                each.logs,
                *(f"{count / each.logs:.0%}" for count in (each.current, each.behind, each.absent)),
                size(each.bytes // max(each.current + each.behind, 1)),
            )
            for each in found.aggregates
        ],
        head=("aggregate", "newest logs", "current", "behind", "absent", "average size"),
        right=range(1, 6),
    )


def write_projections(out: Output, stand: list[ProjectionStatus], using: str) -> None:
    """Write a row for each projection."""
    if not stand:
        return
    out.heading(counted(len(stand), "projection"))
    out.table(
        [
            (
                each.name,
                f"{each.version}, due" if each.is_rebuild_due else f"{each.version}",
                each.behind,
                "?" if each.age is None else duration(each.age),
                f"{each.rate:,.0f}/s" if each.rate else "",
                each.parked,
                each.waiting,
                f"{len(each.owners)} for {each.partitions}" if each.owners else "nobody",
            )
            for each in stand
        ],
        head=("projection", "version", "behind", "lag", "speed", "parked", "waiting", "run by"),
        right=range(2, 7),
    )
    for each in [each for each in stand if each.awaiting_release]:
        out.line(
            f"{each.name}: {counted(each.awaiting_release, 'log waits', 'logs wait')} for a "
            "release that knows their next event. See: "
            + command(f"parked {each.name}", using=using),
            out.style.WARNING,
        )


def write_tables(out: Output, found: Figures) -> None:
    """Write sizes, if the database has them."""
    if not any(each.table_bytes for each in found.tables.values()):
        return
    out.heading("On disk")
    rows = []
    for each in found.tables.values():
        rows.append((each.name, number(each), size(each.table_bytes)))
        rows.extend((f"  {name}", "", size(bytes_)) for name, bytes_ in each.indexes.items())
    out.table(rows, head=("table or index", "rows", "size"), right=(1, 2))


def number(table: TableFigures) -> str:
    """Return how many rows a table has, with its mark; an estimate to three digits."""
    rows = round(table.rows, 3 - len(str(table.rows))) if table.mark == "~" else table.rows
    return f"{table.mark}{rows:,}"


def size(bytes_: int) -> str:
    """Return a size for people, in binary units."""
    amount = float(bytes_)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
