"""Shared by all stores: the decision on refusals, and the reading of streams."""

from __future__ import annotations

import pytest
from django.db import connection

from eventlogs import (
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogAlreadyExists,
    LogFull,
    LogId,
    LogNotFound,
    LogState,
)
from eventlogs.events.codec import request_fingerprints
from eventlogs.stores import AppendRequest, BaseStore, Claim, store_for
from eventlogs.stores.base import claim_of, refusal
from eventlogs.stores.portable import PortableStore
from eventlogs.testing import MemoryStore
from tests.accounts import encoded

HERE, THERE = LogId.new("account"), LogId.new("account")
FULL = 2**31 - 1


def request(expected: int | None, key: str | None = None, amount: int = 1) -> AppendRequest:
    return AppendRequest(HERE, encoded(amount), expected, key, "{}")


def claim(log_id: LogId, index: int = 3, amount: int = 1) -> Claim:
    return Claim(log_id, index, 1, next(request_fingerprints(encoded(amount))), 17)


@pytest.mark.parametrize(
    ("expected", "version", "error"),
    [
        (0, 0, None),
        (0, 1, LogAlreadyExists),
        (None, 0, LogNotFound),
        (None, 7, None),
        (3, 0, LogNotFound),
        (3, 3, None),
        (3, 2, ConcurrentAppend),
        (3, 4, ConcurrentAppend),
        (None, FULL - 1, None),
        (None, FULL, LogFull),
        (FULL, FULL, LogFull),
        (3, FULL, ConcurrentAppend),
    ],
)
def test_an_append_without_a_key_is_decided_by_the_version(expected, version, error):
    assert type(refusal(request(expected), None, version, None)) is (error or type(None))
    assert type(refusal(request(expected, "k"), None, version, None)) is (error or type(None))


@pytest.mark.parametrize(
    ("expected", "version", "position", "error"),
    [
        (3, 3, 17, None),
        (3, 3, 18, ConcurrentAppend),
        (3, 3, None, ConcurrentAppend),
        (3, 4, 17, ConcurrentAppend),
        (3, 0, None, LogNotFound),
    ],
)
def test_an_append_that_expects_a_position_is_decided_by_it(expected, version, position, error):
    wanted = request(expected)._replace(expected_position=17)

    assert type(refusal(wanted, None, version, position)) is (error or type(None))


@pytest.mark.parametrize("version", [0, 3, 4, 9, FULL])
@pytest.mark.parametrize(
    ("expected", "taken", "error"),
    [
        (None, claim(HERE), IdempotentReplay),
        (3, claim(HERE), IdempotentReplay),
        (9, claim(HERE), IdempotentReplay),
        (3, claim(HERE, amount=2), IdempotencyKeyReused),
        (3, claim(THERE), IdempotencyKeyReused),
        (0, claim(HERE, index=0), IdempotentReplay),
        (0, claim(THERE, index=0), IdempotentReplay),
        (0, claim(THERE, index=0, amount=2), IdempotencyKeyReused),
        (0, claim(HERE, index=3), IdempotencyKeyReused),
    ],
)
def test_a_taken_key_decides_at_any_version(expected, taken, error, version):
    found = refusal(request(expected, "k"), taken, version, None)

    assert type(found) is error
    assert isinstance(found, IdempotentReplay | IdempotencyKeyReused)
    assert (found.log_id, found.index) == (taken.log_id, taken.first_index)


def test_a_claim_has_the_state_that_its_append_returned():
    taken = Claim(HERE, 3, 2, b"", 17)

    assert taken.state == LogState(HERE, 5, 17)
    assert taken.replay("k").state == taken.state
    assert taken.reuse("k").idempotency_key == "k"


def test_a_claim_is_made_from_a_row():
    taken = claim_of("account", HERE.uuid, 3, 2, memoryview(b"f"), None)  # type: ignore[arg-type]

    assert taken == Claim(HERE, 3, 2, b"f", 0)


def test_a_store_has_to_define_every_abstract_method():
    with pytest.raises(TypeError, match="abstract"):
        BaseStore()  # type: ignore[abstract]


class Counting(MemoryStore):
    """Counts the pages that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def events(self, *args, **kwargs):
        self.limits.append(kwargs["limit"])
        return super().events(*args, **kwargs)


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (4, 1), (5, 2), (9, 2), (10, 3)])
def test_a_stream_reads_no_more_pages_than_it_has_to(count, pages):
    store = Counting()
    if count:
        store.append(AppendRequest(HERE, encoded(*range(count)), 0, None, "{}"))

    rows = list(store.stream(HERE, page=5))

    assert [row.index for row in rows] == list(range(count))
    assert store.limits == [5] * pages


def test_a_stream_reads_a_page_when_it_is_needed():
    store = Counting()
    store.append(AppendRequest(HERE, encoded(*range(20)), 0, None, "{}"))

    stream = store.stream(HERE, page=5)
    assert store.limits == []
    for _ in range(6):
        next(stream)

    assert store.limits == [5, 5]


def test_a_database_has_one_store_of_its_vendors_kind(db):
    store = store_for("default")

    assert store is store_for("default")
    assert isinstance(store, PortableStore) == (connection.vendor != "postgresql")
