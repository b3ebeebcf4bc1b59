"""
What the processes of a race for unique values, and for the states of other logs, do.

Each function runs in every process of a crew, and answers what became of its calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

from django.db import DEFAULT_DB_ALIAS, Error, transaction
from django.utils.module_loading import import_string

from eventlogs import (
    ANY,
    Aggregate,
    EventLogError,
    LogId,
    LogManager,
    LogState,
    TransactionMustRetry,
)
from tests.accounts import Account, Deposited, Withdrawn
from tests.members import EmailChanged, Greeted, Joined, Member
from tests.processes import Place
from tests.races.jobs import PATIENCE, ChangedMind
from tests.races.stores import STORES

A = TypeVar("A", bound=Aggregate)


class Answer(NamedTuple):
    """One call, and its answer: what was asked for, and the log."""

    what: str
    log_id: LogId
    answer: LogState | Exception


def managed(aggregate: type[A], store: str, number: int = 0) -> LogManager[A]:
    """Return the manager of process ``number`` in a race on ``store``; see ``stores.py``."""
    paths = STORES.get(store, (store,))
    return LogManager(aggregate, store=import_string(paths[number % len(paths)])(DEFAULT_DB_ALIAS))


def called(what: str, log_id: LogId, call: Callable[[], LogState]) -> Answer:
    """Make a call; return it with its answer, whatever it is."""
    answer: LogState | Exception
    try:
        answer = call()
    except (EventLogError, Error) as error:
        error.__cause__ = None  # it would not pickle
        answer = error
    return Answer(what, log_id, answer)


def claim_one_value(
    place: Place, store: str, log_ids: Sequence[LogId], rounds: int, in_atomic: bool
) -> Iterator[Answer]:
    """All claim the round's value, for a new log or for one of their own."""
    members = managed(Member, store, place.number)
    for number in range(rounds):
        value, card = f"{number}@example.com", number * place.size + place.number
        log_id, call = log_ids[place.number], _claim(members, log_ids[place.number], value)
        if (number + place.number) % 2:
            log_id = members.new_id()
            call = _create(members, log_id, Joined(value, card))
        place.together()
        if not in_atomic:
            yield called(value, log_id, call)
            continue
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                with transaction.atomic():
                    answer = called(value, log_id, call)
                    if isinstance(answer.answer, TransactionMustRetry):
                        raise answer.answer
                    # The transaction is usable.
                    members.append(log_ids[place.number], Greeted(), expected_version=ANY)
            except TransactionMustRetry as error:
                error.__cause__ = None
                yield Answer("retry", log_id, error)
                continue
            yield answer
            break


def _claim(members: LogManager[Member], log_id: LogId, value: str) -> Callable[[], LogState]:
    return lambda: members.append(log_id, EmailChanged(value), expected_version=ANY)


def _create(members: LogManager[Member], log_id: LogId, event: Joined) -> Callable[[], LogState]:
    return lambda: members.create(event, log_id=log_id, idempotency_key=str(log_id))


def change_values(
    place: Place, store: str, log_ids: Sequence[LogId], values: Sequence[str], count: int
) -> Iterator[Answer]:
    """Claim, replace and release values on logs that all share, one append at a time."""
    members = managed(Member, store, place.number)
    place.together()
    for _ in range(count):
        yield _change(place, members, log_ids, values)


def change_values_in_transactions(
    place: Place, store: str, log_ids: Sequence[LogId], values: Sequence[str], count: int
) -> Iterator[Answer]:
    """Do so in transactions of several appends, of which some roll back."""
    members = managed(Member, store, place.number)
    place.together()
    for _ in range(count):
        answers = []
        try:
            with transaction.atomic():
                for _ in range(place.random.randint(1, 3)):
                    answers.append(_change(place, members, log_ids, values))
                    if isinstance(answers[-1].answer, TransactionMustRetry):
                        raise answers[-1].answer
                    assert not isinstance(answers[-1].answer, Error), answers[-1]
                if place.random.random() < 0.3:
                    raise ChangedMind
        except ChangedMind:
            pass
        except TransactionMustRetry as error:
            error.__cause__ = None
            yield Answer("retry", log_ids[0], error)
        else:
            yield from answers


def _change(
    place: Place, members: LogManager[Member], log_ids: Sequence[LogId], values: Sequence[str]
) -> Answer:
    log_id, value = place.random.choice(log_ids), place.random.choice((None, *values))
    events: list[Any] = [EmailChanged(value)]
    if place.random.random() < 0.3:  # claimed and released within the append
        events.insert(0, EmailChanged(place.random.choice(values)))
    version = ANY if place.random.random() < 0.7 else members.version(log_id)
    return called(
        str(value), log_id, lambda: members.append(log_id, *events, expected_version=version)
    )


def swap_values(place: Place, store: str, log_ids: Sequence[LogId], rounds: int) -> list[Answer]:
    """Two processes each want the value of the other one's log, and then one that is free."""
    members = managed(Member, store, place.number)
    answers = []
    mine = log_ids[place.number]
    for number in range(rounds):
        wanted = f"{1 - place.number}-{number}@example.com"
        own = f"{place.number}-{number}@example.com"
        members.append(mine, EmailChanged(own), expected_version=ANY)
        place.together()
        with transaction.atomic():
            answers.append(called(wanted, mine, _claim(members, mine, wanted)))
        place.together()
    return answers


def swap_values_in_transactions(place: Place, store: str, log_ids: Sequence[LogId]) -> list[Answer]:
    """Two transactions each release their value, and then claim that of the other."""
    members = managed(Member, store, place.number)
    mine = log_ids[place.number]
    members.append(mine, EmailChanged(f"{place.number}@example.com"), expected_version=ANY)
    place.together()
    try:
        with transaction.atomic():
            members.append(mine, EmailChanged(f"new {place.number}"), expected_version=ANY)
            place.together()
            claim = _claim(members, members.create(Joined()).log_id, f"new {1 - place.number}")
            answer = called("crosswise", mine, claim)
            if isinstance(answer.answer, TransactionMustRetry):
                raise answer.answer
    except TransactionMustRetry as error:
        error.__cause__ = None
        return [Answer("crosswise", mine, error)]
    return [answer]


def withdraw_from_one_of_two(
    place: Place, store: str, pairs: Sequence[Sequence[LogId]], in_atomic: bool, how: str
) -> Iterator[Answer]:
    """
    Withdraw from one account of a pair if nothing was withdrawn from either.

    Every other process takes the other account, so their own expectations do not collide.
    """
    accounts = managed(Account, store, place.number)
    for number, pair in enumerate(pairs):
        mine, other = pair if place.number % 2 else reversed(pair)
        place.together()
        with transaction.atomic() if in_atomic else nullcontext():
            beside = accounts.reduce(other)
            if beside.aggregate.balance < 1:
                continue

            def decide(account: Account) -> list[Withdrawn]:
                return [Withdrawn(1)] if account.balance else []

            def execute(mine: LogId = mine, beside: Any = beside) -> LogState:
                return accounts.execute(mine, decide, also_expect=[beside])

            def append(mine: LogId = mine, beside: Any = beside) -> LogState:
                own = accounts.reduce(mine)
                if not own.aggregate.balance:
                    return own.state
                return accounts.append(own, Withdrawn(1), also_expect=[beside])

            answer = called(f"{number}", mine, execute if how == "execute" else append)
        yield answer


def expect_one_another(
    place: Place, store: str, log_ids: Sequence[LogId], count: int, in_atomic: bool
) -> Iterator[Answer]:
    """Append to one log and expect states of some others, which do the same."""
    accounts = managed(Account, store, place.number)
    place.together()
    for number in range(count):
        mine, *others = place.random.sample(list(log_ids), place.random.randint(2, 4))
        states = [accounts.reduce(each).state for each in others]
        version = place.random.choice((ANY, accounts.version(mine)))

        def append(mine: LogId = mine, states: Any = states, version: Any = version) -> LogState:
            return accounts.append(mine, Deposited(1), expected_version=version, also_expect=states)

        def execute(mine: LogId = mine, states: Any = states) -> LogState:
            return accounts.execute(mine, lambda _: Deposited(1), also_expect=states)

        try:
            with transaction.atomic() if in_atomic else nullcontext():
                answer = called(f"{number}", mine, place.random.choice((append, execute)))
                if in_atomic and isinstance(answer.answer, TransactionMustRetry):
                    raise answer.answer
        except TransactionMustRetry:
            pass
        yield answer
