"""Events of many logs, read at once: all of them, and no more than fit into memory."""

from __future__ import annotations

import pytest

from eventlogs.stores import bulk_reads
from eventlogs.stores.bulk_reads import Part, events_of_logs, whole_logs
from tests.accounts import Account, Deposited, Noted

pytestmark = pytest.mark.django_db


def made(*lengths):
    states = [
        Account.logs.create(*[Deposited(number) for number in range(length)]) for length in lengths
    ]
    return {state.log_id: state.version for state in states}


def indexes(found):
    return {log_id: [row.index for row in rows] for log_id, rows in found.items()}


@pytest.mark.parametrize("events", [1, 2, 3, 4, 7, 1_000])
def test_whole_logs_are_read_in_pieces_of_any_size(events, monkeypatch):
    monkeypatch.setattr(bulk_reads, "EVENTS", events)
    versions = made(1, 4, 2, 9, 3, 3)

    found = whole_logs("default", versions)

    assert found == events_of_logs("default", [Part(each) for each in versions])
    assert list(indexes(found).items()) == [(k, list(range(v))) for k, v in versions.items()]


def test_events_beyond_the_known_version_are_read(monkeypatch):
    monkeypatch.setattr(bulk_reads, "EVENTS", 3)
    versions = made(4, 1)

    assert indexes(whole_logs("default", dict.fromkeys(versions, 0))) == {
        log_id: list(range(version)) for log_id, version in versions.items()
    }


@pytest.mark.parametrize(("events", "expected"), [(1, 1), (2, 2), (3, 3), (500, 6)])
def test_reading_ends_behind_the_first_piece_that_fills_the_memory(events, expected, monkeypatch):
    monkeypatch.setattr(bulk_reads, "EVENTS", events)
    monkeypatch.setattr(bulk_reads, "MEMORY", 1_000)
    logs = [Account.logs.create(Noted("a" * 2_000)).log_id for _ in range(6)]

    found = whole_logs("default", dict.fromkeys(logs, 1))

    assert list(found) == logs[:expected]
    assert all(len(rows) == 1 for rows in found.values())


def test_a_log_that_does_not_fit_is_left_out_as_a_whole(monkeypatch):
    monkeypatch.setattr(bulk_reads, "EVENTS", 2)
    monkeypatch.setattr(bulk_reads, "MEMORY", 3_000)
    small = Account.logs.create(Noted("a")).log_id
    large = Account.logs.create(*[Noted("a" * 1_000)] * 9).log_id

    assert list(whole_logs("default", {small: 1, large: 9})) == [small]
    assert whole_logs("default", {large: 9, small: 1}) == {}
