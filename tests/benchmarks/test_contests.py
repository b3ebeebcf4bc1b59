"""The turns of contestants."""

from __future__ import annotations

from itertools import cycle

import pytest

from benchmarks import bench
from benchmarks.contests import Absent, BenchmarkFailed, contest, report_contest
from benchmarks.ratios import Window
from benchmarks.tables import Row

pytestmark = pytest.mark.postgresql


class Rates:
    """A contestant with these rates, one window after the other."""

    def __init__(self, *rates: float) -> None:
        self.rates = cycle(rates)

    def window(self, seconds: float) -> Window:
        return Window(next(self.rates))


class FailsAfter(Rates):
    """A contestant that works for one window."""

    def window(self, seconds: float) -> Window:
        if not hasattr(self, "worked"):
            self.worked = True
            return super().window(seconds)
        raise BenchmarkFailed("it is tired")


@pytest.fixture(autouse=True)
def rows(monkeypatch) -> list[Row]:
    """The rows of this test alone."""
    monkeypatch.setattr(bench, "ROWS", [])
    monkeypatch.setattr(bench, "DROPPED", {})
    monkeypatch.setattr(bench, "part", "test")
    monkeypatch.setattr(bench, "beside", "limit")
    return bench.ROWS


def test_each_contestant_has_a_window_in_each_round():
    found = contest({"limit": Rates(100), "ours": Rates(50, 40)}, rounds=4, seconds=0)

    assert found.rates("ours") == [50, 40, 50, 40]
    assert found.ratios("ours").median == 0.45


def test_rounds_with_a_slow_limit_are_dropped_and_counted(rows):
    found = contest({"limit": Rates(100, 100, 10), "ours": Rates(50, 50, 49)}, rounds=3, seconds=0)

    report_contest("ours", found, "ours", "calls/s", 0.5)

    assert bench.DROPPED == {"test": (1, 3)}
    [row] = rows
    assert (row.part, row.ratio, row.target) == ("test", "0.50", "at least 0.5")


def test_a_contestant_that_fails_does_not_affect_the_others(rows):
    found = contest(
        {
            "limit": Rates(100),
            "ours": Rates(50),
            "tired": FailsAfter(1),
            "absent": Absent("it is not installed"),
        },
        rounds=3,
        seconds=0,
    )

    assert report_contest("ours", found, "ours", "calls/s", 0.4)
    assert not report_contest("tired", found, "tired", "calls/s", 0.4)
    assert report_contest("absent", found, "absent", "calls/s")

    assert [row.figure for row in rows] == [
        "50 calls/s",
        "left out: it is tired",
        "left out: it is not installed",
    ]


def test_without_its_limit_there_is_no_contest():
    with pytest.raises(BenchmarkFailed, match="no server"):
        contest({"limit": Absent("no server"), "ours": Rates(50)}, rounds=3, seconds=0)
