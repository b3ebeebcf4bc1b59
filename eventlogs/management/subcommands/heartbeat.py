"""``eventlogs heartbeat``: let the feeds of replicas read on, until a signal stops the process."""

from __future__ import annotations

import signal
import threading
from argparse import ArgumentTypeError
from types import FrameType
from typing import Any, Final

from django.core.management.base import CommandParser

from eventlogs.feed.reader import Feed
from eventlogs.management import arguments
from eventlogs.management.output import Output

HELP = "Let the feeds of replicas read up to the end of this feed, until SIGTERM or Ctrl-C."

EVERY: Final = 0.05  # seconds
SHORTEST: Final = 0.01  # seconds


def add_arguments(parser: CommandParser) -> None:
    """Add how often."""
    parser.add_argument(
        "--every",
        type=seconds,
        default=EVERY,
        metavar="SECONDS",
        help=f"The time between two looks at the feed, {EVERY} by default. Nothing is written "
        "while no event comes.",
    )
    arguments.add_flags(parser, once="Do it once, then end. For cron, and tests.")


def seconds(text: str) -> float:
    """Read a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not SHORTEST <= value <= threading.TIMEOUT_MAX:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds of at least {SHORTEST}.")
    return value


def run(out: Output, *, using: str, every: float, once: bool, **options: Any) -> None:
    """Store the position of the last settled event, again and again."""
    feed, stop = Feed(using=using), threading.Event()
    position = feed.heartbeat()
    if once:
        if out.as_json:
            out.document({"position": position})
        else:
            out.line(f"Replicas may read up to position {position:,}.", out.style.SUCCESS)
        return

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        if not out.as_json:
            line = f"Replicas may read on from position {position:,}. Stop with Ctrl-C or SIGTERM."
            out.line(line, out.style.MIGRATE_HEADING)
            out.flush()
        while not stop.wait(every):
            feed.heartbeat()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
