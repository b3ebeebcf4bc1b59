"""``eventlogs export``: logs as JSON lines, or as XES for process mining."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from django.core.management.base import CommandParser

from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.reader import Feed
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.mistakes import TERMINATED, mistake
from eventlogs.management.output import Output
from eventlogs.operations import jsonl, xes

HELP = "Export logs as JSON lines, which `import` reads, or as XES, which process mining reads."

STDOUT = "-"
PART = ".part"  # behind the name of a file that is not whole yet


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
    parser.add_argument(
        "--timestamp",
        type=arguments.field,
        metavar="FIELD",
        help="For xes: the field that holds when an event happened, e.g. data.at or metadata.at; "
        "by default, and where an event has none there, recorded_at.",
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
    timestamp: tuple[str, ...] | None,
    **options: Any,
) -> None:
    """Export, and say what was written where it is not written to the output."""
    path = None if file == STDOUT else Path(file)
    if resume and (path is None or file_format != "jsonl"):
        raise mistake("--resume needs a FILE of JSON lines.")
    if after and file_format != "jsonl":
        raise mistake("--after cuts logs in two, and XES has whole ones. Leave it out.")
    if timestamp is not None and file_format != "xes":
        raise mistake("--timestamp is for --format xes: JSON lines have all fields.")
    if path is not None and path.exists() and not resume:
        raise mistake(f"{file} is there already. Choose another name, or --resume its export.")
    try:
        if file_format == "xes":
            done = write_xes(out, path, using, log_type, log, timestamp)
        else:
            done = write_lines(out, path, using, log_type, log, after, resume)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise mistake(f"{file} cannot be written: {error.strerror or error}.") from error
    fallbacks = done.get("fallbacks")
    if fallbacks and timestamp is not None:
        out.note(
            f"{fallbacks:,} of {done['events']:,} events have no time in {'.'.join(timestamp)}: "
            f"they have recorded_at."
        )
    if path is None:
        return
    if out.as_json:
        out.document({"file": file, **done})
    else:
        done.pop("fallbacks", None)
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
            length, events, complete, after = jsonl.last_position(stream)
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
            stream.write(jsonl.header(after=after))
        if until is None:
            pages = jsonl.export_pages_of_a_moment(using, log_types=log_types, logs=logs)
        else:
            pages = jsonl.export_pages(
                using, after=after, until=until, log_types=log_types, logs=logs
            )
        for page in pages:
            stream.write("".join(page.lines))
            stream.flush()
            events += len(page.lines)
            progress.advance(page.position - after)
            after = page.position
        stream.write(jsonl.footer(events=events, until=until or 0))
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
    out: Output,
    path: Path | None,
    using: str,
    log_types: list[str],
    logs: list[LogId],
    timestamp: tuple[str, ...] | None,
) -> dict[str, int]:
    """
    Write XES.

    A file is there only once it is whole. What goes to the output and is interrupted ends with a
    comment that says so, and without the end of the document.
    """
    events = traces = fallbacks = 0
    with (
        terminated(),
        whole(path) as stream,
        out.progress("Exporting", unit="events") as progress,
    ):
        try:
            for piece in xes.document(using, log_types=log_types, logs=logs, timestamp=timestamp):
                stream.write(piece.text)
                events += piece.events
                traces += piece.traces
                fallbacks += piece.fallbacks
                progress.advance(piece.events)
        except BrokenPipeError:
            raise
        except BaseException:
            if path is None:
                stream.write(xes.INCOMPLETE)
                stream.flush()
                out.note(f"The XES is incomplete: it ends after {events:,} events.")
            raise
    done = {"logs": traces, "events": events}
    return done if timestamp is None else {**done, "fallbacks": fallbacks}


@contextmanager
def terminated() -> Iterator[None]:
    """Let SIGTERM end the process as an exception does, so that it cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def whole(path: Path | None) -> Iterator[TextIO]:
    """
    Open a file that gets its name once it is whole; or the output.

    Until then it is called ``<name>.part``. What goes wrong, or interrupts it, removes it.
    """
    if path is None:
        with opened(None) as stream:
            yield stream
        return
    part = path.with_name(path.name + PART)
    if part.exists():
        raise mistake(
            f"{part} is there already: another export writes it, or was killed. Delete it, if "
            f"none does."
        )
    is_ours = False
    try:
        with opened(part) as stream:
            is_ours = True
            yield stream
        if path.exists():
            raise mistake(f"{path} has come to be meanwhile. Choose another name.")
        part.rename(path)
        sync_directory(path.parent)
    finally:
        if is_ours:
            part.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Have a name on the disk, where the system can do that."""
    with suppress(OSError):
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


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
