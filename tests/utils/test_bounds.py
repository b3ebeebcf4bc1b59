"""The check of a number that a caller passes."""

from __future__ import annotations

import pytest

from eventlogs.utils.bounds import check_int


@pytest.mark.parametrize("value", [1, 2, 10_000])
def test_a_number_within_the_bounds_is_taken(value):
    check_int("limit", value, lowest=1, highest=10_000)


@pytest.mark.parametrize("value", [0, -1, 10_001, True, 1.0, "1", None])
def test_the_message_names_the_argument_its_value_and_the_range(value):
    with pytest.raises(ValueError, match="limit") as caught:
        check_int("limit", value, lowest=1, highest=10_000)

    assert str(caught.value) == f"limit is {value!r}. It must be an int from 1 to 10,000."


def test_there_may_be_no_upper_bound():
    check_int("start", 2**70)

    with pytest.raises(ValueError, match=r"start is -1\. It must be an int of 0 or more\."):
        check_int("start", -1)
