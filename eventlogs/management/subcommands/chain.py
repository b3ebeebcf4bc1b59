"""``eventlogs chain``: chain the logs that are not chained yet."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from eventlogs.management import arguments
from eventlogs.management.mistakes import findings
from eventlogs.management.output import Output, clean
from eventlogs.operations.chaining import Chained, chain_logs
from eventlogs.utils.words import counted

HELP = (
    "Give the events of old logs their digests, so that verify --chain can check them. "
    "Exit code 1: logs are damaged, or were changed since an interrupted run; they are named, "
    "and all others are chained."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the logs."""
    arguments.add_log_types(parser)


def run(out: Output, *, using: str, log_type: list[str], **options: Any) -> None:
    """Chain all logs that are not chained; run it again to resume."""
    done = Chained()
    with out.progress("Chaining", unit="events") as progress:
        told = 0
        for _ in chain_logs(using, log_types=log_type, done=done):
            progress.advance(done.events - told)
            told = done.events
    if out.as_json:
        damaged = [
            {"log_id": each.subject, "index": each.index, "message": each.message}
            for each in done.damaged
        ]
        figures = {"database": using, "logs": done.logs, "events": done.events}
        out.document({**figures, "damaged": damaged} if damaged else figures)
    for each in [] if out.as_json else done.damaged:
        out.line(f"{clean(each.subject)} event {each.index}: {clean(each.message)}")
    logs = counted(done.logs, "log was chained", "logs were chained")
    told_all = f"{logs}, with {counted(done.events, 'event')}"
    if done.damaged:
        left = counted(len(done.damaged), "log is damaged and was", "logs are damaged and were")
        raise findings(
            f"{told_all}. {left} left as before. Find out who changed them, then run this again."
        )
    if not out.as_json:
        out.line(f"{told_all}.", out.style.SUCCESS)
