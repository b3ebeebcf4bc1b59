"""``eventlogs archive``: move closed logs to archives, check archives, and bring a log back."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from eventlogs.exceptions import ArchiveUnavailable, RegistrationError
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.choosing import operator
from eventlogs.management.mistakes import findings, mistake
from eventlogs.management.output import Output
from eventlogs.operations import archiving
from eventlogs.operations.archiving.running import MAX_NAME
from eventlogs.operations.commands import command
from eventlogs.utils.words import counted

HELP = (
    "Move the closed logs that EVENTLOGS['RETENTION'] names from the tables to archives. They can "
    "be read there. With --check, read all archives and compare them. With --restore LOG, bring a "
    "log back. Exit code 1: an archive is damaged, or a log could not be judged."
)


def add_arguments(parser: CommandParser) -> None:
    """Add what to do."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--restore", type=arguments.log_id, metavar="LOG", help="Bring this log back."
    )
    which.add_argument(
        "--check", action="store_true", help="Read all archives, and compare them with the tables."
    )
    which.add_argument(
        "--dry-run", action="store_true", help="Only count the logs that would be moved."
    )
    parser.add_argument(
        "--limit",
        type=arguments.at_least(1),
        metavar="LOGS",
        help="Move at most so many logs. Run it again for the others.",
    )
    parser.add_argument("--by", metavar="NAME", help="Who does it. By default, the system's user.")


def run(
    out: Output,
    *,
    using: str,
    restore: LogId | None,
    check: bool,
    dry_run: bool,
    limit: int | None,
    by: str | None,
    **options: Any,
) -> None:
    """Archive, check archives, or bring a log back."""
    try:
        if restore is not None:
            bring_back(out, restore, using)
        elif check:
            check_all(out, using)
        elif dry_run:
            count(out, using)
        else:
            archive(out, using, limit, (by or operator()).strip())
    except RegistrationError as error:
        raise mistake(str(error)) from error


def archive(out: Output, using: str, limit: int | None, by: str) -> None:
    """Move closed logs to archives."""
    if not by or len(by) > MAX_NAME:
        raise mistake(f"Say who does it: --by NAME, at most {MAX_NAME} characters.")
    if not archiving.rules():
        raise mistake(
            "EVENTLOGS['RETENTION'] has no rule, so no log is closed. docs/retention.md shows one."
        )
    with out.progress("Archiving", unit="logs") as progress:
        told = 0

        def tell(done: archiving.Archiving) -> None:
            nonlocal told
            progress.advance(done.logs - told)
            told = done.logs

        done = archiving.archive(by=by, using=using, limit=limit, tell=tell)
    unreadable = [{"log_id": each.log_id, "error": each.error} for each in done.unreadable]
    if out.as_json:
        out.document(
            {
                "database": using,
                "logs": done.logs,
                "events": done.events,
                "files": done.files,
                "bytes": done.size,
                "waiting": done.waiting,
                **({"unreadable": unreadable} if unreadable else {}),
                **({"untidy": done.untidy.archive} if done.untidy else {}),
            }
        )
    else:
        logs = counted(done.logs, "log was archived", "logs were archived")
        files = counted(len(done.files), "file")
        out.line(
            f"{logs}, with {counted(done.events, 'event')}, in {files} of "
            f"{counted(done.size, 'byte')}.",
            out.style.SUCCESS,
        )
    if done.waiting and done.limit is not None:
        out.note(
            f"{counted(done.waiting, 'closed log')} stayed: {why_waiting(done.limit)} Archive "
            f"again when that has come to their end."
        )
    problems = []
    if done.unreadable:
        for each in [] if out.as_json else done.unreadable:
            out.line(f"{each.log_id}: {each.error}")
        problems.append(
            f"{counted(len(done.unreadable), 'log')} could not be judged: the events cannot be "
            f"folded, or the rule raises an error. Correct the code, then archive again."
        )
    if done.untidy:
        problems.append(
            f"The older archive {done.untidy.archive} is still to be written anew, or deleted: "
            f"{done.untidy.reason}. Then archive again."
        )
    if problems:
        raise findings(" ".join(problems))


def why_waiting(limit: archiving.Limit) -> str:
    """Return who has still to read the logs that stayed."""
    if limit.projection:
        return f"the projection {limit.projection} is at position {limit.position}."
    return f"an open transaction holds the feed at position {limit.position}."


def count(out: Output, using: str) -> None:
    """Count what would be moved."""
    rows = list(archiving.waiting(using=using))
    if out.as_json:
        out.document({"dry_run": True, "rules": [each._asdict() for each in rows]})
        return
    for each in rows:
        logs = counted(each.logs, "log")
        out.line(f"{each.log_type}: {logs}, with {counted(each.events, 'event')}.")
    if not rows:
        out.line("EVENTLOGS['RETENTION'] has no rule.")


def check_all(out: Output, using: str) -> None:
    """Read all archives, and compare them."""
    damaged = total = events = 0
    for each in archiving.check(using=using):
        total += 1
        events += each.events
        damaged += bool(each.problem)
        if out.as_json:
            out.record(each._asdict())
        elif each.problem:
            out.line(f"{each.name}: {each.problem}", out.style.ERROR)
    text = f"{counted(total, 'archive was', 'archives were')} read, with {counted(events, 'event')}"
    if damaged:
        raise findings(
            f"{text}. {counted(damaged, 'archive')} cannot be relied on: restore the files from a "
            f"backup, then run {command('archive --check', using=using)} again."
        )
    if not out.as_json:
        out.line(f"{text}. All of them are what was written.", out.style.SUCCESS)


def bring_back(out: Output, log: LogId, using: str) -> None:
    """Bring a log back."""
    try:
        events = archiving.restore(log, using=using)
    except ArchiveUnavailable as error:
        if not archiving.is_back(log, using=using):
            raise
        raise mistake(
            f"{error} The log itself is back. The next run of "
            f"{command('archive', using=using)} writes its archive anew."
        ) from error
    if out.as_json:
        out.document({"log_id": log, "events": events})
    else:
        out.line(f"{log} is back, with {counted(events, 'event')}.", out.style.SUCCESS)
