"""``eventlogs forget``: destroy the key of a person's data, and remove what was made of them."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from eventlogs.management import arguments
from eventlogs.management.choosing import operator
from eventlogs.management.mistakes import findings, mistake
from eventlogs.management.output import Output
from eventlogs.operations import forgetting
from eventlogs.operations.commands import command
from eventlogs.operations.forgetting import ForgottenSubject
from eventlogs.utils.words import counted

HELP = (
    "Forget a person, in all databases or in that of --database: destroy the key of their data for "
    "good, and make read models anew. Run it again to finish what was interrupted, and once more "
    "a minute later. Exit code 1: something is left to do."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the subject, and how."""
    parser.add_argument(
        "subject",
        nargs="?",
        metavar="SUBJECT",
        help='The subject as Personal(subject=…, prefix=…) makes it, e.g. "member:42".',
    )
    parser.add_argument(
        "--by",
        metavar="NAME",
        help="Who asks for it, for the receipt. By default, the user of the system.",
    )
    arguments.add_flags(
        parser,
        dry_run="List what would be touched; change nothing.",
        again="Remove what was made of the data of all forgotten people again, e.g. after a "
        "backup of the events was restored.",
    )


def run(
    out: Output,
    *,
    using: str,
    database: str | None,
    subject: str | None,
    by: str | None,
    dry_run: bool,
    again: bool,
    **options: Any,
) -> None:
    """Forget a person, or everybody again, and report."""
    if (subject is None) != again:
        raise mistake("Name one SUBJECT, or pass --again for all who were forgotten before.")
    name = operator() if by is None else by
    if subject is None:
        done = forgetting.forget_again(by=name, using=database, dry_run=dry_run)
    else:
        done = forgetting.forget(subject, by=name, using=database, dry_run=dry_run)
    if out.as_json:
        out.document(as_json(done, database=database, dry_run=dry_run))
    else:
        report(out, done, database=database, dry_run=dry_run)
    if dry_run or done.is_complete:
        return
    raise findings(_next_action(done, again=subject is None, using=using))


def as_json(done: ForgottenSubject, *, database: str | None, dry_run: bool) -> dict[str, Any]:
    """Return the result as JSON; with ``dry_run`` the logs are named."""
    return {
        "dry_run": dry_run,
        "keys": done.key_ids,
        "logs": done.logs,
        "named_logs": list(named_logs(done, database)) if dry_run else None,
        "entries": done.entries,
        "rows": dict(done.rows),
        "to_rebuild": done.to_rebuild,
        "failed": done.failed,
        "not_remade": [each._asdict() for each in done.not_remade],
        "open_appends": done.open_appends,
        "receipts": done.receipts,
        "new_receipts": done.new_receipts,
    }


def named_logs(done: ForgottenSubject, database: str | None) -> Any:
    """Yield the logs that would be touched, with the alias of their database."""
    for key_id in done.key_ids:
        for alias in forgetting.databases(database):
            for page in forgetting.pages_of(key_id, alias):
                for log_id in page:
                    yield {"log": log_id, "database": alias}


def report(out: Output, done: ForgottenSubject, *, database: str | None, dry_run: bool) -> None:
    """Write what was touched, or would be."""
    if dry_run:
        for each in named_logs(done, database):
            out.line(f"{each['log']}  {each['database']}")
    keys = counted(len(done.key_ids), "key")
    state = "would be destroyed" if dry_run else "destroyed"
    out.line(f"{keys} {state}, of data in {counted(done.logs, 'log')}.")
    verb = "would be deleted" if dry_run else "deleted"
    out.line(f"{counted(done.entries, 'cache entry', 'cache entries')} {verb}.")
    verb = "would be made anew" if dry_run else "made anew"
    for name, count in sorted(done.rows.items()):
        out.line(f"{name}: {counted(count, 'row')} {verb}.")
    for log_id in done.receipts:
        out.line(f"Receipt: {log_id}", out.style.SUCCESS if done.is_complete else None)
    for failed in done.not_remade:
        out.line(f"{failed.projection}, {failed.log_id}: not made anew ({failed.error})")
    if dry_run and done.to_rebuild:
        out.line(f"To be rebuilt afterwards: {', '.join(done.to_rebuild)}")


def _next_action(done: ForgottenSubject, *, again: bool, using: str) -> str:
    parts = ["The key is destroyed: nothing can decrypt the data any more."]
    if done.failed:
        parts.append(
            f"{counted(done.failed, 'row')} of read models could not be made anew and may still "
            f"hold them: correct the projection, then run this command again."
        )
    for name in done.to_rebuild:
        text = command(f"rebuild {name} --restart", using=using)
        parts.append(f"Several logs share rows of {name}, or it is being rebuilt: run {text}.")
    if done.open_appends:
        parts.append(
            f"{counted(done.open_appends, 'transaction')} had appended before and did not end "
            f"within {forgetting.LONGEST_WAIT:g} seconds: run this command again when "
            f"{'it has' if done.open_appends == 1 else 'they have'} ended."
        )
    return " ".join(parts)
