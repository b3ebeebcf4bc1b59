"""``eventlogs rotate-keys``: wrap the keys of personal data by the newest encryption key."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.core.management.base import CommandParser

from eventlogs.exceptions import KeyUnavailable
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.privacy.keys import key_store
from eventlogs.utils.words import counted

HELP = "Wrap the keys of personal data by the newest of EVENTLOGS['ENCRYPTION_KEYS']."


def add_arguments(parser: CommandParser) -> None:
    """Add the key to give up; EVENTLOGS["KEY_STORE"] says where the keys are."""
    parser.add_argument(
        "--lost-key",
        metavar="ID",
        type=UUID,
        help="Rotate nothing; note that this key, which the key store does not have, is lost for "
        "good: its data count as erased.",
    )


def run(out: Output, *, using: str, lost_key: UUID | None, **options: Any) -> None:
    """Rotate the key store's keys; the database of the logs does not matter."""
    if lost_key is not None:
        _give_up(out, lost_key)
        return
    try:
        count = key_store().rotate()
    except KeyUnavailable as error:
        raise mistake(str(error)) from None
    if out.as_json:
        out.document({"keys": count})
        return
    if not count:
        out.line("All keys are wrapped by the newest encryption key.")
        return
    out.line(
        f"{counted(count, 'key')} wrapped anew. Now no key needs an older encryption key: it may "
        f"be removed from EVENTLOGS['ENCRYPTION_KEYS'] once all processes have the newest one."
    )


def _give_up(out: Output, lost_key: UUID) -> None:
    try:
        is_new = key_store().give_up(lost_key)
    except (KeyUnavailable, NotImplementedError) as error:
        raise mistake(str(error)) from None
    if not is_new:
        raise mistake(f"The key store has the key {lost_key}: it is not lost.")
    if out.as_json:
        out.document({"lost_key": lost_key})
        return
    out.line(f"The key {lost_key} is given up: what it has encrypted counts as erased.")
