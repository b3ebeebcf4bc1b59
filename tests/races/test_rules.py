"""
Races for unique values, and for the states of other logs.

What the database holds is checked in two ways: the events, in the order of positions, may never
give one value to two logs; and the rows have to be what the events say.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from eventlogs import (
    ConcurrentAppend,
    LogId,
    LogState,
    NameTaken,
    TransactionMustRetry,
)
from eventlogs.events.unique_values import UniqueReader
from eventlogs.feed import scans
from eventlogs.models import UniqueValue
from eventlogs.operations.verification import Scope, UniqueVerifier
from tests.accounts import Account, Deposited, Opened
from tests.members import Joined, Member
from tests.races import COMMITS, rule_jobs
from tests.races.rule_jobs import Answer, managed

pytestmark = COMMITS

BROKEN = "tests.races.broken."

on_every_store = pytest.mark.parametrize(
    "store",
    [
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("portable"),
        pytest.param("mixed", marks=pytest.mark.postgresql),
    ],
)


def answers(found: list[Answer]) -> Counter[type]:
    return Counter(type(each.answer) for each in found)


def held_twice() -> list[str]:
    """Return where the events give a value to a log while another one has it."""
    events = list(scans.read(scans.events_of("default").order_by("position")))
    times = {(each.log_id, each.index): each.recorded_at for each in events}
    reader = UniqueReader(strict=True)
    has: dict[tuple[LogId, str], Any] = {}
    owners: dict[tuple[str, Any], LogId] = {}
    wrong = []
    appends: dict[LogId, list[Any]] = defaultdict(list)
    for event in events:
        log_id = event.log_id
        appends[log_id].append(event)
        # Of one append, the last value counts. Events of other logs may lie between its own.
        if times.get((log_id, event.index + 1)) == event.recorded_at:
            continue
        for scope, digest in reader.read(appends.pop(log_id)).items():
            before = has.pop((log_id, scope), None)
            owners.pop((scope, before), None)
            if digest is None:
                continue
            owner = owners.setdefault((scope, digest), log_id)
            if owner != log_id:
                wrong.append(f"{log_id} and {owner} at {event.position}")
            has[log_id, scope] = digest
    return wrong


def wrong_rows() -> list[str]:
    """Return where the rows are not what the events say."""
    return [each.message for each in UniqueVerifier().verify(Scope("default"))]


@pytest.fixture
def members(transactional_db: None) -> Callable[[int], list[LogId]]:
    """Create members without an address, and return their logs in the order of their ids."""

    def create(count: int) -> list[LogId]:
        manager = managed(Member, "portable")
        return sorted(manager.create(Joined()).log_id for _ in range(count))

    return create


@pytest.fixture
def accounts(transactional_db: None) -> Callable[[int], list[LogId]]:
    """Create accounts with a balance of 1, and return their logs in the order of their ids."""

    def create(count: int) -> list[LogId]:
        manager = managed(Account, "portable")
        return sorted(manager.create(Opened("x"), Deposited(1)).log_id for _ in range(count))

    return create


def pairs_of(log_ids: list[LogId]) -> list[tuple[LogId, LogId]]:
    return list(zip(log_ids[::2], log_ids[1::2], strict=True))


# Unique values


@on_every_store
@pytest.mark.parametrize("in_atomic", [False, True], ids=["alone", "in-atomic"])
def test_of_many_who_claim_a_value_one_gets_it(crew, writers, members, store, in_atomic):
    found = crew.race(writers, rule_jobs.claim_one_value, store, members(writers), 12, in_atomic)

    retried = [each for each in found if each.what == "retry"]
    for number in range(12):
        of_round = [each for each in found if each.what == f"{number}@example.com"]
        assert answers(of_round) == {LogState: 1, NameTaken: writers - 1}
        [winner] = [each.log_id for each in of_round if isinstance(each.answer, LogState)]
        losers = [each.answer for each in of_round if isinstance(each.answer, NameTaken)]
        assert {(each.scope, each.log_id) for each in losers} == {("member.email", winner)}
    assert not retried or store == "mixed" or connection.vendor == "mysql"
    assert (held_twice(), wrong_rows()) == ([], [])
    # What the losers had claimed beside it is free.
    owners = {f"{each.log_id}" for each in found if isinstance(each.answer, LogState)}
    cards = UniqueValue.objects.filter(scope="member.card")
    assert cards.count() <= len(owners)


@on_every_store
@pytest.mark.parametrize("job", ["change_values", "change_values_in_transactions"])
def test_values_go_from_log_to_log_and_are_never_held_twice(
    crew, writers, members, store, job, quick_deadlocks
):
    values = [f"{number}@example.com" for number in range(6)]

    race = getattr(rule_jobs, job)
    found = crew.race(writers, race, store, members(4), values, 12, **quick_deadlocks)

    assert (held_twice(), wrong_rows()) == ([], [])
    assert set(answers(found)) <= {LogState, NameTaken, ConcurrentAppend, TransactionMustRetry}
    assert answers(found)[LogState] > 0
    if job == "change_values" and store == "postgresql":
        assert not answers(found)[TransactionMustRetry]


@on_every_store
def test_two_logs_that_want_each_others_value_do_not_deadlock(crew, members, store):
    found = crew.race(2, rule_jobs.swap_values, store, members(2), 20)

    assert answers(found) == {NameTaken: 40}


@pytest.mark.postgresql
def test_transactions_that_claim_crosswise_must_retry(crew, members, quick_deadlocks):
    found = crew.race(
        2, rule_jobs.swap_values_in_transactions, "postgresql", members(2), **quick_deadlocks
    )

    # The one that was aborted has claimed nothing, so the other one gets what it wanted.
    assert answers(found) == {TransactionMustRetry: 1, LogState: 1}
    assert (held_twice(), wrong_rows()) == ([], [])


@pytest.mark.postgresql
def test_a_store_that_only_looks_at_values_is_found(crew, writers, members):
    found = crew.race(
        writers,
        rule_jobs.claim_one_value,
        BROKEN + "LooksAtValuesOnly",
        members(writers),
        12,
        False,
    )

    assert answers(found)[LogState] > 12
    assert held_twice()


@pytest.mark.postgresql
def test_a_store_that_keeps_claims_of_a_refused_append_is_found(crew, writers, members):
    store = BROKEN + "KeepsClaimsOfARefusedAppend"

    def wrong() -> bool:
        crew.race(writers, rule_jobs.claim_one_value, store, members(writers), 12, True)
        return bool(wrong_rows())

    assert any(wrong() for _ in range(5))


# States of other logs


@on_every_store
@pytest.mark.parametrize("in_atomic", [False, True], ids=["alone", "in-atomic"])
@pytest.mark.parametrize("how", ["append", "execute"])
def test_a_rule_over_two_logs_holds(crew, writers, accounts, store, in_atomic, how):
    pairs = pairs_of(accounts(20))

    found = crew.race(writers, rule_jobs.withdraw_from_one_of_two, store, pairs, in_atomic, how)

    assert set(answers(found)) <= {LogState, ConcurrentAppend}
    assert [left(pair) for pair in pairs] == [1] * len(pairs)


def left(pair: tuple[LogId, LogId]) -> int:
    """Return what a pair of accounts has together."""
    manager = managed(Account, "portable")
    return sum(manager.reduce(each).aggregate.balance for each in pair)


@pytest.mark.postgresql
@pytest.mark.parametrize("variant", ["DoesNotLockOtherLogs", "IgnoresOtherLogs"])
def test_a_store_that_breaks_the_rule_over_two_logs_is_found(crew, writers, accounts, variant):
    def broken() -> bool:
        pairs = pairs_of(accounts(20))
        job = rule_jobs.withdraw_from_one_of_two
        crew.race(writers, job, BROKEN + variant, pairs, False, "append")
        return any(left(pair) < 1 for pair in pairs)

    assert any(broken() for _ in range(5))


@on_every_store
@pytest.mark.parametrize("in_atomic", [False, True], ids=["alone", "in-atomic"])
def test_logs_that_expect_one_another_do_not_deadlock(
    crew, writers, accounts, store, in_atomic, quick_deadlocks
):
    job = rule_jobs.expect_one_another

    found = crew.race(writers, job, store, accounts(6), 20, in_atomic, **quick_deadlocks)

    assert set(answers(found)) <= {LogState, ConcurrentAppend}
    assert answers(found)[LogState] > 0


@pytest.mark.postgresql
def test_a_store_that_locks_its_own_log_first_is_found(crew, writers, accounts, quick_deadlocks):
    job, store = rule_jobs.expect_one_another, BROKEN + "LocksItsOwnLogFirst"

    def given_up() -> int:
        found = crew.race(writers, job, store, accounts(6), 20, True, **quick_deadlocks)
        return answers(found)[TransactionMustRetry]

    assert any(given_up() for _ in range(5))
