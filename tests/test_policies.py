"""Caching policies: which reductions are kept."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from django.utils import timezone

from eventlogs import AlwaysCache, CachingPolicy, LogAgePolicy, LogLengthPolicy, NeverCache
from eventlogs.ids import LogId
from eventlogs.policies import policy_from
from eventlogs.values import Reduction
from tests.accounts import Account


def reduction(*, version=1, age=timedelta()):
    milliseconds = int((timezone.now() - age).timestamp() * 1000)
    uuid = UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62) | 1)
    return Reduction(LogId("account", uuid), version, Account(), timezone.now())


def without_time():
    return Reduction(LogId.from_key("account", 7), 1, Account(), timezone.now())


class Odd(CachingPolicy):
    def should_cache(self, reduction):
        return reduction.version % 2 == 1


def test_always_cache_and_never_cache_decide_as_named():
    assert AlwaysCache().should_cache(reduction())
    assert not NeverCache().should_cache(reduction())


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (LogLengthPolicy.at_least(3), [3, 4, 5]),
        (LogLengthPolicy.until(3), [1, 2, 3]),
        (LogLengthPolicy.between(2, 4), [2, 3, 4]),
        (LogLengthPolicy.between(4, 4), [4]),
    ],
)
def test_the_bounds_of_a_length_are_included(policy, kept):
    assert [n for n in range(1, 6) if policy.should_cache(reduction(version=n))] == kept


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (LogAgePolicy.starting_at(timedelta(days=2)), [2, 3, 4]),
        (LogAgePolicy.until(timedelta(days=2, hours=1)), [0, 1, 2]),
        (LogAgePolicy.between(timedelta(days=1), timedelta(days=3, hours=1)), [1, 2, 3]),
    ],
)
def test_the_age_of_a_log_is_that_of_its_id(policy, kept):
    ages = range(5)

    assert [n for n in ages if policy.should_cache(reduction(age=timedelta(days=n)))] == kept


def test_a_log_whose_id_holds_no_time_is_older_than_any_age():
    day = timedelta(days=1)

    assert LogAgePolicy.starting_at(day).should_cache(without_time())
    assert not LogAgePolicy.until(day).should_cache(without_time())
    assert (~LogAgePolicy.until(day)).should_cache(without_time())
    assert not LogAgePolicy.between(day, 2 * day).should_cache(without_time())
    assert LogAgePolicy().should_cache(without_time())


def test_policies_combine():
    both = Odd() & LogLengthPolicy.at_least(3)
    either = Odd() | LogLengthPolicy.at_least(4)

    def kept(policy):
        return [n for n in range(1, 6) if policy.should_cache(reduction(version=n))]

    assert kept(both) == [3, 5]
    assert kept(either) == [1, 3, 4, 5]
    assert kept(~Odd()) == [2, 4]
    assert kept(~(Odd() | ~LogLengthPolicy.until(2)) & AlwaysCache()) == [2]


def test_the_second_policy_is_not_asked_if_the_first_decides():
    class Never(CachingPolicy):
        def should_cache(self, reduction):
            raise AssertionError("asked")

    assert not (NeverCache() & Never()).should_cache(reduction())
    assert (AlwaysCache() | Never()).should_cache(reduction())


@pytest.mark.parametrize("combine", [lambda: Odd() & 1, lambda: Odd() | None])  # type: ignore[operator]
def test_a_policy_combines_only_with_policies(combine):
    with pytest.raises(TypeError):
        combine()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogLengthPolicy.at_least(-1),
        lambda: LogLengthPolicy.at_least(True),
        lambda: LogLengthPolicy.until(1.5),  # type: ignore[arg-type]
        lambda: LogLengthPolicy.between(4, 3),
        lambda: LogAgePolicy.until(3),  # type: ignore[arg-type]
        lambda: LogAgePolicy.between(timedelta(2), timedelta(1)),
    ],
)
def test_invalid_bounds_are_refused(make):
    with pytest.raises(ValueError, match=r"It must be|No log is"):
        make()


def test_policies_have_a_readable_repr():
    policy = ~(LogLengthPolicy.at_least(3) & AlwaysCache()) | NeverCache()

    assert repr(policy) == (
        "(~(LogLengthPolicy(shortest=3, longest=2147483647) & AlwaysCache()) | NeverCache())"
    )
    assert "timedelta(days=1)" in repr(LogAgePolicy.starting_at(timedelta(days=1)))


ODD = Odd()


@pytest.mark.parametrize("value", [ODD, Odd, f"{__name__}.Odd", f"{__name__}.ODD"])
def test_a_setting_names_a_policy_a_class_or_a_path(value):
    assert isinstance(policy_from(value), Odd)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("nowhere.Policy", ImportError),
        (f"{__name__}.Missing", ImportError),
        (f"{__name__}.reduction", TypeError),
        (int, TypeError),
        (3, TypeError),
        (None, TypeError),
    ],
)
def test_another_value_is_refused_as_a_policy(value, error):
    with pytest.raises(error):
        policy_from(value)
