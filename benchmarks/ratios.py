"""
The statistics of a contest: ratios within a round, their median and quartiles, rounds to drop.

A round holds one window of each contestant and one of the limit. On a machine that is slow for a
while, both are slow: so a ratio is taken within a round, never from two medians. A round in which
the limit itself was slow says more about the machine than about a contestant: it is dropped.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

SLOW = 0.6  # of the limit's median: rounds below are dropped


class Spread(NamedTuple):
    """A median, and the quartiles around it."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        digits = 2 if self.median < 10 else 1
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles, interpolated between values as numpy does."""
    if not values:
        raise ValueError("There is no value to take the median of.")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def kept_rounds(limit: Sequence[float]) -> list[int]:
    """Return the rounds whose limit reached SLOW of its median."""
    if not limit:
        return []
    least = SLOW * statistics.median(limit)
    return [number for number, rate in enumerate(limit) if rate >= least]


def ratios(ours: Sequence[float], theirs: Sequence[float], rounds: Sequence[int]) -> list[float]:
    """Return ours to theirs in each of ``rounds``; theirs is never 0 in a round that is kept."""
    return [ours[number] / theirs[number] for number in rounds]


class Window(NamedTuple):
    """The result of a contestant in one window."""

    rate: float  # done, a second
    failed: int = 0
    client_cpu: float = 0.0  # seconds, for one that is done
    server_cpu: float = 0.0


@dataclass
class Contest:
    """The windows of all rounds of a contest."""

    windows: dict[str, list[Window]]
    limit: str
    failures: dict[str, str] = field(default_factory=dict)  # contestants that could not continue

    def rates(self, name: str) -> list[float]:
        """Return a contestant's rate in each round."""
        return [window.rate for window in self.windows[name]]

    @property
    def rounds(self) -> list[int]:
        """The rounds that count."""
        return kept_rounds(self.rates(self.limit))

    @property
    def dropped(self) -> int:
        """The number of rounds that do not count, because the limit was slow."""
        return len(self.windows[self.limit]) - len(self.rounds)

    def ratios(self, name: str, beside: str | None = None) -> Spread:
        """Return a contestant's ratio to another, or to the limit."""
        return spread(ratios(self.rates(name), self.rates(beside or self.limit), self.rounds))

    def rate(self, name: str) -> float:
        """Return a contestant's median rate."""
        rates = self.rates(name)
        return spread([rates[number] for number in self.rounds]).median

    def cpu(self, name: str) -> tuple[float, float]:
        """Return the median seconds of processor time for one, of the client and the server."""
        windows = [self.windows[name][number] for number in self.rounds]
        return (
            spread([window.client_cpu for window in windows]).median,
            spread([window.server_cpu for window in windows]).median,
        )

    def failed(self, name: str) -> int:
        """Return how many calls of a contestant failed."""
        return sum(window.failed for window in self.windows[name])
