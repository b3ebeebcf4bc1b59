"""
The reader of the fines file: it turns rows into events.

No data is lost: a column without a field in the row's event must be empty, or the row is refused.
Numbers are read from their text, never as binary floats.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple, TextIO

from example_project.fines import events

CASE: Final = "case:concept:name"
ACTIVITY: Final = "concept:name"
TIME: Final = "time:timestamp"
LIFECYCLE: Final = "lifecycle:transition"

MAX_TEXT: Final = 100  # characters
MONEY: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,4})?")
WHOLE: Final = re.compile(r"([0-9]{1,9})(\.0+)?")  # the file has 157 as 157.0


class BadRow(Exception):
    """A line of the file cannot be read. The message names line and column, never a value."""

    def __init__(self, line: int, column: str, reason: str) -> None:
        self.line = line
        self.column = column
        where = f"line {line}, column {column}" if column else f"line {line}"
        super().__init__(f"{where}: {reason}.")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the file: an event of a case."""

    line: int
    case: str
    event: Any

    @property
    def total_paid(self) -> Decimal | None:
        """The sum of the case's payments as the file has it, None if the row does not have it."""
        total: Decimal | None = getattr(self.event, "total_paid", None)
        return total


def text(value: str) -> str:
    """Read a text that is required."""
    if not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
        raise ValueError(f"must have 1 to {MAX_TEXT} printable characters")
    return value


def maybe(value: str) -> str | None:
    """Read a text that is optional."""
    return text(value) if value else None


def money(value: str) -> Decimal:
    """Read an amount of money."""
    if not MONEY.fullmatch(value):
        raise ValueError("must be an amount such as 36.00, with up to 12 digits before the point")
    return Decimal(value)


def whole(value: str) -> int:
    """Read a whole number."""
    if not (match := WHOLE.fullmatch(value)):
        raise ValueError("must be a whole number of up to 9 digits")
    return int(match[1])


def moment(value: str) -> datetime:
    """Read a time."""
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        at = None
    if at is None or at.utcoffset() is None:
        raise ValueError("must be a time with its offset, such as 2006-07-12 00:00:00+02:00")
    return at


def complete(value: str) -> None:
    """Read the column that has the same value in all rows."""
    if value != "complete":
        raise ValueError("must be: complete")


class Activity(NamedTuple):
    """The event for the rows of one activity; ``fields`` maps columns to its fields and readers."""

    event: type
    fields: Mapping[str, tuple[str, Callable[[str], Any]]] = {}


ACTIVITIES: Final = {
    "Create Fine": Activity(
        events.Created,
        {
            CASE: ("case", text),
            "amount": ("amount", money),
            "article": ("article", whole),
            "dismissal": ("dismissal", text),
            "org:resource": ("officer", text),
            "points": ("points", whole),
            "totalPaymentAmount": ("total_paid", money),
            "vehicleClass": ("vehicle_class", text),
        },
    ),
    "Send Fine": Activity(events.Sent, {"expense": ("expense", money)}),
    "Insert Fine Notification": Activity(
        events.Notified,
        {"notificationType": ("notification_type", maybe), "lastSent": ("last_sent", maybe)},
    ),
    "Add penalty": Activity(events.PenaltyAdded, {"amount": ("amount", money)}),
    "Payment": Activity(
        events.Paid,
        {"paymentAmount": ("amount", money), "totalPaymentAmount": ("total_paid", money)},
    ),
    "Send for Credit Collection": Activity(events.SentForCreditCollection),
    "Insert Date Appeal to Prefecture": Activity(events.AppealToPrefectureDated),
    "Send Appeal to Prefecture": Activity(
        events.AppealToPrefectureSent, {"dismissal": ("dismissal", maybe)}
    ),
    "Receive Result Appeal from Prefecture": Activity(
        events.AppealResultReceived, {"lastSent": ("last_sent", maybe)}
    ),
    "Notify Result Appeal to Offender": Activity(
        events.AppealResultNotified,
        {"notificationType": ("notification_type", maybe), "lastSent": ("last_sent", maybe)},
    ),
    "Appeal to Judge": Activity(events.AppealedToJudge, {"dismissal": ("dismissal", maybe)}),
}
COLUMNS: Final = {CASE, ACTIVITY, TIME, LIFECYCLE}.union(
    *(activity.fields for activity in ACTIVITIES.values())
)


def read(file: TextIO) -> Iterator[Row]:
    """
    Yield the rows of a CSV file, one at a time.

    Open the file with ``newline=""``. Raise BadRow at the first invalid line, also if a case does
    not begin with "Create Fine", or has it twice.
    """
    lines = csv.reader(file, strict=True)
    created: set[str] = set()
    header: list[str] | None = None
    try:
        for cells in filter(None, lines):  # skip empty lines
            if header is None:
                header = _header(cells)
                continue
            row = _row(lines.line_num, header, cells)
            creates = isinstance(row.event, events.Created)
            if creates and row.case in created:
                raise BadRow(row.line, ACTIVITY, f"case {row.case} was created before")
            if not creates and row.case not in created:
                raise BadRow(row.line, ACTIVITY, f"case {row.case} must start with Create Fine")
            created.add(row.case)
            yield row
    except UnicodeDecodeError:
        raise BadRow(lines.line_num + 1, "", "the text from here on is not UTF-8") from None
    except csv.Error as error:
        raise BadRow(lines.line_num, "", f"this is not CSV ({error})") from None
    if header is None:
        raise BadRow(1, "", "the file is empty; its first line must be a header")


def _header(cells: list[str]) -> list[str]:
    for column in sorted(COLUMNS.difference(cells)):
        raise BadRow(1, column, "is missing in the header")
    for place, column in enumerate(cells, 1):
        if column not in COLUMNS:
            raise BadRow(1, f"number {place}", "has an unknown name in the header")
        if cells.count(column) > 1:
            raise BadRow(1, column, "is twice in the header")
    return cells


def _row(line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        raise BadRow(line, "", f"there are {len(cells)} columns, and {len(header)} in the header")
    values = dict(zip(header, cells, strict=True))
    activity = ACTIVITIES.get(values[ACTIVITY])
    if activity is None:
        raise BadRow(line, ACTIVITY, f"must be one of: {', '.join(ACTIVITIES)}")
    fields = {"at": _read(line, values, TIME, moment)}
    _read(line, values, LIFECYCLE, complete)
    case = _read(line, values, CASE, text)
    for column in header:
        if column in activity.fields:
            name, reader = activity.fields[column]
            fields[name] = _read(line, values, column, reader)
        elif values[column] and column not in (CASE, ACTIVITY, TIME, LIFECYCLE):
            raise BadRow(line, column, f"must be empty for {values[ACTIVITY]}")
    return Row(line, case, activity.event(**fields))


def _read(line: int, values: Mapping[str, str], column: str, reader: Callable[[str], Any]) -> Any:
    try:
        return reader(values[column])
    except ValueError as reason:
        raise BadRow(line, column, str(reason)) from None
