"""
What subcommands write: text for people, JSON for programs.

Times are written with their time zone: for people in the project's, for programs in UTC.

What comes from the store is cleaned before it reaches a terminal: an escape sequence in an
idempotency key must not move the cursor. On a terminal tables are cut to its width; in a pipe
nothing is cut. Colours are Django's (``--no-color``, ``--force-color``, DJANGO_COLORS), and
NO_COLOR is respected (https://no-color.org).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from unicodedata import east_asian_width
from uuid import UUID

from django.core.management.base import BaseCommand
from django.core.management.color import no_style

from eventlogs.ids import LogId
from eventlogs.management.progress import Progress, Silent, shown
from eventlogs.utils.times import time_text

GAP = "  "  # between two columns
ELLIPSIS = "…"
COMFORTABLE = 40  # columns that a wrapped one wants beside the others
NARROWEST = 16  # columns that the last one has at least, however narrow the terminal

Paint = Callable[[str], str]
Note = tuple[str, "Paint | None"]


class Output:
    """Where a subcommand writes. ``as_json`` is what ``--json`` says."""

    def __init__(
        self, command: BaseCommand, *, as_json: bool = False, force_color: bool = False
    ) -> None:
        self.as_json = as_json
        self._stdout, self._stderr = command.stdout, command.stderr
        self.is_terminal = bool(self._stdout.isatty())
        self._encoding: str = getattr(self._stdout, "encoding", None) or "utf-8"
        colours = force_color or (self.is_terminal and not os.environ.get("NO_COLOR"))
        self.style: Any = command.style if colours else no_style()
        self._progress: Progress = Silent()

    @property
    def width(self) -> int | None:
        """The columns of the terminal, or None where nothing has to be cut."""
        return shutil.get_terminal_size().columns if self.is_terminal else None

    # Text

    def line(self, text: str = "", paint: Callable[[str], str] | None = None) -> None:
        """Write a line; ``paint`` colours it, e.g. ``out.style.WARNING``."""
        self._progress.clear()
        # A terminal that has no UTF-8 gets escapes, not an error.
        text = text.encode(self._encoding, "backslashreplace").decode(self._encoding)
        self._stdout.write(paint(text) if paint else text)

    def heading(self, text: str) -> None:
        """Write a heading, below an empty line."""
        self.line()
        self.line(text, self.style.MIGRATE_HEADING)

    def note(self, text: str) -> None:
        """Write a remark that is not part of the result, to the standard error."""
        self._progress.clear()
        self._stderr.write(text, lambda painted: painted)
        self._stderr.flush()

    def table(
        self,
        rows: Sequence[Sequence[Any]],
        *,
        head: Sequence[str] = (),
        right: Sequence[int] = (),
        paint: Callable[[int, str], str] | None = None,
        below: Callable[[int], Iterable[Note]] | None = None,
        wrap: bool = False,
        indent: str = "",
    ) -> None:
        """
        Write rows in columns; numbers get thousands separators.

        ``right`` are the columns to align to the right. ``paint`` gets a column's number and
        its padded text. ``below`` gets a row's number and returns lines to write below it, each
        with its colour. What does not fit is cut from the last column, or with ``wrap`` put on
        further lines; where the terminal is too narrow for that, below the row.
        """
        cells = [[clean(_text(value)) for value in row] for row in rows]
        lines = [list(head), *cells] if head else cells
        if not lines:
            return
        widths = [max(columns(line[number]) for line in lines) for number in range(len(lines[0]))]
        hanging = len(indent) + sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
        room = sys.maxsize if self.width is None else self.width - hanging
        stacked = wrap and room < min(widths[-1], COMFORTABLE)
        if stacked and self.width is not None:
            hanging = len(indent) + widths[0] + len(GAP)
            room = self.width - hanging
        widths[-1] = min(widths[-1], max(room, NARROWEST))
        if head:
            padded = [pad(text, widths[n], n in right) for n, text in enumerate(head)]
            shown = padded[:-1] if stacked else padded
            self.line(indent + self.style.MIGRATE_LABEL(GAP.join(shown).rstrip()))
        for place, line in enumerate(cells):
            pieces = wrapped(line[-1], widths[-1]) if wrap else [cut(line[-1], widths[-1])]
            beside = [] if stacked else [pieces.pop(0)]
            padded = [
                pad(text, widths[n], n in right) for n, text in enumerate([*line[:-1], *beside])
            ]
            if paint is not None:
                padded = [paint(number, text) for number, text in enumerate(padded)]
            self.line((indent + GAP.join(padded)).rstrip())
            for text in pieces:
                self.line(" " * hanging + (paint(len(line) - 1, text) if paint else text))
            for text, colour in below(place) if below is not None else ():
                for piece in wrapped(clean(text), max(room, NARROWEST)):
                    self.line(" " * hanging + (colour(piece) if colour else piece))

    # JSON

    def document(self, value: Any) -> None:
        """Write one JSON document."""
        self._stdout.write(json.dumps(value, indent=2, default=plain))

    def record(self, value: Any) -> None:
        """Write one line of JSON."""
        self._stdout.write(json.dumps(value, default=plain))
        self._stdout.flush()

    def flush(self) -> None:
        """Let a reader have what was written so far."""
        self._stdout.flush()

    # Progress

    @contextmanager
    def progress(self, label: str, *, total: int | None = None, unit: str) -> Iterator[Progress]:
        """Show how far a long job has got, on a terminal; see ``progress.shown``."""
        # Not Django's wrapper: it ends each write with a new line, and a bar stays on one.
        stream: Any = getattr(self._stderr, "_out", self._stderr)
        with shown(stream, label, total, unit) as progress:
            self._progress = progress
            try:
                yield progress
            finally:
                self._progress = Silent()


def plain(value: Any) -> Any:
    """
    Return what JSON can hold in the place of ``value``; for ``json.dumps(default=…)``.

    A timedelta is its seconds, as a number. Raise TypeError for a type that is not known here: a
    program could not read its ``repr()``.
    """
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, LogId | UUID | Decimal):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    raise TypeError(f"JSON of a command cannot hold a {type(value).__qualname__}.")


def iso(value: datetime) -> str:
    """Return a moment in ISO 8601, UTC, with all of its microseconds."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def clean(text: str) -> str:
    """Return text with everything escaped that a terminal would act on or not show."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def columns(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes."""
    return len(text) + sum(1 for each in text if east_asian_width(each) in "WF")


def cut(text: str, width: int) -> str:
    """Return ``text``, cut to ``width`` columns."""
    if columns(text) <= width:
        return text
    while text and columns(text) >= width:
        text = text[:-1]
    return text + ELLIPSIS


def wrapped(text: str, width: int) -> list[str]:
    """Return ``text`` in pieces of at most ``width`` columns; at least one."""
    pieces, piece, taken = [], "", 0
    for each in text:
        wide = columns(each)
        if taken + wide > width:
            pieces.append(piece)
            piece, taken = "", 0
        piece, taken = piece + each, taken + wide
    return [*pieces, piece]


def pad(text: str, width: int, right: bool) -> str:
    """Return ``text``, padded to ``width`` columns."""
    space = " " * (width - columns(text))
    return space + text if right else text + space


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, datetime):
        return time_text(value, timespec="milliseconds")
    return str(value)
