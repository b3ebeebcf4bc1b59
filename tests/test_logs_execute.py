"""LogManager.execute, on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import connection, connections, transaction

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotencyKeyReused,
    LogId,
    LogManager,
    LogNotFound,
    LogState,
)
from eventlogs.models import EventLog
from tests.accounts import (
    Account,
    Deposited,
    Opened,
    Overdrawn,
    Withdrawn,
    withdraw,
)
from tests.locks import a_session_waits
from tests.processes import until


def history(accounts: LogManager[Any], log_id: LogId | str) -> list[Any]:
    """Return a log's events."""
    return [record.event for record in accounts.stream(log_id)]


def test_events_that_a_decider_yields_are_appended(accounts):
    state = accounts.create(Opened("ada"), Deposited(10))

    after = accounts.execute(state.log_id, withdraw, 4, metadata={"till": 7})
    after = accounts.execute(str(state.log_id), withdraw, amount=5)

    assert after.version == 4
    assert history(accounts, state.log_id)[2:] == [Withdrawn(4), Withdrawn(5)]
    assert accounts.load(state.log_id, start=2)[0].metadata == {"till": 7}


@pytest.mark.parametrize(
    ("decider", "decided"),
    [
        (lambda account: [Deposited(1), Deposited(2)], [Deposited(1), Deposited(2)]),
        (lambda account: (Deposited(1),), [Deposited(1)]),
        (lambda account: Deposited(1), [Deposited(1)]),
        (lambda account: (Deposited(n) for n in range(2)), [Deposited(0), Deposited(1)]),
        (lambda account: None, []),
        (lambda account: [], []),
        (lambda account: iter(()), []),
    ],
)
def test_a_decider_yields_or_returns_any_number_of_events(accounts, decider, decided):
    state = accounts.create(Opened("ada"))

    after = accounts.execute(state.log_id, decider)

    assert history(accounts, state.log_id)[1:] == decided
    assert (after.log_id, after.version) == (state.log_id, 1 + len(decided))
    assert decided or after == state


def test_an_error_of_a_decider_is_raised_and_nothing_is_stored(accounts):
    state = accounts.create(Opened("ada"), Deposited(3))

    with pytest.raises(Overdrawn):
        accounts.execute(state.log_id, withdraw, 4, idempotency_key="k")

    assert accounts.version(state.log_id) == 2
    assert accounts.execute(state.log_id, withdraw, 3, idempotency_key="k").version == 3


def test_a_decider_is_asked_again_with_the_newer_aggregate(accounts):
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    seen = []

    def decide(account: Account) -> Any:
        seen.append(account.balance)
        if len(seen) < 3:
            accounts.append(log_id, Deposited(1), expected_version=ANY)
        yield Withdrawn(account.balance)

    state = accounts.execute(log_id, decide, retries=2)

    assert seen == [10, 11, 12]
    assert state.version == 5
    assert accounts.reduce(log_id).aggregate.balance == 0


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_decider_is_asked_once_more_for_each_retry(accounts, retries):
    log_id = accounts.create(Opened("ada")).log_id
    asked = []

    def decide(account: Account) -> Any:
        asked.append(account)
        accounts.append(log_id, Deposited(1), expected_version=ANY)
        yield Withdrawn(1)

    with pytest.raises(ConcurrentAppend):
        accounts.execute(log_id, decide, retries=retries)

    assert len(asked) == retries + 1
    with pytest.raises(ValueError, match=r"retries is -1\. It must be an int of 0 or more"):
        accounts.execute(log_id, decide, retries=-1)


def test_a_key_is_looked_up_before_the_decider_is_asked(accounts):
    state = accounts.create(Opened("ada"), Deposited(10))
    first = accounts.execute(state.log_id, withdraw, 10, idempotency_key="k")
    accounts.append(first, Deposited(1))

    # Asked again, the decider would raise Overdrawn.
    again = accounts.execute(state.log_id, withdraw, 10, idempotency_key="k")

    assert again == first
    assert accounts.version(state.log_id) == 4


def test_a_key_of_another_log_is_refused_before_the_decider_is_asked(accounts):
    one, other = accounts.create(Opened("ada")), accounts.create(Opened("ada"))
    accounts.append(one, Deposited(1), idempotency_key="k")

    with pytest.raises(IdempotencyKeyReused) as caught:
        accounts.execute(other.log_id, withdraw, 1_000, idempotency_key="k")

    assert caught.value.log_id == one.log_id


def test_a_key_that_is_taken_while_the_decider_decides_answers_the_faster_call(accounts):
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    faster: list[Any] = []

    def decide(account: Account) -> Any:
        if not faster:
            faster.append(accounts.execute(log_id, withdraw, 1, idempotency_key="k"))
        yield Withdrawn(2)

    state = accounts.execute(log_id, decide, idempotency_key="k", retries=0)

    assert [state] == faster
    assert accounts.reduce(log_id).aggregate.balance == 9


def test_executing_on_a_log_that_does_not_exist_is_refused(accounts, log_id):
    with pytest.raises(LogNotFound):
        accounts.execute(log_id, withdraw, 0)


def test_a_decider_may_name_its_arguments_as_it_likes(accounts):
    log_id = accounts.create(Opened("ada")).log_id

    def decide(account: Account, first: int, *, using: str) -> Any:
        return Deposited(first + len(using))

    accounts.execute(log_id, decide, 1, using="xx")

    assert accounts.reduce(log_id).aggregate.balance == 3


def faster(accounts: LogManager[Account], log_id: LogId, elsewhere: Any, times: int = 1) -> Any:
    """Return a decider that lets another writer append while it decides, a number of times."""
    seen = []

    def decide(account: Account) -> Any:
        seen.append(account.balance)
        if len(seen) <= times:
            elsewhere(lambda: accounts.append(log_id, Deposited(1), expected_version=ANY))
        yield Withdrawn(account.balance)

    return decide


def test_without_retries_execute_does_not_wait_for_a_turn(database_accounts, elsewhere):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada")).log_id
    accounts._contended.add(log_id)

    with pytest.raises(ConcurrentAppend):
        accounts.execute(log_id, faster(accounts, log_id, elsewhere), retries=0)

    assert accounts.version(log_id) == 2


@pytest.mark.locks
@pytest.mark.parametrize("in_atomic", [False, True])
def test_a_retry_holds_the_log_until_its_decision_is_stored(
    database_accounts, elsewhere, in_atomic
):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    late: list[Any] = []

    def append_late() -> Any:
        try:
            return accounts.append(log_id, Deposited(5), expected_version=ANY)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:

        def decide(account: Account) -> Any:
            if account.balance == 10:
                elsewhere(lambda: accounts.append(log_id, Deposited(1), expected_version=ANY))
            else:
                late.append(pool.submit(append_late))
                if connection.vendor == "postgresql":
                    until(lambda: a_session_waits() or late[0].done())
                assert not late[0].done()
            yield Withdrawn(account.balance)

        with transaction.atomic() if in_atomic else nullcontext():
            state = accounts.execute(log_id, decide, retries=1)
        assert late[0].result(60).version == 5

    assert state.version == 4
    assert history(accounts, log_id)[2:] == [Deposited(1), Withdrawn(11), Deposited(5)]


def test_an_error_of_a_decider_undoes_its_appends_to_other_logs(database_accounts, elsewhere):
    accounts = database_accounts
    log_id, other = (accounts.create(Opened("ada")).log_id for _ in range(2))
    decided: list[int] = []

    def decide(account: Account) -> Any:
        decided.append(account.balance)
        accounts.append(other, Deposited(1), expected_version=ANY)
        raise Overdrawn

    accounts._contended.add(log_id)
    with pytest.raises(Overdrawn):
        accounts.execute(log_id, decide)

    assert decided == [0]
    assert accounts.version(other) == 1


def test_a_conflict_of_another_log_in_a_decider_is_the_callers(accounts):
    one, other = accounts.create(Opened("ada")), accounts.create(Opened("ada"))
    decided: list[int] = []

    def decide(account: Account) -> Any:
        decided.append(1)
        accounts.append(other.log_id, Deposited(1), expected_version=7)

    with pytest.raises(ConcurrentAppend) as caught:
        accounts.execute(one.log_id, decide)

    assert caught.value.log_id == other.log_id
    assert decided == [1]


def test_a_key_that_is_taken_before_the_turn_answers_its_call(database_accounts, elsewhere):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    faster_call: list[Any] = []

    def decide(account: Account) -> Any:
        faster_call.append(
            elsewhere(lambda: accounts.execute(log_id, withdraw, 1, idempotency_key="k"))
        )
        elsewhere(lambda: accounts.append(log_id, Deposited(1), expected_version=ANY))
        yield Withdrawn(2)

    state = accounts.execute(log_id, decide, idempotency_key="k")

    assert [state] == faster_call
    assert accounts.version(log_id) == 4


def test_a_log_that_is_contended_is_locked_at_once(database_accounts, elsewhere):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada"), Deposited(10)).log_id
    accounts.execute(log_id, faster(accounts, log_id, elsewhere))
    inside = []

    accounts.execute(log_id, lambda account: inside.append(connection.in_atomic_block))

    assert inside == [True]


def test_racing_calls_with_one_key_decide_once(database_accounts, race):
    accounts = database_accounts
    log_id = accounts.create(Opened("ada"), Deposited(100)).log_id

    answers = race(
        *[lambda: accounts.execute(log_id, withdraw, 7, idempotency_key="k", retries=0)] * 6
    )

    assert answers == [answers[0]] * 6
    assert answers[0].version == 3
    assert accounts.reduce(log_id).aggregate.balance == 93


def test_racing_creates_with_one_key_create_one_log(database_accounts, race):
    accounts = database_accounts

    answers = race(*[lambda: accounts.get_or_create(Opened("ada"), idempotency_key="k")] * 6)

    assert len({state for state, _ in answers}) == 1
    assert sorted(created for _, created in answers) == [False] * 5 + [True]
    assert EventLog.objects.count() == 1


def test_racing_appends_have_one_winner_and_leave_no_hole(database_accounts, race):
    accounts = database_accounts
    state = accounts.create(Opened("ada"))

    answers = race(*[lambda: accounts.append(state, Deposited(1), Deposited(2))] * 6)

    assert sum(isinstance(answer, LogState) for answer in answers) == 1
    assert sum(type(answer) is ConcurrentAppend for answer in answers) == 5
    assert [record.index for record in accounts.stream(state.log_id)] == [0, 1, 2]


@pytest.mark.parametrize("version", [-1, True, "3", 2**31])
def test_execute_refuses_an_expected_version_that_cannot_be(accounts, log_id, version):
    with pytest.raises(ValueError, match="expected_version is"):
        accounts.execute(log_id, lambda _: None, expected_version=version)
