"""``eventlogs rebuild``: make the rows of read models anew."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from eventlogs.feed.reader import Feed
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.choosing import are_due, choose, with_rows
from eventlogs.management.mistakes import mistake
from eventlogs.management.operators import operator
from eventlogs.management.output import Output
from eventlogs.models import EventLog, ParkedEvent
from eventlogs.projections.operations import RowOperations
from eventlogs.projections.rebuild import Progress

HELP = (
    "Make the rows of read models anew, while the old ones serve; one that was interrupted "
    "carries on."
)


def add_arguments(parser: CommandParser) -> None:
    """Add which, and how."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="Which read models.")
    parser.add_argument(
        "--due",
        action="store_true",
        help="All whose version was raised since their rows were made.",
    )
    parser.add_argument(
        "--log",
        type=arguments.log_id,
        metavar="LOG",
        help="Only the row of this log, in place.",
    )
    parser.add_argument(
        "--restart", action="store_true", help="Begin anew, also where one was interrupted."
    )
    parser.add_argument(
        "--park",
        action="store_true",
        help="Put events aside that cannot be applied. By default, the first one ends it.",
    )
    parser.add_argument(
        "--downgrade",
        action="store_true",
        help="After a rollback: take over rows that a newer version has made. Stop its processes "
        "first.",
    )


def run(
    out: Output,
    *,
    using: str,
    names: list[str],
    due: bool,
    log: LogId | None,
    restart: bool,
    park: bool,
    downgrade: bool,
    **options: Any,
) -> None:
    """Rebuild one after the other."""
    if due:
        names = [*names, *are_due(using)]
    elif not names:
        known = ", ".join(choose([], using))
        raise mistake(f"Which one? Name some, or pass --due. There is: {known}.")
    for name in dict.fromkeys(names):
        rebuild(
            out,
            with_rows(name, using),
            using,
            log=log,
            restart=restart,
            park=park,
            downgrade=downgrade,
        )
    if not names and not out.as_json:
        out.line("No rebuild is due.", out.style.SUCCESS)


def rebuild(
    out: Output,
    projection: type[RowOperations],
    using: str,
    *,
    log: LogId | None,
    restart: bool,
    park: bool,
    downgrade: bool,
) -> None:
    """Rebuild one read model, or one of its rows, in one database."""
    name = projection.name
    is_home = using == projection.database_alias()
    option = "" if is_home else f" --database {using}"
    before = 0
    if log is not None:
        applied = projection.rebuild(log, by=operator(), using=using)
    else:
        total, unit = extent(projection, using)
        with out.progress(f"Rebuilding {name}", total=total, unit=unit) as bar:
            done: int | None = None

            def tell(progress: Progress) -> None:
                nonlocal done, before
                if done is None:
                    done, before = progress.first, progress.before
                    bar.resume(done)
                bar.advance(max(0, progress.done - done))
                done = max(done, progress.done)

            try:
                applied = projection.rebuild(
                    restart=restart,
                    park=park,
                    downgrade=downgrade,
                    tell=tell,
                    by=operator(),
                    using=using,
                )
            except KeyboardInterrupt:
                out.note(f"\nTo carry on: manage.py eventlogs rebuild {name}{option}")
                raise
    waiting = ParkedEvent.objects.using(using).filter(projection=name, is_rebuild=False).count()
    if out.as_json:
        out.record(
            {
                "projection": name,
                "applied": applied,  # in this run
                "applied_before": before,  # by the runs that were interrupted
                "waiting": waiting,
            }
        )
        return
    what = name if log is None else f"{name}, {log}"
    where = "" if is_home else f" in the database {using!r}"
    resumed = f", {applied:,} of them in this run, which resumed the rebuild" if before else ""
    out.line(
        f"{what}: rebuilt from {before + applied:,} events{where}{resumed}.", out.style.SUCCESS
    )
    if waiting:
        out.line(
            f"{waiting:,} events could not be applied. "
            f"See: manage.py eventlogs parked {name}{option}",
            out.style.WARNING,
        )


def extent(projection: type[RowOperations], using: str) -> tuple[int, str]:
    """Return how much there is to go through, and its unit."""
    if projection.mode != projection.INLINE:
        return Feed(using).settled(), "positions"
    logs = EventLog.objects.using(using)
    log_types = projection.log_types_read()
    return (logs if log_types is None else logs.filter(log_type__in=log_types)).count(), "logs"
