"""
The subcommands of ``manage.py eventlogs``, a module each.

A module has HELP (one sentence), ``add_arguments(parser)`` and ``run(out, *, using, …)``, whose
keywords are the options' names; ``arguments.py`` has common options. It parses, calls one function
of a lower layer, and reports: text by ``out.line``, ``out.paragraph`` and ``out.table``, or with
``out.as_json`` JSON by ``out.document`` (one) or ``out.record`` (one a line). A mistake of the
user is ``raise mistake("…")``; a finished job with findings is ``raise findings("…")``
(``mistakes.py``). Long work runs in ``with out.progress("Doing", total=…, unit="events") as
progress`` and calls ``progress.advance(n)``.

To add a subcommand, write its module and add it to SUBCOMMANDS.
"""

from __future__ import annotations

from typing import Any, Protocol

from django.core.management.base import CommandParser

from eventlogs.management.output import Output
from eventlogs.management.subcommands import (
    adopt,
    archive,
    attest,
    chain,
    claim,
    distribute,
    erase,
    events,
    export,
    export_subject,
    forget,
    grants,
    health,
    heartbeat,
    import_,
    layout,
    move,
    parked,
    partition,
    project,
    prune,
    rebuild,
    reduce,
    rotate_keys,
    seal,
    show,
    stats,
    tail,
    triggers,
    verify,
)


class Subcommand(Protocol):
    """The interface of the modules."""

    HELP: str

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the subcommand's own options."""

    def run(self, out: Output, *args: Any, **options: Any) -> None:
        """Run it. ``using`` is the database alias; the rest are the options."""


SUBCOMMANDS: dict[str, Subcommand] = {
    "show": show,
    "tail": tail,
    "reduce": reduce,
    "stats": stats,
    "health": health,
    "heartbeat": heartbeat,
    "verify": verify,
    "project": project,
    "rebuild": rebuild,
    "claim": claim,
    "chain": chain,
    "parked": parked,
    "export": export,
    "import": import_,
    "move": move,
    "events": events,
    "adopt": adopt,
    "prune": prune,
    "archive": archive,
    "erase": erase,
    "forget": forget,
    "export-subject": export_subject,
    "rotate-keys": rotate_keys,
    "grants": grants,
    "triggers": triggers,
    "partition": partition,
    "layout": layout,
    "distribute": distribute,
    "seal": seal,
    "attest": attest,
}
