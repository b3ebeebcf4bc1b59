"""``eventlogs.testing``, for the tests of projects: a store in memory."""

from __future__ import annotations

import pytest
from django.db import transaction

from eventlogs import ConcurrentAppend, LogManager, LogState
from eventlogs.testing import MemoryStore
from tests.accounts import Account, Deposited, Opened, withdraw


def test_a_store_in_memory_needs_no_database():
    # Without the mark ``django_db``, any query would be an error.
    accounts = LogManager(Account, store=MemoryStore())

    state = accounts.create(Opened("ada"), Deposited(5), idempotency_key="k")
    accounts.execute(state.log_id, withdraw, 3)

    assert accounts.reduce(state.log_id).aggregate == Account("ada", 2)
    assert accounts.get_or_create(Opened("ada"), Deposited(5), idempotency_key="k") == (
        state,
        False,
    )
    assert len(accounts.load(state.log_id)) == 3
    assert [record.index for record in accounts.stream(state.log_id)] == [0, 1, 2]
    assert accounts.version(state.log_id) == 3


def test_stores_in_memory_are_independent_of_each_other():
    one, other = (LogManager(Account, store=MemoryStore()) for _ in range(2))

    state = one.create(Opened("ada"), idempotency_key="k")

    assert not other.exists(state.log_id)
    assert other.create(Opened("ada"), idempotency_key="k").log_id != state.log_id


@pytest.mark.django_db
def test_a_store_in_memory_takes_no_part_in_transactions():
    accounts = LogManager(Account, store=MemoryStore())

    with transaction.atomic():
        state = accounts.create(Opened("ada"))
        transaction.set_rollback(True)

    assert accounts.exists(state.log_id)


def test_threads_race_for_a_log_in_memory_as_they_do_for_another(race):
    accounts = LogManager(Account, store=MemoryStore())
    state = accounts.create(Opened("ada"))

    answers = race(*[lambda: accounts.append(state, Deposited(1), Deposited(2))] * 8)

    assert sum(isinstance(answer, LogState) for answer in answers) == 1
    assert sum(isinstance(answer, ConcurrentAppend) for answer in answers) == 7
    assert [record.index for record in accounts.stream(state.log_id)] == [0, 1, 2]


def test_a_loaded_page_is_not_changed_by_later_appends():
    accounts = LogManager(Account, store=MemoryStore())
    state = accounts.create(Opened("ada"), Deposited(1))
    page = accounts.load(state.log_id)

    accounts.append(state, Deposited(2))

    assert len(page) == 2
