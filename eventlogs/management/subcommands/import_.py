"""``eventlogs import FILE``: import exported logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import CommandParser

from eventlogs.exceptions import EventLogError, FeedUnavailable, InvalidExport
from eventlogs.management.mistakes import findings, mistake
from eventlogs.management.output import Output
from eventlogs.management.terminal import Progress
from eventlogs.models import EventLog
from eventlogs.operations.commands import command
from eventlogs.operations.jsonl import (
    MAX_LINE,
    Imported,
    ends_of,
    import_lines,
    import_tombstones,
)
from eventlogs.projections.base import declared
from eventlogs.projections.from_now import is_behind
from eventlogs.projections.kinds import Reactor
from eventlogs.stores.unique_values import Taken
from eventlogs.utils.words import counted

HELP = "Import an export. Import the same file again to resume: only missing events are stored."

STDIN = "-"


def add_arguments(parser: CommandParser) -> None:
    """Add the file."""
    parser.add_argument(
        "file",
        nargs="+",
        help="A file of `eventlogs export`, or - for the standard input. Give exports that follow "
        "each other in their order.",
    )


def run(out: Output, *, using: str, file: list[str], **options: Any) -> None:
    """Import files, and report how many events were new."""
    imported = Imported()
    name = file[0]
    try:
        store = EventLog.objects.store(using=using)
        again = [each for each in file if can_be_read_again(each)]
        exports = [partial(lines_of_file, each) for each in again if may_have_tombstones(each)]
        import_tombstones(store, exports, imported=imported)
        for name in file:
            with open_file(name) as stream, progress_of(out, name) as progress:
                import_lines(
                    store,
                    lines_of(stream, progress),
                    imported=imported,
                    with_tombstones=name not in again,
                )
    except OSError as error:
        where = error.filename or name
        raise mistake(f"{where} cannot be read: {error.strerror or error}.") from error
    except EventLogError as error:
        raise mistake(f"{error} {so_far(imported)}") from error
    except KeyboardInterrupt:
        out.note(f"\n{so_far(imported)} Import the same file again to resume.")
        raise
    if out.as_json:
        figures: dict[str, Any] = {"stored": imported.stored, "present": imported.present}
        if imported.tombstones:
            figures["tombstones"] = imported.tombstones
        if imported.differing_tombstones:
            figures["differing_tombstones"] = imported.differing_tombstones
        if imported.taken:
            figures["taken"] = [each._asdict() for each in imported.taken]
        if imported.erased:
            figures["erased"] = sorted(imported.erased)
        if imported.archived:
            figures["archived"] = sorted(imported.archived)
        if imported.seals:
            figures["seals"] = imported.seals
        out.document(figures)
    else:
        out.line(so_far(imported), out.style.SUCCESS)
    if imported.erased:
        erased = counted(len(imported.erased), "log was erased", "logs were erased")
        out.note(f"{erased} in this database: their events were left out.")
    if imported.differing_tombstones:
        differing = counted(imported.differing_tombstones, "log was", "logs were")
        out.note(f"{differing} erased here at another version: the tombstones here stay.")
    if imported.archived:
        archived = counted(len(imported.archived), "log is", "logs are")
        out.note(
            f"{archived} archived in this database: their events were left out, and not compared."
        )
    if imported.seals:
        seals = counted(imported.seals, "seal was", "seals were")
        out.note(f"{seals} left out: positions are others here. Make a new seal.")
    if imported.stored:
        tell_of_reactors(out, using)
    if imported.taken:
        raise findings(of_taken(imported.taken, using))


def of_taken(taken: Sequence[Taken], using: str) -> str:
    """Return a text about unique values that two logs hold."""
    shown = "; ".join(
        f"{each.scope} of {each.log_id} belongs to {each.owner}" for each in taken[:5]
    )
    more = f"; and {len(taken) - 5:,} more" if len(taken) > 5 else ""
    return (
        f"{counted(len(taken), 'unique value belongs', 'unique values belong')} to another log: "
        f"{shown}{more}. Append another value to one of the two, then run "
        f"{command('claim', using=using)}."
    )


def tell_of_reactors(out: Output, using: str) -> None:
    """Name the reactors that would react to imported events as if they happened now."""
    names: list[str] = []
    with suppress(FeedUnavailable):  # without a feed no reactor can run
        names = [each.name for each in declared(Reactor) if is_behind(each, using)]
    if names:
        pass_over = command(f"project {' '.join(names)} --from-now", using=using)
        out.note(
            f"Reactors that would react to imported events: {', '.join(names)}. "
            f"To pass over all events up to now, before you start their workers, run: {pass_over}"
        )


def so_far(imported: Imported) -> str:
    """Return the result so far as a sentence."""
    present = counted(imported.present, "was", "were")
    text = f"{counted(imported.stored, 'event')} imported, {present} already stored."
    if imported.tombstones:
        text += f" {counted(imported.tombstones, 'tombstone')} imported."
    return text


def can_be_read_again(name: str) -> bool:
    """Return whether it is a file, and no stream or pipe."""
    return name != STDIN and Path(name).is_file()


def may_have_tombstones(name: str) -> bool:
    """Return whether an export has tombstones; without its last line it may have some."""
    try:
        return ends_of(Path(name)).erased > 0
    except InvalidExport:
        return True


def lines_of_file(name: str) -> Iterator[bytes]:
    """Yield the lines of a file."""
    with Path(name).open("rb") as stream:
        yield from stream_lines(stream)


def open_file(name: str) -> Any:
    """Open the file as bytes: invalid UTF-8 is then an error of its line."""
    return nullcontext(sys.stdin.buffer) if name == STDIN else Path(name).open("rb")


def progress_of(out: Output, name: str) -> Any:
    """Show progress in bytes, of the file's size if it is known."""
    total = Path(name).stat().st_size if name != STDIN and Path(name).is_file() else None
    return out.progress("Importing", total=total, unit="B")


def lines_of(stream: BinaryIO, progress: Progress) -> Iterator[bytes]:
    """Yield lines, and tell of the progress."""
    for line in stream_lines(stream):
        yield line
        progress.advance(len(line))


def stream_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines; one longer than MAX_LINE is yielded in pieces, which the import refuses."""
    while line := stream.readline(MAX_LINE):
        yield line
