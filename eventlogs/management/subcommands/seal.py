"""``eventlogs seal``: make a signed seal over all events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from eventlogs.management import arguments
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.seals.keys import new_pair
from eventlogs.seals.running import seal
from eventlogs.utils.times import time_text
from eventlogs.utils.words import counted

HELP = "Make a signed seal over all events, against which `attest` proves them later."


def add_arguments(parser: CommandParser) -> None:
    """Add where the seal goes."""
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="Append the seal to this file of seals. By default it is written to the standard "
        "output.",
    )
    parser.add_argument(
        "--leaves",
        metavar="FILE",
        help="Also write a line for each log to this new file. With it, `attest` names each log "
        "that differs, also after logs were erased.",
    )
    arguments.add_flags(
        parser,
        append="Append the seal to the log of seals, too: a reactor can send it away from there, "
        "and the admin shows it.",
        new_key="Only print a new pair of keys.",
    )


def run(
    out: Output,
    *,
    using: str,
    output: str | None,
    leaves: str | None,
    append: bool,
    new_key: bool,
    **options: Any,
) -> None:
    """Make a seal, or a pair of keys."""
    if new_key:
        write_keys(out)
        return
    if leaves is not None and Path(leaves).exists():
        raise mistake(f"{leaves} already exists. Choose another name.")
    try:
        made = seal(using=using, output=output, append=append, leaves=leaves)
    except OSError as error:
        raise mistake(f"{error.filename} cannot be written: {error.strerror or error}.") from error
    if output is None:
        out.record(made.as_json())
        return
    if out.as_json:
        out.document(made.as_json())
        return
    out.line(
        f"{output}: a seal at position {made.position:,}, over {counted(made.logs, 'log')} with "
        f"{counted(made.events, 'event')}, of {time_text(made.moment)}.",
        out.style.SUCCESS,
    )
    if made.unchained:
        words = "log has", "logs have"
        them = "it" if made.unchained == 1 else "them"
        out.line(f"{counted(made.unchained, *words)} no chain: the seal says nothing about {them}.")


def write_keys(out: Output) -> None:
    """Print a new pair of keys, as settings."""
    secret, public = new_pair()
    if out.as_json:
        out.document({"secret": secret, "public": public})
        return
    out.line("Keep the first one secret, e.g. in the environment of the machine that makes seals.")
    out.line("The second one checks seals: give it to everybody.")
    out.line()
    out.line(f'"SEAL_KEY": "{secret}"')
    out.line(f'"SEAL_PUBLIC_KEYS": ["{public}"]')
