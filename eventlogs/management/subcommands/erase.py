"""``eventlogs erase LOG --reason TEXT``: erase a whole log, for good."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from eventlogs.exceptions import EventLogError, LogErased
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.choosing import operator
from eventlogs.management.mistakes import findings, mistake
from eventlogs.management.output import Output
from eventlogs.operations import erasure
from eventlogs.operations.commands import command
from eventlogs.utils.times import time_text
from eventlogs.utils.words import counted

HELP = (
    "Erase a whole log and its copies, for good. A tombstone stays. Run it again to finish an "
    "interrupted erasure, and once more a minute after it. Exit code 1: projections must be "
    "rebuilt."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the log, the reason, and the confirmation."""
    parser.add_argument("log", type=arguments.log_id, metavar="LOG", help="The id of the log.")
    parser.add_argument(
        "--reason",
        metavar="TEXT",
        help="Why it is erased. The text stays in the tombstone: name no person in it.",
    )
    parser.add_argument(
        "--by", metavar="NAME", help="Who has ordered it. By default, the system's user."
    )
    arguments.add_flags(
        parser,
        dry_run="Only list what would be removed.",
        yes="Confirm: an erased log cannot be restored.",
    )


def run(
    out: Output,
    *,
    using: str,
    log: LogId,
    reason: str | None,
    by: str | None,
    dry_run: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Erase a log, or with ``dry_run`` list what would be removed."""
    if dry_run:
        preview(out, log, using)
        return
    by = (by or operator()).strip()
    if not (reason or "").strip():
        raise mistake("Say why the log is erased: --reason TEXT. It stays in the tombstone.")
    if not by or len(by) > erasure.MAX_NAME:
        raise mistake(f"Say who erases the log: --by NAME, at most {erasure.MAX_NAME} characters.")
    if not yes:
        raise mistake(
            "An erased log cannot be restored, and its id cannot be used again. List what would "
            "be removed with --dry-run, then add --yes to confirm."
        )
    try:
        done = erasure.erase(log, reason=reason or "", by=by, using=using)
    except EventLogError as error:
        if erasure.tombstone(log, using=using) is None:
            raise
        raise mistake(
            f"{error} The log itself is erased. Copies of its events may be left: then run this "
            f"command again."
        ) from error
    stone, copies = done.tombstone, done.copies
    if out.as_json:
        out.document(
            {
                **stone._asdict(),
                "is_new": done.is_new,
                "rows": copies.rows,
                "cache_entries": copies.entries,
                "to_rebuild": copies.to_rebuild,
            }
        )
    else:
        events = counted(stone.events, "event")
        at = time_text(stone.erased_at)
        if done.is_new:
            out.line(f"{log} was erased, with {events}.", out.style.SUCCESS)
        else:
            out.line(f"{log} was erased before, at {at} by {stone.erased_by}, with {events}.")
        entries = counted(copies.entries, "entry of caches", "entries of caches")
        rows = f"its rows in {', '.join(copies.rows)}" if copies.rows else "no rows"
        out.line(f"Removed: {entries}, and {rows} of read models.")
        again = command(f"erase {log} --reason … --yes", using=using)
        out.note(
            f"A process may still write a copy of what it has read before. Restart the workers, "
            f"and in a minute run this once more: {again}"
        )
    if copies.to_rebuild:
        raise findings(
            "The log is erased, but these projections may hold its data in rows that several "
            "logs share, or are being rebuilt. Run for each: "
            + "; ".join(
                command(f"rebuild {name} --restart", using=using) for name in copies.to_rebuild
            )
        )


def preview(out: Output, log: LogId, using: str) -> None:
    """List what would be removed."""
    try:
        found = erasure.preview(log, using=using)
    except LogErased as error:
        raise mistake(
            f"{error} Copies may be left: "
            f"{command(f'erase {log} --reason … --yes', using=using)} removes them."
        ) from error
    if out.as_json:
        out.document({"log_id": log, "dry_run": True, **found._asdict()})
        return
    out.line(f"{log} would be erased, with")
    for text in (
        counted(found.events, "event"),
        counted(found.idempotency_keys, "idempotency key"),
        counted(found.unique_values, "unique value"),
        counted(found.subjects, "link to a subject", "links to subjects"),
        *[f"its row of {name}" for name in found.rows],
        "its entries in all caches",
    ):
        out.line(f"- {text}")
    if found.to_rebuild:
        out.line(f"To be rebuilt after it: {', '.join(found.to_rebuild)}.")
