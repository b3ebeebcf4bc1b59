"""``eventlogs tail``: the newest events of all logs, and with --follow later ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from django.core.management.base import CommandParser

from eventlogs.archives.reading import archived_log
from eventlogs.conf import MAX_POSITION
from eventlogs.events.codec import EventReader
from eventlogs.events.metadata import actor_of
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed import scans
from eventlogs.feed.reader import Feed, FeedPage
from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.json_values import compact, event_as_json
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import EventLines, Output
from eventlogs.utils.times import time_text
from eventlogs.values import EventRecord

HELP = "Show the newest events of all logs; with --follow, also later ones as they come."

NEWEST = 10  # events


def add_arguments(parser: CommandParser) -> None:
    """Add which events to show."""
    text = f"Start with the newest N events ({NEWEST} by default)."
    arguments.add_number(parser, "--lines", "-n", lowest=0, default=NEWEST, text=text)
    parser.add_argument(
        "--follow", "-f", action="store_true", help="Wait for later events, until Ctrl-C."
    )
    arguments.add_after(parser, "Start after this position, or checkpoint, instead.")
    parser.add_argument(
        "--type",
        action="append",
        default=[],
        dest="types",
        metavar="TYPE",
        help="Only events of this type or its aliases. May be repeated.",
    )
    arguments.add_log_types(parser)
    arguments.add_logs(parser)


def run(
    out: Output,
    *,
    using: str,
    lines: int,
    follow: bool,
    after: int | str | None,
    types: list[str],
    log_type: list[str],
    log: list[LogId],
    **options: Any,
) -> None:
    """Write a line for each event, the oldest first."""
    for each in log:
        if archived_log(using, each) is not None:
            out.note(f"{each} is archived, so its events are not in the feed. `show` has them.")
    feed = Feed(using=using)
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
        settled = MAX_POSITION  # the newest that are committed; later ones may have lower positions
    show = partial(write, EventLines(out, painted=1, cut=True), out)
    if after is None:
        show(newest(using, until=settled, limit=lines, types=types, log_types=log_type, logs=log))
        after = settled
    elif not follow:
        for page in pages(feed, after, types or None, log_types):
            show([record for record in page if not wanted or record.log_id in wanted])
    if not follow:
        return
    for record in feed.follow(after=after, types=types or None, log_types=log_types, decode=False):
        if not wanted or record.log_id in wanted:
            show([record])


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
        events = events.filter(log_type__in=log_types)
    if logs:
        events = events.filter(log_id__in=[log.uuid for log in logs])
    found = scans.read(events.order_by("-position")[:limit])
    return list(EventReader().records(reversed(found), decode=False))


def pages(
    feed: Feed, after: int | str, types: Sequence[str] | None, log_types: Sequence[str] | None
) -> Iterator[FeedPage]:
    """Yield the pages of the feed after a position, up to its end."""
    more = True
    while more:
        page = feed.read(after=after, types=types, log_types=log_types, decode=False)
        yield page
        after = page.checkpoint if isinstance(after, str) else page.next_after
        more = page.more


def write(lines: EventLines, out: Output, records: Sequence[EventRecord]) -> None:
    """Write events; columns get wider with later events, and never narrower."""
    if out.as_json:
        for record in records:
            out.record(event_as_json(record))
    else:
        lines.write(
            (
                (time_text(record.recorded_at), record.type, f"{record.log_id} {record.index}"),
                compact(record.event) + ("" if actor is None else f"  by {actor}"),
                (),
            )
            for record in records
            for actor, _ in [actor_of(record.metadata)]
        )
    out.flush()
