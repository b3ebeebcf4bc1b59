"""``eventlogs events``: the catalogue of event types."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from eventlogs.management import arguments
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.operations.catalogue import (
    Entry,
    asyncapi_document,
    catalogue,
    json_schemas,
)
from eventlogs.utils.words import counted

HELP = "List the event types: fields, versions, who handles them, how often they are stored."


def add_arguments(parser: ArgumentParser) -> None:
    """Add what to show."""
    parser.add_argument("names", nargs="*", metavar="TYPE", help="Only these event types.")
    how = parser.add_mutually_exclusive_group()
    arguments.add_flags(
        how,
        exact="Read all events, and correct the table of stored types.",
        schema="Write the JSON Schemas of the event classes.",
        asyncapi="Write an AsyncAPI document of the event classes.",
    )


def run(
    out: Output,
    *,
    using: str,
    names: list[str],
    exact: bool,
    schema: bool,
    asyncapi: bool,
    **options: Any,
) -> None:
    """Show the catalogue, or a document of it."""
    if schema:
        out.document(json_schemas())
        return
    if asyncapi:
        out.document(asyncapi_document())
        return
    found = catalogue(using=using, exact=exact)
    known = {name: each for each in found.entries for name in (each.name, *each.aliases)}
    if unknown := [each for each in names if each not in known]:
        raise mistake(f"There is no event type {unknown[0]!r}. Types: {', '.join(sorted(known))}.")
    entries = [known[each] for each in names] if names else list(found.entries)
    if out.as_json:
        out.document(
            {
                "counted": found.counted,
                "is_exact": found.is_exact,
                "events": [asdict(each) for each in entries],
            }
        )
        return
    out.table(
        [row(each) for each in entries],
        head=("type", "version", "stored", "log types", "handled by", "events"),
        right=(1, 5),
    )
    for each in entries if names else ():
        describe(out, each)
    out.line()
    of = "all" if found.is_exact else "the newest"
    out.line(f"Events are counted among {of} {counted(found.counted, 'event')}.")


def row(entry: Entry) -> tuple[Any, ...]:
    """Return an event type as a row."""
    state = "retired" if entry.is_retired else "no class"
    return (
        entry.name,
        str(entry.version) if entry.cls else state,
        ", ".join(map(str, entry.stored)),
        ", ".join(entry.log_types),
        ", ".join((*entry.projections, *entry.reactors)),
        entry.count,
    )


def describe(out: Output, entry: Entry) -> None:
    """Write the fields of an event type, and what it is."""
    out.heading(entry.name)
    for text in (entry.doc, entry.cls, f"aliases: {', '.join(entry.aliases) or 'none'}"):
        if text:
            out.paragraph(text)
    out.table(
        [
            (each.name, each.type, "" if each.is_required else "has a default")
            for each in entry.fields
        ]
    )
