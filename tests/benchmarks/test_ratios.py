from __future__ import annotations

import statistics

import pytest

from benchmarks.ratios import SLOW, Contest, Spread, Window, kept_rounds, ratios, spread


def contest(**rates: list[float]) -> Contest:
    return Contest({name: [Window(each) for each in found] for name, found in rates.items()}, "top")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], (3, 3, 3)),
        ([1.0, 3.0], (1.5, 2, 2.5)),
        ([5.0, 1.0, 3.0], (2, 3, 4)),
        ([4.0, 1.0, 3.0, 2.0], (1.75, 2.5, 3.25)),
        ([5.0, 4.0, 3.0, 2.0, 1.0], (2, 3, 4)),
        ([1.0, 1.0, 1.0, 100.0], (1, 1, 25.75)),
    ],
)
def test_a_spread_is_the_median_and_the_quartiles(values, expected):
    assert spread(values) == expected


def test_the_spread_of_no_values_is_an_error():
    with pytest.raises(ValueError, match="no value"):
        spread([])


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Spread(0.4, 0.444, 0.5), "0.44 (0.40-0.50)"),
        (Spread(9, 12.34, 20), "12.3 (9.0-20.0)"),
        (Spread(1, 1, 1), "1.00"),
    ],
)
def test_a_spread_is_written_with_its_quartiles(found, text):
    assert str(found) == text


def test_rounds_with_a_slow_limit_are_dropped():
    limit = [100, 59.9, 60, 140, 100]  # whose median is 100

    assert SLOW == 0.6
    assert kept_rounds(limit) == [0, 2, 3, 4]


def test_rounds_with_a_limit_of_0_are_dropped():
    assert kept_rounds([100, 0, 100]) == [0, 2]
    assert kept_rounds([]) == []


def test_a_ratio_is_taken_within_its_round():
    ours, theirs = [10, 100, 50], [20, 200, 100]

    assert ratios(ours, theirs, [0, 1, 2]) == [0.5, 0.5, 0.5]
    assert statistics.median(ours) / statistics.median(theirs) == 0.5
    # A ratio of two medians would differ as soon as the machine is slow for whole rounds.
    assert ratios([10, 100, 90], [20, 200, 300], [0, 1, 2]) == [0.5, 0.5, 0.3]


def test_a_dropped_round_counts_for_no_contestant():
    found = contest(top=[100, 100, 10], ours=[50, 25, 5_000])

    assert found.rounds == [0, 1]
    assert found.dropped == 1
    assert found.ratios("ours") == (0.3125, 0.375, 0.4375)
    assert found.rate("ours") == 37.5


def test_a_contestant_can_be_compared_with_another_one():
    found = contest(top=[100, 200], ours=[50, 100], fenced=[80, 160])

    assert found.ratios("ours", "fenced").median == 0.625


def test_processor_time_is_the_median_of_the_rounds_that_count():
    windows = [Window(9, 0, client, client * 2) for client in (0.1, 0.2, 0.3, 9.0)]
    limits = [Window(each) for each in (100, 100, 100, 1)]

    assert Contest({"top": limits, "ours": windows}, "top").cpu("ours") == (0.2, 0.4)


def test_failures_of_all_rounds_are_counted():
    windows = [Window(9, failed) for failed in (0, 3, 4)]

    assert Contest({"top": windows, "ours": windows}, "top").failed("ours") == 7
