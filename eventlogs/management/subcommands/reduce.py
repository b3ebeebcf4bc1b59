"""``eventlogs reduce LOG``: the state of one log, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser

from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.management import arguments
from eventlogs.management.json_values import computed_of, state_of
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output

HELP = "Fold a log's events and write its state as JSON."


def add_arguments(parser: CommandParser) -> None:
    """Add the log, and the version."""
    parser.add_argument("log", type=arguments.log_id, help="A log id.")
    add_state_arguments(parser)


def add_state_arguments(parser: CommandParser) -> None:
    """Add the options that choose a state; ``show`` has them too."""
    when = parser.add_mutually_exclusive_group()
    when.add_argument(
        "--version",
        dest="at_version",
        metavar="N",
        type=arguments.at_least(1),
        help="The state after the first N events.",
    )
    when.add_argument(
        "--at", metavar="MOMENT", type=arguments.moment, help="The state at a moment, in ISO 8601."
    )
    parser.add_argument(
        "--aggregate", metavar="CLASS", help="The aggregate class, if a log type has several."
    )


def run(
    out: Output,
    *,
    using: str,
    log: LogId,
    at_version: int | None,
    at: datetime | None,
    aggregate: str | None,
    **options: Any,
) -> None:
    """Write ``{"log_id", "version", "position", "aggregate", "computed"}``."""
    cls = arguments.aggregate_of(log.log_type, aggregate)
    if cls is None:
        raise mistake(
            f"No aggregate folds {log.log_type} logs here. Is its app in INSTALLED_APPS? "
            f"`eventlogs show` shows the raw events."
        )
    reduction = LogManager(cls, using=using).reduce(log, version=at_version, at=at)
    out.document(
        {
            "log_id": str(log),
            "version": reduction.version,
            "position": reduction.position,
            "aggregate": state_of(reduction.aggregate),
            "computed": computed_of(reduction.aggregate),
        }
    )
