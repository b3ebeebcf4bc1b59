"""``eventlogs prune``: delete old idempotency keys."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from eventlogs import conf
from eventlogs.management import arguments
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.models import IdempotencyKey
from eventlogs.utils.times import time_text
from eventlogs.utils.words import counted

HELP = "Delete idempotency keys that are older than an age."


def add_arguments(parser: CommandParser) -> None:
    """Add the age."""
    parser.add_argument(
        "--older-than",
        type=arguments.age,
        metavar="AGE",
        help='E.g. 90d. By default, EVENTLOGS["IDEMPOTENCY_KEY_RETENTION"].',
    )
    arguments.add_flags(parser, dry_run="Only count the keys.")


def run(
    out: Output, *, using: str, older_than: timedelta | None, dry_run: bool, **options: Any
) -> None:
    """Prune keys, or with ``dry_run`` count them."""
    age = older_than or conf.idempotency_key_retention()
    if age is None:
        raise mistake(
            'No age is set: pass --older-than, or set EVENTLOGS["IDEMPOTENCY_KEY_RETENTION"]. '
            "A request that is retried after its key was deleted is a new request."
        )
    try:
        before = timezone.now() - age
    except OverflowError:
        raise mistake(
            f"--older-than reaches before the year 1: {counted(age.days, 'day')}."
        ) from None
    keys = IdempotencyKey.objects.using(using)
    old = keys.filter(created_at__lt=before)
    pruned = old.count() if dry_run else keys.prune(older_than=age)
    if out.as_json:
        out.document({"keys": pruned, "dry_run": dry_run, "before": before})
        return
    done = "would be deleted" if dry_run else "deleted"
    out.line(f"{counted(pruned, 'key')} from before {time_text(before)} {done}.")
