"""The health of a table that is partitioned: a copy that was begun, and left half done."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from eventlogs.operations.health.findings import ACT, INFO, Finding
from eventlogs.operations.health.look import Look
from eventlogs.operations.partitioning.progress import Unfinished, unfinished
from eventlogs.utils.words import seconds

# A command that runs notes that at least every 30 seconds, unless it is in a step, which is seen by
# its lock, or does not get the locks of one. After five minutes it gives those up.
SILENT: Final = timedelta(minutes=10)


def look_at_partitioning(look: Look) -> Iterator[Finding]:
    """Yield the finding about a copy of the table of events that is not finished."""
    if not look.is_postgresql:
        return
    with look.connection.cursor() as cursor:
        found = unfinished(cursor)
    if found is None:
        return
    into = f"{found.partitions} partitions" if found.partitions else "one table"
    silent = round(found.silent.total_seconds())
    begun = f"begun by the role {found.begun_by!r}"
    if found.is_in_a_step or found.silent < SILENT:
        yield look.finding(
            "partitioning",
            INFO,
            f"The table of events is being made {into}: the command was {begun}.",
            since=found.begun_at,
            silent_seconds=silent,
        )
        return
    yield look.finding(
        "partitioning",
        ACT,
        f"The command that makes the table of events {into}, {begun}, has done nothing for "
        f"{seconds(silent)}, and is not finished. {_cost(found)}",
        "Table owner: run it again, and it goes on"
        + (":" if found.swapped else "; or give the copy up with --abandon:"),
        look.command(
            f"partition --partitions {found.partitions}" if found.partitions else "partition --undo"
        ),
        since=found.seen_at,
        silent_seconds=silent,
    )


def _cost(found: Unfinished) -> str:
    if found.swapped:
        return "The old table still has its events, also those of logs that are erased meanwhile."
    if found.mirrored:
        return "Each append is stored in the copy as well."
    return "The copy still has events of logs that are erased meanwhile."
