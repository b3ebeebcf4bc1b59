"""
How far a long job has got, shown on a terminal and nowhere else.

With tqdm (``pip install eventlogs[cli]``) it is a bar, without it a line every few seconds.
It goes to the standard error, so that what is written to a pipe or a file is the result alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

try:
    from tqdm import tqdm
except ModuleNotFoundError:
    tqdm = None

PAUSE = 5.0  # seconds between two lines, where there is no bar


class Progress(Protocol):
    """What a job tells about itself."""

    def advance(self, count: int = 1) -> None:
        """Say that ``count`` more are done."""

    def resume(self, done: int) -> None:
        """Say that ``done`` were done before: they count, and took no time of this job's."""

    def clear(self) -> None:
        """Make room: a line of the result is about to be written."""


class Silent:
    """Progress that nobody watches."""

    def advance(self, count: int = 1) -> None:
        """Do nothing."""

    def resume(self, done: int) -> None:
        """Do nothing."""

    def clear(self) -> None:
        """Do nothing."""


class Lines:
    """Progress as plain lines."""

    def __init__(self, stream: TextIO, label: str, total: int | None, unit: str) -> None:
        self._stream, self._label, self._total, self._unit = stream, label, total, unit
        self._done = self._first = 0
        self._begun = time.monotonic()
        self._next = self._begun + PAUSE

    def advance(self, count: int = 1) -> None:
        """Count, and write a line where the last one is some seconds old."""
        self._done += count
        if time.monotonic() >= self._next:
            of = f" of {self._total:,}" if self._total is not None else ""
            self._stream.write(f"{self._label}: {self._done:,}{of} {self._unit}{self._left()}\n")
            self._stream.flush()
            self._next = time.monotonic() + PAUSE

    def resume(self, done: int) -> None:
        """Begin at ``done``."""
        self._done = self._first = done

    def _left(self) -> str:
        """Return how long it may still take, at the speed that it had so far."""
        own = self._done - self._first
        if not own or self._total is None or self._done >= self._total:
            return ""
        took = time.monotonic() - self._begun
        left = took * (self._total - self._done) / own
        return f", about {left:,.0f} s left"

    def clear(self) -> None:
        """Do nothing: a line is in nobody's way."""


class Bar:
    """Progress as a bar."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        self._bar.update(count)

    def resume(self, done: int) -> None:
        """Begin at ``done``: tqdm takes its speed from what comes on top."""
        self._bar.initial = self._bar.n = self._bar.last_print_n = done

    def clear(self) -> None:
        """Take the bar away until it moves again."""
        self._bar.clear()


@contextmanager
def shown(stream: TextIO, label: str, total: int | None, unit: str) -> Iterator[Progress]:
    """Show progress on ``stream`` if it is a terminal; ``total`` is None where nobody knows it."""
    if not stream.isatty():
        yield Silent()
    elif tqdm is None:
        yield Lines(stream, label, total, unit)
    else:
        with tqdm(
            desc=label,
            total=total,
            unit=unit if unit == "B" else f" {unit}",
            unit_scale=unit == "B",
            file=stream,
            dynamic_ncols=True,
            leave=False,
            smoothing=0.1,
        ) as bar:
            yield Bar(bar)
