"""``eventlogs layout``: show the layout of a database's tables, or change it."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.db import connections

from eventlogs import conf
from eventlogs.management.output import Output
from eventlogs.operations import layouts
from eventlogs.stores.layouts import layout_of

HELP = (
    "Show where the positions of events come from in a database, or change it: from a sequence "
    "(fence) or from counters (buckets). Processes of the other layout cannot append afterwards."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the layout."""
    parser.add_argument(
        "layout",
        nargs="?",
        choices=layouts.LAYOUTS,
        help='The new layout, that of EVENTLOGS["LAYOUT"] in all processes from now on.',
    )


def run(out: Output, *, using: str, layout: str | None, **options: Any) -> None:
    """Show the layout, or change it."""
    changed = False
    if layout is not None:
        told: list[None] = []

        def tell() -> None:
            if not told:
                out.note("Waiting for transactions that have appended.")
            told.append(None)

        changed = layouts.change_layout(layout, using=using, tell=tell)
    found = layout_of(connections[using])
    configured = "buckets" if conf.has_buckets() else "fence"
    if out.as_json:
        out.document(
            {"database": using, "layout": found, "changed": changed, "setting": configured}
        )
        return
    if changed:
        out.line(f"The layout of {using!r} is {found!r} now.", out.style.SUCCESS)
    else:
        out.line(f"The layout of {using!r} is {found!r}.")
    if found != configured:
        out.note(
            f'EVENTLOGS["LAYOUT"] is {configured!r}: processes with this setting cannot append. '
            f"Set it to {found!r} and restart them."
        )
