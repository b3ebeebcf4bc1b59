"""
The output of subcommands: text for people, JSON for programs.

Text from the store is escaped before it reaches a terminal: an escape sequence in an idempotency
key must not move the cursor. On a terminal lines fit its width; in a pipe nothing is wrapped or
cut. Colours are Django's (``--no-color``, ``--force-color``, DJANGO_COLORS) and respect NO_COLOR
(https://no-color.org). Times have their zone: the project's in text, UTC in JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import zip_longest
from typing import Any

from django.core.management.base import BaseCommand
from django.core.management.color import no_style

from eventlogs.management import terminal
from eventlogs.management.json_values import plain
from eventlogs.management.terminal import GAP, Progress
from eventlogs.utils.times import time_text

Paint = Callable[[str], str]
Note = tuple[str, Paint | None]


class Output:
    """The output of one subcommand. ``as_json`` is True with ``--json``."""

    def __init__(
        self, command: BaseCommand, *, as_json: bool = False, force_color: bool = False
    ) -> None:
        self.as_json = as_json
        self._stdout, self._stderr = command.stdout, command.stderr
        self._is_terminal = bool(self._stdout.isatty())
        self._encoding: str = getattr(self._stdout, "encoding", None) or "utf-8"
        colours = force_color or (self._is_terminal and not os.environ.get("NO_COLOR"))
        self.style: Any = command.style if colours else no_style()
        self._progress = Progress()
        self._database = ""  # of several, the one that is written about

    def begin_database(self, alias: str) -> None:
        """Say that what follows is about one of several databases."""
        self._database = alias
        if not self.as_json:
            self.heading(f"Database {alias!r}")

    # Text

    def room(self, indent: int = 0) -> int | None:
        """Return the columns of a line of the terminal after ``indent``, or None in a pipe."""
        return shutil.get_terminal_size().columns - indent if self._is_terminal else None

    def line(self, text: str = "", paint: Paint | None = None) -> None:
        """Write a line as it is; ``paint`` colours it, e.g. ``out.style.WARNING``."""
        self._progress.clear()
        # A terminal without UTF-8 gets escapes instead of an error.
        text = text.encode(self._encoding, "backslashreplace").decode(self._encoding)
        self._stdout.write(paint(text) if paint and text else text)

    def heading(self, text: str) -> None:
        """Write a heading, below an empty line."""
        self.line()
        self.line(text, self.style.MIGRATE_HEADING)

    def paragraph(self, text: str, paint: Paint | None = None, *, indent: int = 0) -> None:
        """Write escaped text, in as many lines as the terminal needs."""
        for line in terminal.wrapped(clean(text), width=self.room(indent)):
            self.line(" " * indent + line, paint)

    def table(
        self,
        rows: Sequence[Sequence[Any]],
        *,
        head: Sequence[str] = (),
        right: Sequence[int] = (),
        indent: int = 0,
    ) -> None:
        """
        Write rows in columns; ``right`` are the numbers of the columns to align to the right.

        Text is escaped, and ints get thousands separators.
        """
        if not rows:
            return
        lines = [[clean(text_of(value)) for value in row] for row in rows]
        lines = [list(head), *lines] if head else lines
        paint = self.style.MIGRATE_LABEL if head else None
        for line in terminal.table(lines, width=self.room(indent), right=right):
            self.line(" " * indent + line, paint)
            paint = None

    def note(self, text: str) -> None:
        """Write a remark that is not part of the result, to the standard error."""
        self._progress.clear()
        self._stderr.write(text, lambda painted: painted)
        self._stderr.flush()

    # JSON

    def document(self, value: Any) -> None:
        """Write one JSON document; of several databases, a line for each."""
        if self._database:
            self.record(value)
            return
        self._stdout.write(json.dumps(value, indent=2, default=plain))

    def record(self, value: Any) -> None:
        """Write one line of JSON; of several databases, with the alias of its own."""
        if self._database:
            value = {"database": self._database, **value}
        self._stdout.write(json.dumps(value, default=plain))
        self._stdout.flush()

    def flush(self) -> None:
        """Flush the standard output."""
        self._stdout.flush()

    # Progress

    @contextmanager
    def progress(self, label: str, *, total: int | None = None, unit: str) -> Iterator[Progress]:
        """Show the progress of a long job on a terminal, on the standard error."""
        # Not Django's wrapper: it ends each write with a new line, and a bar stays on one.
        stream: Any = getattr(self._stderr, "_out", self._stderr)
        self._progress = terminal.progress(stream, label, total=total, unit=unit)
        try:
            yield self._progress
        finally:
            self._progress.close()
            self._progress = Progress()


class EventLines:
    """
    Lines of a timeline: facts in columns, then data, then notes below.

    Data that does not fit beside the facts stands below them; with ``cut``, only its beginning.
    Columns get wider with later lines, and never narrower.
    """

    INDENT = 4

    def __init__(self, out: Output, *, painted: int, cut: bool = False) -> None:
        """``painted`` is the number of the fact to colour."""
        self._out, self._painted, self._cut = out, painted, cut
        self._widths: list[int] = []

    def write(self, lines: Iterable[tuple[Sequence[str], str, Sequence[Note]]]) -> None:
        """Write lines, each its facts, its data and its notes, all of which are escaped."""
        cleaned = [([clean(fact) for fact in facts], clean(data), n) for facts, data, n in lines]
        for facts, _, _ in cleaned:
            wanted = map(terminal.columns, facts)
            self._widths = [max(pair) for pair in zip_longest(self._widths, wanted, fillvalue=0)]
        for facts, data, notes in cleaned:
            self._write(facts, data)
            for text, paint in notes:
                self._out.paragraph(text, paint, indent=self.INDENT)

    def _write(self, facts: list[str], data: str) -> None:
        padded = [terminal.pad(*pair) for pair in zip(facts, self._widths, strict=True)]
        padded[self._painted] = self._out.style.SQL_KEYWORD(padded[self._painted])
        head = GAP.join(padded)
        room = self._out.room(sum(self._widths) + len(GAP) * len(padded))
        if room is None or terminal.columns(data) <= room:
            self._out.line(f"{head}{GAP}{data}".rstrip())
            return
        self._out.line(head.rstrip())
        below = terminal.wrapped(data, width=self._out.room(self.INDENT + 1))
        if self._cut and len(below) > 1:
            below = [f"{below[0]}…"]
        for each in below:
            self._out.line(" " * self.INDENT + each)


def clean(text: str) -> str:
    """Return text with everything escaped that a terminal would act on or not show."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def text_of(value: Any) -> str:
    """Return a value of a table as text."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, datetime):
        return time_text(value, timespec="milliseconds")
    return str(value)
