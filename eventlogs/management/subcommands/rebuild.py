"""``eventlogs rebuild``: rebuild the rows of read models from the events."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.db import connections

from eventlogs.feed.reader import Feed
from eventlogs.feed.sources import beginning
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.choosing import choose, operator
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.models import ParkedEvent
from eventlogs.operations.commands import command
from eventlogs.projections.base import declared
from eventlogs.projections.operations import RowOperations
from eventlogs.projections.rebuild import Progress
from eventlogs.utils.words import counted

HELP = (
    "Rebuild the rows of read models while the old rows stay in use. Run it again to resume an "
    "interrupted rebuild."
)


def add_arguments(parser: CommandParser) -> None:
    """Add which read models, and how."""
    arguments.add_projections(parser, "Rebuild these read models.")
    arguments.add_flags(
        parser,
        due="Rebuild all read models whose rows another version of the projection has made.",
        restart="Discard an interrupted rebuild and start again.",
        park="Park events that fail. By default, the first one ends the rebuild.",
        downgrade="After a rollback: rebuild rows that a newer version has made. Stop its "
        "processes first.",
        without_archived="Rebuild from the events in the tables alone, without those of archived "
        "logs.",
    )
    parser.add_argument(
        "--replica",
        metavar="ALIAS",
        help="Read the events on this replica of the database, but for the last ones.",
    )
    parser.add_argument(
        "--log", type=arguments.log_id, metavar="LOG", help="Rebuild one log's row, in place."
    )


def run(
    out: Output, *, using: str, names: list[str], due: bool, log: LogId | None, **options: Any
) -> None:
    """Rebuild one read model after the other."""
    if not names and not due:
        known = ", ".join(each.name for each in choose([], using, RowOperations))
        raise mistake(f"Name the read models to rebuild, or pass --due. Read models: {known}.")
    for_all = ("restart", "park", "without_archived", "replica")
    if log is not None and any(options[each] for each in for_all):
        raise mistake(
            "--restart, --park, --without-archived and --replica are for rebuilds of all rows. "
            "With --log, one row is rebuilt in one transaction: leave them out."
        )
    replica = options["replica"]
    if replica is not None and (replica not in connections.databases or replica == using):
        raise mistake(
            f"--replica {replica}: name an alias of DATABASES, that of a replica of {using!r}."
        )
    chosen = choose(names, using, RowOperations) if names else []
    if due:
        able = declared(RowOperations, using=using)
        chosen += [each for each in able if each.is_rebuild_due(using=using)]
    if replica is not None:
        for each in chosen:
            if each.mode == each.INLINE:
                raise mistake(
                    f"--replica: {each.name} is inline, and rebuilt under the locks of its logs. "
                    f"Leave it out."
                )
    how = {name: options[name] for name in (*for_all, "downgrade")}
    for each in dict.fromkeys(chosen):
        rebuild(out, each, using, log, how)
    if not chosen and not out.as_json:
        out.line("No rebuild is due.", out.style.SUCCESS)


def rebuild(
    out: Output,
    projection: type[RowOperations],
    using: str,
    log: LogId | None,
    how: dict[str, Any],
) -> None:
    """Rebuild one read model, or one of its rows, in one database."""
    name = projection.name
    is_home = using == projection.database_alias()
    before = 0
    if log is not None:
        downgrade = how["downgrade"]
        applied = projection.rebuild(log, downgrade=downgrade, by=operator(), using=using)
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
                applied = projection.rebuild(tell=tell, by=operator(), using=using, **how)
            except KeyboardInterrupt:
                out.note(f"\nTo resume: {command(f'rebuild {name}', using=using)}")
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
        f"{what}: rebuilt from {counted(before + applied, 'event')}{where}{resumed}.",
        out.style.SUCCESS,
    )
    if waiting:
        out.line(
            f"{counted(waiting, 'event')} could not be applied. "
            f"See: {command(f'parked {name}', using=using)}",
            out.style.WARNING,
        )


def extent(projection: type[RowOperations], using: str) -> tuple[int, str]:
    """Return the size of a rebuild, and its unit."""
    if projection.mode != projection.INLINE:
        return max(Feed(using=using).settled() - beginning(using), 0), "positions"
    return projection.logs_read(using).count(), "logs"
