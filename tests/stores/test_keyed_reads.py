"""Reads that also look up an idempotency key."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from eventlogs import LogId, LogManager
from eventlogs.stores import BaseStore, Claim, StoredEvent
from eventlogs.stores.keyed_reads import KeyedReads
from eventlogs.testing.contracts.stores import append, create, new_key
from tests.accounts import Account, Deposited, Opened

pytestmark = pytest.mark.django_db


def keyed(store: BaseStore, key: str) -> KeyedReads:
    return KeyedReads(store, "account", key)


def test_a_key_is_found_by_the_read_that_shows_its_events(store):
    """A key that is taken between two pages is found by the second one."""
    log_id, key = create(store, 1, 2, 3).log_id, new_key()
    reads = keyed(store, key)

    pages = reads.pages_since(log_id, start=0, page=2)
    first = next(pages)
    assert reads.claim("account", key) is None
    append(store, log_id, 4, expected=3, key=key)
    rest = list(pages)

    assert [len(first), *map(len, rest)] == [2, 2]
    assert reads.claim("account", key) == store.claim("account", key)


def test_a_read_without_a_look_up_forgets_the_key_that_was_found(store):
    log_id, key = create(store, 1, 2, 3).log_id, new_key()

    for read in (
        lambda reads: list(reads.pages(log_id)),
        lambda reads: reads.events(log_id, start=0, limit=10),
        lambda reads: list(reads.stream(log_id)),
    ):
        reads = keyed(store, key)
        reads.since(log_id, start=0, limit=1)
        append(store, log_id, 4, expected=None, key=key)
        read(reads)
        assert reads.claim("account", key) == store.claim("account", key)
        key = new_key()


def test_another_key_is_looked_up_in_the_store(store):
    key, other = new_key(), new_key()
    log_id = create(store, 1, key=other).log_id
    reads = keyed(store, key)

    reads.since(log_id, start=0, limit=10)

    assert reads.claim("account", key) is None
    assert reads.claim("account", other) == store.claim("account", other)
    assert reads.claim("parcel", key) is None


def test_a_log_is_appended_to_and_counted_as_in_the_store(store):
    log_id, reads = create(store, 1).log_id, keyed(store, new_key())

    append(reads, log_id, 2, expected=1)

    assert reads.version(log_id) == 2
    assert reads.using == store.using


@pytest.mark.postgresql
def test_execute_with_a_key_takes_two_statements():
    accounts = LogManager(Account)
    state = accounts.create(Opened("ada"), Deposited(10))
    accounts.reduce(state.log_id)
    accounts._reductions().refresh(state.log_id)

    with CaptureQueriesContext(connection) as first:
        done = accounts.execute(state.log_id, lambda _: Deposited(1), idempotency_key="k")
    with CaptureQueriesContext(connection) as again:
        assert accounts.execute(state.log_id, lambda _: Deposited(1), idempotency_key="k") == done

    assert [each["sql"].split()[0] for each in first] == ["SELECT", "WITH"]
    assert [each["sql"].split()[0] for each in again] == ["SELECT"]


class LooksFirst(KeyedReads):
    """A broken version that keeps the result of the first read."""

    def since(self, log_id: LogId, *, start: int, limit: int) -> Sequence[StoredEvent]:
        before: Claim | None = self._claim
        is_looked_up = self._is_looked_up
        events = super().since(log_id, start=start, limit=limit)
        if is_looked_up:
            self._claim = before
        return events


def test_a_broken_version_that_keeps_an_older_look_up_is_found(store, monkeypatch):
    monkeypatch.setattr("tests.stores.test_keyed_reads.KeyedReads", LooksFirst)

    with pytest.raises(AssertionError):
        test_a_key_is_found_by_the_read_that_shows_its_events(store)
