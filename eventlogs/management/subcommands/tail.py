"""``eventlogs tail``: the newest events of all logs, and those to come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.core.management.base import CommandParser

from eventlogs.events.codec import raw_records
from eventlogs.events.metadata import actor_of
from eventlogs.events.registry import EventRecord
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed import scans
from eventlogs.feed.reader import Feed, FeedPage
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import GAP, Output, clean, columns, cut, pad
from eventlogs.management.records import as_json, compact
from eventlogs.operations.jsonl import MAX_POSITION
from eventlogs.utils.times import time_text

HELP = "Show the newest events of all logs; with --follow, those to come as well."

NEWEST = 10  # events
ROOM = 24  # columns for data beside the rest; where there are fewer, it has a line of its own


def add_arguments(parser: CommandParser) -> None:
    """Add how many, and which."""
    parser.add_argument(
        "--lines",
        "-n",
        type=arguments.at_least(0),
        default=NEWEST,
        metavar="N",
        help=f"Begin with the newest N events ({NEWEST} by default).",
    )
    parser.add_argument(
        "--follow", "-f", action="store_true", help="Wait for further events, until Ctrl-C."
    )
    parser.add_argument(
        "--after",
        type=arguments.at_least(0),
        metavar="POSITION",
        help="Begin behind this position, instead of with the newest.",
    )
    parser.add_argument(
        "--type",
        action="append",
        default=[],
        dest="types",
        metavar="TYPE",
        help="Only events of this type, under all its names. May be repeated.",
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


def run(
    out: Output,
    *,
    using: str,
    lines: int,
    follow: bool,
    after: int | None,
    types: list[str],
    log_type: list[str],
    log: list[LogId],
    **options: Any,
) -> None:
    """Write a line for each event, the oldest first."""
    feed = Feed(using)
    wanted = frozenset(log)
    log_types = log_type or sorted({each.log_type for each in log}) or None
    try:
        settled = feed.settled()
    except FeedUnavailable as error:
        if error.reason != "database":
            raise
        if follow or after is not None:
            raise mistake(
                f"The database {using!r} has no feed, so events cannot be followed there. "
                f"`tail` without --follow and --after works, and so do `show` and `export`."
            ) from error
        settled = MAX_POSITION  # the newest that are committed; later ones may come below them
    writer = Writer(out)
    if after is None:
        writer.write(
            newest(using, until=settled, limit=lines, types=types, log_types=log_type, logs=log)
        )
        after = settled
    elif not follow:
        for page in pages(feed, after, types or None, log_types):
            writer.write([record for record in page if not wanted or record.log_id in wanted])
    if not follow:
        return
    for record in feed.follow(after=after, types=types or None, log_types=log_types, decode=False):
        if not wanted or record.log_id in wanted:
            writer.write([record])


def newest(
    using: str,
    *,
    until: int,
    limit: int,
    types: Sequence[str],
    log_types: Sequence[str],
    logs: Sequence[LogId],
) -> list[EventRecord]:
    """Return the newest settled events, the oldest of them first."""
    events = scans.events_of(using).filter(position__lte=until)
    if types:
        events = events.of_type(*types)
    if log_types:
        events = events.filter(log__log_type__in=log_types)
    if logs:
        events = events.filter(log_id__in=[log.uuid for log in logs])
    found = events.order_by("-position").values_list("log__log_type", *scans.FIELDS)[:limit]
    return [
        record
        for log_type, log, *row in reversed(found)
        for record in raw_records(LogId.stored(log_type, log), [tuple(row)])
    ]


def pages(
    feed: Feed, after: int, types: Sequence[str] | None, log_types: Sequence[str] | None
) -> Iterator[FeedPage]:
    """Yield the pages of the feed behind a position, up to its end."""
    more = True
    while more:
        page = feed.read(after=after, types=types, log_types=log_types, decode=False)
        yield page
        after, more = page.next_after, page.more


class Writer:
    """Writes events as they come, in columns that only ever get wider."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._widths = [0, 0]  # of the type and of the log

    def write(self, records: Sequence[EventRecord]) -> None:
        """Write some events."""
        for record in records:
            self._widths[0] = max(self._widths[0], columns(clean(record.type)))
            self._widths[1] = max(self._widths[1], columns(place_of(record)))
        for record in records:
            if self._out.as_json:
                self._out.record(as_json(record))
            else:
                self._line(record)
        self._out.flush()

    def _line(self, record: EventRecord) -> None:
        style = self._out.style
        actor, _ = actor_of(record.metadata)
        data = clean(compact(record.event) + (f"  by {actor}" if actor is not None else ""))
        recorded_at = time_text(record.recorded_at)
        head = GAP.join(
            (
                recorded_at,
                str(style.SQL_KEYWORD(pad(clean(record.type), self._widths[0], False))),
                pad(place_of(record), self._widths[1], False),
            )
        )
        taken = len(recorded_at) + sum(self._widths) + 3 * len(GAP)
        width = self._out.width
        if width is None:
            self._out.line(f"{head}{GAP}{data}")
        elif width - taken >= ROOM:
            self._out.line(f"{head}{GAP}{cut(data, width - taken)}")
        else:
            self._out.line(head.rstrip())
            self._out.line(cut(f"  {data}", width))


def place_of(record: EventRecord) -> str:
    """Return the log, and the event's index in it."""
    return f"{record.log_id} {record.index}"
