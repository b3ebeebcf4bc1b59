"""Arguments of a command line: parsers for argparse's ``type=``, and options of several."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from eventlogs.aggregates import Aggregate, aggregates
from eventlogs.exceptions import InvalidLogId
from eventlogs.feed.tokens import Token
from eventlogs.ids import LogId
from eventlogs.management.mistakes import mistake
from eventlogs.operations import pasted_ids
from eventlogs.utils.names import dotted

UNITS: Final = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
AGE: Final = re.compile(r"([0-9]{1,9})([smhdw])\Z")


def log_id(text: str) -> LogId:
    """Read a log id, in any case, or an event id, which names its log."""
    try:
        return pasted_ids.log_id(text)
    except InvalidLogId as error:
        raise ArgumentTypeError(str(error)) from None


def moment(text: str) -> datetime:
    """Read a moment in ISO 8601; without an offset it is in the project's time zone."""
    try:
        value = parse_datetime(text)
        if value is None and (day := parse_date(text)) is not None:
            value = datetime(day.year, day.month, day.day)
    except ValueError:
        value = None
    if value is None:
        raise ArgumentTypeError(
            "this is not a moment. Write it as 2026-01-31, 2026-01-31T12:00 or "
            "2026-01-31T12:00:00.000001+01:00."
        )
    return timezone.make_aware(value) if timezone.is_naive(value) else value


def age(text: str) -> timedelta:
    """Read an age such as 90d: a number and one of s, m, h, d, w."""
    found = AGE.match(text.strip())
    try:
        if found and (value := int(found[1]) * UNITS[found[2]]):
            return value
    except OverflowError:
        pass
    raise ArgumentTypeError("this is not an age. Write it as 90d: a number and s, m, h, d or w.")


def field(text: str) -> tuple[str, ...]:
    """Read the path of a field of an event: data.at, metadata.request.started_at."""
    root, *names = text.strip().split(".")
    if root not in ("data", "metadata") or not names or not all(names):
        raise ArgumentTypeError(
            "this is not a field of an event. Write it as data.at or metadata.request.started_at."
        )
    return root, *names


def at_least(lowest: int) -> Callable[[str], int]:
    """Return the parser of an int that is at least ``lowest``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest:
            raise ArgumentTypeError(f"{text!r} is not an int of at least {lowest:,}.")
        return value

    return read


def place(text: str) -> int | str:
    """Read a position of the feed, or the text of a checkpoint."""
    try:
        int(text)
    except ValueError:
        pass
    else:
        return at_least(0)(text)
    try:
        Token.parse(text)
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is neither a position nor a checkpoint of the feed."
        ) from None
    return text


def add_after(parser: ArgumentParser, text: str) -> None:
    """Add the option that chooses where in the feed to start; ``text`` is its help."""
    parser.add_argument("--after", type=place, default=None, metavar="POSITION", help=text)


def add_flags(parser: Any, **texts: str) -> None:
    """Add options without a value to a parser or group, by their names and helps."""
    for name, text in texts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)


def add_number(
    parser: Any,
    *names: str,
    text: str,
    lowest: int = 1,
    default: int | None = None,
    metavar: str = "N",
) -> None:
    """Add an option to a parser or group: an int of at least ``lowest``; ``text`` is its help."""
    kind = at_least(lowest)
    parser.add_argument(*names, type=kind, default=default, metavar=metavar, help=text)


def add_projections(parser: ArgumentParser, text: str) -> None:
    """Add the names of projections."""
    parser.add_argument("names", nargs="*", metavar="NAME", help=text)


def add_log_types(parser: ArgumentParser) -> None:
    """Add the option that chooses logs by their types."""
    parser.add_argument(
        "--log-type",
        action="append",
        default=[],
        metavar="TYPE",
        help="Only logs of this type. May be repeated.",
    )


def add_logs(parser: ArgumentParser) -> None:
    """Add the option that chooses single logs."""
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        type=log_id,
        metavar="LOG",
        help="Only this log. May be repeated.",
    )


def aggregate_of(log_type: str, name: str | None) -> type[Aggregate] | None:
    """
    Return the aggregate class of a log type, or None if there is none.

    ``name`` chooses one of several. Raise CommandError for an unknown name, and if there are
    several and ``name`` is None.
    """
    classes = aggregates.of(log_type)
    if name is not None:
        chosen = [each for each in classes if name in (each.__qualname__, dotted(each))]
        if len(chosen) != 1:
            known = ", ".join(dotted(each) for each in classes) or "none"
            raise mistake(f"No aggregate {name!r} folds {log_type} logs. Aggregates: {known}.")
        return chosen[0]
    if len(classes) > 1:
        known = ", ".join(dotted(each) for each in classes)
        raise mistake(f"Several aggregates fold {log_type} logs. Choose by --aggregate: {known}.")
    return classes[0] if classes else None
