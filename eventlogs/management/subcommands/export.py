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

from eventlogs.archives.reading import archived_log, exported_pages
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed import scans
from eventlogs.feed.reader import Feed
from eventlogs.feed.sources import beginning
from eventlogs.feed.tokens import Token, checkpoint_of
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.mistakes import TERMINATED, mistake
from eventlogs.management.output import Output
from eventlogs.models import ArchivedLog
from eventlogs.operations import jsonl, xes
from eventlogs.stores import export_lines
from eventlogs.utils.words import counted

HELP = "Export logs as JSON lines, for `import`, or as XES, for process mining."

STDOUT = "-"
PART = ".part"  # suffix of an incomplete file


def add_arguments(parser: CommandParser) -> None:
    """Add the file, the format, and which events to export."""
    parser.add_argument(
        "file",
        nargs="?",
        default=STDOUT,
        help="The file to write; by default -, the standard output.",
    )
    parser.add_argument(
        "--format",
        dest="file_format",
        choices=("jsonl", "xes"),
        default="jsonl",
        help="jsonl (the default), or xes: IEEE 1849, a trace for each log.",
    )
    arguments.add_log_types(parser)
    arguments.add_logs(parser)
    text = (
        "Only events after this position, or checkpoint, e.g. the `until` or `checkpoint` that "
        "an earlier export has reported."
    )
    arguments.add_after(parser, text)
    arguments.add_flags(parser, resume="Resume an interrupted export to FILE.")
    parser.add_argument(
        "--timestamp",
        type=arguments.field,
        metavar="FIELD",
        help="For xes: the field with the time of an event, e.g. data.at or metadata.at. The "
        "default, also for events without that field, is recorded_at.",
    )


def run(
    out: Output,
    *,
    using: str,
    file: str,
    file_format: str,
    log_type: list[str],
    log: list[LogId],
    after: int | str | None,
    resume: bool,
    timestamp: tuple[str, ...] | None,
    **options: Any,
) -> None:
    """Export; if FILE is not the standard output, report how much was written."""
    path = None if file == STDOUT else Path(file)
    if resume and (path is None or file_format != "jsonl"):
        raise mistake("--resume needs a FILE of JSON lines.")
    if after and file_format != "jsonl":
        raise mistake("--after would cut logs in two, and XES needs whole logs. Leave it out.")
    if timestamp is not None and file_format != "xes":
        raise mistake("--timestamp needs --format xes: JSON lines have all fields.")
    if path is not None and path.exists() and not resume:
        raise mistake(f"{file} already exists. Choose another name, or pass --resume.")
    archived = [row for each in log if (row := archived_log(using, each)) is not None]
    if archived and (len(log) > 1 or file_format != "jsonl" or after or resume):
        raise mistake(
            f"{archived[0].log_id} is archived. Export it alone, as JSON lines, without --after "
            f"and --resume; or bring it back first (eventlogs archive --restore)."
        )
    try:
        if archived:
            done = write_archived(out, path, using, archived[0])
        elif file_format == "xes":
            done = write_xes(out, path, using, log_type, log, timestamp)
        else:
            done = write_lines(out, path, using, log_type, log, after or 0, resume)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise mistake(f"{file} cannot be written: {error.strerror or error}.") from error
    fallbacks = done.get("fallbacks")
    if fallbacks and timestamp is not None:
        out.note(
            f"{fallbacks:,} of {counted(done['events'], 'event')} have no time in "
            f"{'.'.join(timestamp)}: recorded_at is used for them."
        )
    if path is None:
        return
    if out.as_json:
        out.document({"file": file, **done})
    else:
        names = ("logs", "events", "tombstones")
        counts = ((name, done[name]) for name in names if name in done)
        figures = ", ".join(counted(count, name[:-1]) for name, count in counts)
        out.line(f"{file}: {figures}.", out.style.SUCCESS)


def write_lines(
    out: Output,
    path: Path | None,
    using: str,
    log_types: list[str],
    logs: list[LogId],
    after: int | str,
    resume: bool,
) -> dict[str, Any]:
    """
    Write JSON lines, or those that an interrupted export lacks.

    Raise CheckpointDiffers for a checkpoint of another history, and where a failover has lost
    events meanwhile. The file is left without its last line then.
    """
    events = length = erased = 0
    feed = Feed(using=using)
    resume = resume and path is not None and path.exists()
    if resume and path is not None and path.stat().st_size:
        with path.open("rb") as stream:
            length, events, is_complete, after, last = jsonl.last_position(stream)
        if is_complete:
            raise mistake(f"{path} is complete: there is nothing to resume.")
        if last is not None:
            after = checkpoint_of(last)  # the database may have failed over since then
    end = end_of(feed)
    if end is None and (after or resume):
        raise mistake(
            f"The database {using!r} has no feed: it can only be exported as a whole. "
            f"Leave out --after and --resume."
        )
    after = position_of(feed, after)
    until = None if end is None else position_of(feed, end)
    start = max(after, beginning(using))
    with (
        opened(path, length if resume else None) as stream,
        scans.a_moment(using) if until is None else nullcontext(),
        out.progress(
            "Exporting",
            total=max(until - start, 0) if until else None,
            unit="positions",
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
            progress.advance(page.position - start)
            after = start = page.position
        for lines in jsonl.tombstone_pages(using, log_types=log_types, logs=logs):
            stream.write("".join(lines))
            erased += len(lines)
        if end is not None:
            position_of(feed, end)  # the history is still the one that the export began with
        stream.write(jsonl.footer(events=events, until=until or 0, erased=erased))
    done: dict[str, Any] = {"events": events}
    if erased:
        done["tombstones"] = erased
    return done if end is None else {**done, "until": until, "checkpoint": end}


def write_archived(out: Output, path: Path | None, using: str, row: ArchivedLog) -> dict[str, int]:
    """Write the JSON lines of a log from its archive."""
    events = 0
    pages = exported_pages(row, using=using)
    page = next(pages, [])  # before the file is made: the archive may be missing
    with (
        opened(path, None) as stream,
        out.progress("Exporting", total=row.version, unit="events") as progress,
    ):
        stream.write(jsonl.header(after=0))
        while page:
            stream.write("".join(map(export_lines.event_line, page)))
            events += len(page)
            progress.advance(len(page))
            page = next(pages, [])
        stream.write(jsonl.footer(events=events, until=row.last_position))
    return {"events": events, "until": row.last_position}


def end_of(feed: Feed) -> str | None:
    """Return the checkpoint of the end of a database's feed, or None if it has no feed."""
    try:
        return feed.checkpoint()
    except FeedUnavailable as error:
        if error.reason != "database":
            raise
        return None


def position_of(feed: Feed, after: int | str) -> int:
    """Return a position as it is, and that of a checkpoint if it is of this history."""
    if isinstance(after, int):
        return after
    feed.read(after=after, limit=1, decode=False)
    return Token.parse(after).position


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

    A file appears only when it is complete. An interrupted export to the standard output ends
    with a comment that says so, and without the end of the document.
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
                out.note(f"The XES is incomplete: it ends after {counted(events, 'event')}.")
            raise
    done = {"logs": traces, "events": events}
    return done if timestamp is None else {**done, "fallbacks": fallbacks}


@contextmanager
def terminated() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that the process cleans up."""
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
    Open a file that gets its name when it is complete; or the standard output.

    Until then its name is ``<name>.part``. Errors and interrupts remove it.
    """
    if path is None:
        with opened(None) as stream:
            yield stream
        return
    part = path.with_name(path.name + PART)
    if part.exists():
        raise mistake(
            f"{part} already exists: another export is writing it, or was killed. Delete it if "
            f"no export is running."
        )
    is_ours = False
    try:
        with opened(part) as stream:
            is_ours = True
            yield stream
        if path.exists():
            raise mistake(f"{path} was created meanwhile. Choose another name.")
        part.rename(path)
        sync_directory(path.parent)
    finally:
        if is_ours:
            part.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Sync a directory, so that a new name in it survives a crash, if the system can."""
    with suppress(OSError):
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextmanager
def opened(path: Path | None, length: int | None = None) -> Iterator[TextIO]:
    """
    Open a new file, or one to resume after its first ``length`` bytes; or the standard output.

    The file is synced to the disk at the end.
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
