"""Reductions as of a version or a moment, on every store."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventlogs import (
    ANY,
    LogManager,
    LogNotFound,
    LogState,
    VersionNotReached,
)
from tests.accounts import (
    Deposited,
)


def deposits(accounts: LogManager[Any], count: int, **options: Any) -> LogState:
    """Create a log of so many events: deposits of 0, 1, 2 …"""
    return accounts.create(*(Deposited(amount) for amount in range(count)), **options)


def test_a_log_is_reduced_as_of_any_version(accounts):
    log_id = deposits(accounts, 6).log_id

    for version in range(1, 7):
        reduction = accounts.reduce(log_id, version=version)
        assert reduction.version == version
        assert reduction.aggregate.balance == sum(range(version))
        assert reduction.position == accounts.load(log_id)[version - 1].position


def test_a_version_that_is_not_reached_yet_is_refused(accounts):
    log_id = deposits(accounts, 3).log_id

    with pytest.raises(VersionNotReached) as caught:
        accounts.reduce(log_id, version=4)

    assert caught.value.log_id == log_id
    assert (caught.value.version, caught.value.actual_version) == (4, 3)


@pytest.mark.parametrize("version", [-1, True, 1.0, "1"])
def test_a_version_is_a_count(accounts, version):
    log_id = deposits(accounts, 3).log_id

    with pytest.raises(ValueError, match=r"version is .* must be an int of 0 or more"):
        accounts.reduce(log_id, version=version)


def test_a_log_is_reduced_as_of_a_moment_by_when_events_were_recorded(accounts):
    log_id = accounts.create(Deposited(1)).log_id
    for amount in (2, 4):
        time.sleep(0.005)
        accounts.append(log_id, Deposited(amount), Deposited(0), expected_version=ANY)
    times = [record.recorded_at for record in accounts.stream(log_id)]

    def balance(at: datetime) -> int:
        return accounts.reduce(log_id, at=at).aggregate.balance

    assert times == sorted(times)
    assert [balance(at) for at in times] == [1, 3, 3, 7, 7]
    assert balance(times[1] - timedelta(microseconds=1)) == 1
    assert balance(times[3] - timedelta(microseconds=1)) == 3
    assert balance(datetime.now(UTC) + timedelta(days=1)) == 7
    with pytest.raises(LogNotFound, match="did not exist at"):
        accounts.reduce(log_id, at=times[0] - timedelta(microseconds=1))


def test_a_moment_has_a_time_zone(accounts):
    log_id = deposits(accounts, 1).log_id

    with pytest.raises(ValueError, match="with a time zone"):
        accounts.reduce(log_id, at=datetime(2026, 1, 1))
    with pytest.raises(TypeError, match="not both"):
        accounts.reduce(log_id, version=1, at=datetime.now(UTC))
