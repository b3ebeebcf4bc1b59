"""
Layout for terminals: tables, paragraphs and progress, by rich (``pip install eventlogs[cli]``).

Without rich, and in a pipe, a table is aligned columns, nothing is wrapped or cut, and progress is
a line every few seconds. Callers pass text without control characters; colours are Django's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO
from unicodedata import combining, east_asian_width

try:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError:
    HAS_RICH = False
else:
    HAS_RICH = True

GAP = "  "  # between two columns
WIDEST = 100  # columns of a paragraph; longer lines are hard to read
NARROWEST = 20  # columns of a paragraph, however narrow the terminal
PAUSE = 5.0  # seconds between two lines of progress, without rich


def columns(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes."""
    return sum(
        0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text
    )


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Return ``text`` padded to ``width`` columns; ``right`` aligns it to the right."""
    space = " " * (width - columns(text))
    return space + text if right else text + space


def table(
    rows: Sequence[Sequence[str]], *, width: int | None, right: Sequence[int] = ()
) -> list[str]:
    """
    Return rows as aligned lines; ``right`` are the numbers of the columns to align to the right.

    Lines are at most ``width`` columns: texts that do not fit continue below. Numbers do not.
    None does not limit them.
    """
    if width is None or not HAS_RICH:
        widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
        return [
            GAP.join(pad(text, widths[n], right=n in right) for n, text in enumerate(row)).rstrip()
            for row in rows
        ]
    grid = Table.grid(padding=(0, len(GAP), 0, 0))
    for n in range(len(rows[0])):
        is_right = n in right
        grid.add_column(justify="right" if is_right else "left", no_wrap=is_right, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    console = Console(width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(grid)
    return [line.rstrip() for line in captured.get().splitlines()]


def wrapped(text: str, *, width: int | None) -> list[str]:
    """Return a paragraph as lines of at most ``width`` columns; None does not break it."""
    if width is None or not HAS_RICH:
        return [text]
    room = max(min(width, WIDEST), NARROWEST)
    return [line.plain.rstrip() for line in Text(text).wrap(Console(), room, overflow="fold")]


class Progress:
    """The progress of a long job. This one shows nothing, for a stream that is no terminal."""

    def advance(self, count: int = 1) -> None:
        """Add ``count`` units that are done."""

    def resume(self, done: int) -> None:
        """Start at ``done`` units, which an earlier run has done: they say nothing of speed."""

    def clear(self) -> None:
        """Take the bar away until the next advance, so that a line can be written."""

    def close(self) -> None:
        """Take the bar away permanently."""


class Lines(Progress):
    """Progress as plain lines."""

    def __init__(self, stream: TextIO, label: str, total: int | None, unit: str) -> None:
        self._stream, self._label, self._total, self._unit = stream, label, total, unit
        self._done = self._first = 0
        self._begun = time.monotonic()
        self._next = self._begun + PAUSE

    def advance(self, count: int = 1) -> None:
        """Add ``count`` units; write a line if the last one is PAUSE seconds old."""
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + PAUSE
        text = f"{self._label}: {self._done:,}"
        if self._total is not None:
            text += f" of {self._total:,}"
        text += f" {self._unit}"
        if self._total is not None and self._first < self._done < self._total:
            speed = (self._done - self._first) / (now - self._begun)
            text += f", about {(self._total - self._done) / speed:,.0f} s left"
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def resume(self, done: int) -> None:
        """Start at ``done`` units."""
        self._done = self._first = done


class Bar(Progress):
    """Progress as a bar of rich."""

    def __init__(self, stream: TextIO, label: str, total: int | None, unit: str) -> None:
        of = "" if total is None else f" of {total:,}"
        count = TextColumn(f"{{task.completed:,.0f}}{of} {unit}")
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True) if unit == "B" else count,
            TimeRemainingColumn(),
            console=Console(file=stream),
            transient=True,
            redirect_stdout=False,  # it would go to the standard error
        )
        self._task = self._bar.add_task(label, total=total)
        self._bar.start()

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        self._bar.start()
        self._bar.advance(self._task, count)

    def resume(self, done: int) -> None:
        """Start at ``done`` units."""
        self._bar.reset(self._task, completed=done)

    def clear(self) -> None:
        """Take the bar away; the next advance shows it again."""
        self._bar.stop()

    close = clear


def progress(stream: TextIO, label: str, *, total: int | None, unit: str) -> Progress:
    """Return the progress to show on ``stream``; ``total`` is None if it is not known."""
    if not stream.isatty():
        return Progress()
    return Bar(stream, label, total, unit) if HAS_RICH else Lines(stream, label, total, unit)
