"""The record of logs with a recent conflict."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from eventlogs import LogId
from eventlogs.stores import turns
from eventlogs.stores.turns import Contended


@pytest.fixture
def clock(monkeypatch):
    """The clock of ``turns``, in seconds; append to the list to advance it."""
    seconds = [100.0]
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: seconds[-1]))
    return seconds


def test_a_conflict_is_remembered_for_a_second(clock):
    contended, log_id = Contended(), LogId.new("account")
    assert log_id not in contended

    contended.add(log_id)

    assert log_id in contended
    assert LogId.new("account") not in contended
    clock.append(100.9)
    assert log_id in contended
    clock.append(101.0)
    assert log_id not in contended
    assert log_id not in contended


def test_no_more_than_a_number_of_logs_is_remembered(clock, monkeypatch):
    monkeypatch.setattr(turns, "MOST", 3)
    contended = Contended()
    log_ids = [LogId.new("account") for _ in range(5)]

    for log_id in log_ids:
        contended.add(log_id)

    assert [each in contended for each in log_ids] == [False, False, False, True, True]
