"""``eventlogs export``: logs as JSON lines, or as XES for process mining."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from django.core.management.base import CommandParser

from eventlogs import transfer, xes
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed import Feed
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output

HELP = "Export logs as JSON lines, which `import` reads, or as XES, which process mining reads."

STDOUT = "-"


def add_arguments(parser: CommandParser) -> None:
    """Add the file, the format, and what goes into it."""
    parser.add_argument(
        "file", nargs="?", default=STDOUT, help="The file to write; - (the default): the output."
    )
    parser.add_argument(
        "--format",
        dest="file_format",
        choices=("jsonl", "xes"),
        default="jsonl",
        help="jsonl (the default), or xes: IEEE 1849, a trace for each log.",
    )
    parser.add_argument(
        "--log-type", action="append", default=[], metavar="TYPE", help="Only logs of this type."
    )
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        type=arguments.log_id,
        metavar="LOG",
        help="Only this log. May be repeated.",
    )
    parser.add_argument(
        "--after",
        type=arguments.at_least(0),
        default=0,
        metavar="POSITION",
        help="Only events behind this position, e.g. the `until` of an earlier export.",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Carry on with a file whose export was interrupted.",
    )


def run(
    out: Output,
    *,
    using: str,
    file: str,
    file_format: str,
    log_type: list[str],
    log: list[LogId],
    after: int,
    resume: bool,
    **options: Any,
) -> None:
    """Export, and say what was written where it is not written to the output."""
    path = None if file == STDOUT else Path(file)
    if resume and (path is None or file_format != "jsonl"):
        raise mistake("--resume needs a FILE of JSON lines.")
    if after and file_format != "jsonl":
        raise mistake("--after cuts logs in two, and XES has whole ones. Leave it out.")
    if path is not None and path.exists() and not resume:
        raise mistake(f"{file} is there already. Choose another name, or --resume its export.")
    try:
        if file_format == "xes":
            done = write_xes(out, path, using, log_type, log)
        else:
            done = write_lines(out, path, using, log_type, log, after, resume)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise mistake(f"{file} cannot be written: {error.strerror or error}.") from error
    if path is None:
        return
    if out.as_json:
        out.document({"file": file, **done})
    else:
        figures = ", ".join(f"{count:,} {name}" for name, count in done.items() if name != "until")
        out.line(f"{file}: {figures}.", out.style.SUCCESS)


def write_lines(
    out: Output,
    path: Path | None,
    using: str,
    log_types: list[str],
    logs: list[LogId],
    after: int,
    resume: bool,
) -> dict[str, int]:
    """Write JSON lines, all of them or those that an interrupted export lacks."""
    events = length = 0
    resume = resume and path is not None and path.exists()
    if resume and path is not None and path.stat().st_size:
        with path.open("rb") as stream:
            length, events, complete, after = transfer.last_position(stream)
        if complete:
            raise mistake(f"{path} is complete: there is nothing to carry on with.")
    until = settled(using)
    if until is None and (after or resume):
        raise mistake(
            f"The database {using!r} has no feed, so an export there is of one moment, and whole. "
            f"Leave out --after and --resume."
        )
    with (
        opened(path, length if resume else None) as stream,
        out.progress(
            "Exporting", total=max(until - after, 0) if until else None, unit="positions"
        ) as progress,
    ):
        if not length:
            stream.write(transfer.header(after=after))
        if until is None:
            pages = transfer.export_pages_of_a_moment(using, log_types=log_types, logs=logs)
        else:
            pages = transfer.export_pages(
                using, after=after, until=until, log_types=log_types, logs=logs
            )
        for page in pages:
            stream.write("".join(page.lines))
            stream.flush()
            events += len(page.lines)
            progress.advance(page.position - after)
            after = page.position
        stream.write(transfer.footer(events=events, until=until or 0))
    return {"events": events} if until is None else {"events": events, "until": until}


def settled(using: str) -> int | None:
    """Return how far the feed of a database is settled; None where it has none."""
    try:
        return Feed(using).settled()
    except FeedUnavailable as error:
        if error.reason != "database":
            raise
        return None


def write_xes(
    out: Output, path: Path | None, using: str, log_types: list[str], logs: list[LogId]
) -> dict[str, int]:
    """Write XES."""
    events = traces = 0
    with opened(path) as stream, out.progress("Exporting", unit="events") as progress:
        for trace in xes.document(using, log_types=log_types, logs=logs):
            stream.write(trace.text)
            events += trace.events
            traces += trace.traces
            progress.advance(trace.events)
    return {"logs": traces, "events": events}


@contextmanager
def opened(path: Path | None, length: int | None = None) -> Iterator[TextIO]:
    """
    Open a new file, or one to carry on with behind its first ``length`` bytes; or the output.

    A file is on the disk, and not only in the system's cache, when this is left.
    """
    if path is None:
        with nullcontext(sys.stdout) as stream:
            yield stream
            stream.flush()
        return
    with path.open("x" if length is None else "r+", encoding="utf-8", newline="\n") as stream:
        if length is not None:
            stream.truncate(length)
            stream.seek(0, os.SEEK_END)
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
