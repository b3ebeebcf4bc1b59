"""
The subcommands of ``manage.py eventlogs``, a module each.

A module has HELP (one sentence), ``add_arguments(parser)`` and ``run(out, *, using, …)``, whose
keywords are the options' names. It parses, calls one thing below, and reports: text through
``out.line`` and ``out.table``, or with ``out.as_json`` JSON through ``out.document`` (one) or
``out.record`` (a line each). What a user can put right is ``raise mistake("…")``, bad news is
``raise findings("…")`` at the end (see ``mistakes.py``). Long work runs inside of
``with out.progress("Doing", total=…, unit="events") as progress: progress.advance(n)``.

To add one: write its module, and name it in SUBCOMMANDS.
"""

from __future__ import annotations

from typing import Any, Protocol

from django.core.management.base import CommandParser

from eventlogs.management.output import Output
from eventlogs.management.subcommands import (
    export,
    grants,
    health,
    import_,
    parked,
    project,
    prune,
    rebuild,
    reduce,
    show,
    stats,
    tail,
    triggers,
    verify,
)


class Subcommand(Protocol):
    """What each of the modules is."""

    HELP: str

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the subcommand's own options."""

    def run(self, out: Output, *args: Any, **options: Any) -> None:
        """Do it. ``using`` is the database alias, the rest what the options say."""


SUBCOMMANDS: dict[str, Subcommand] = {
    "show": show,
    "tail": tail,
    "reduce": reduce,
    "stats": stats,
    "health": health,
    "verify": verify,
    "project": project,
    "rebuild": rebuild,
    "parked": parked,
    "export": export,
    "import": import_,
    "prune": prune,
    "grants": grants,
    "triggers": triggers,
}
