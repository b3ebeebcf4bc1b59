"""Arguments and answers of deciders that are no events are refused with a corrected call."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction

from eventlogs import Aggregate, EventRecord, InvalidEvent, LogManager, event
from tests.accounts import Account, Deposited, Opened, Sent, withdraw

SECRET = 4111  # a value in the arguments that no message may show


async def deposit() -> Deposited:
    return Deposited(SECRET)


async def deposits() -> AsyncIterator[Deposited]:
    yield Deposited(SECRET)


NO_EVENTS: list[tuple[Any, str]] = [
    ([Deposited(SECRET)], "a list is given where an event of Account is wanted; pass its events"),
    ((Deposited(SECRET),), "a tuple is given where an event of Account is wanted; pass its events"),
    (frozenset([Deposited(SECRET)]), "a frozenset is given where an event of Account is wanted"),
    ([], "append(state, *events)"),
    ({"amount": SECRET}, "a dict is given where an event of Account is wanted; make an event of"),
    (None, "None is given where an event of Account is wanted; leave it out"),
    (Deposited, "the class Deposited is given where an event of Account is wanted; pass an inst"),
    (withdraw, "a function is given where an event of Account is wanted; call it"),
    (str(SECRET), "a str is given where an event of Account is wanted"),
    (SECRET, "an int is given where an event of Account is wanted"),
    (Sent(str(SECRET)), "a Sent is not an event of Account; name its class in events=[…]"),
]


def assert_is_refused(caught: Any, message: str) -> None:
    assert message in str(caught.value)
    assert str(SECRET) not in str(caught.value)


@pytest.mark.parametrize(("value", "message"), NO_EVENTS)
def test_a_value_that_is_no_event_is_refused_by_every_method(accounts, value, message):
    state = accounts.create(Opened("ada"))

    for call in (
        lambda: accounts.create(value),
        lambda: accounts.create(Opened("ada"), value),
        lambda: accounts.append(state, value),
        lambda: accounts.get_or_create(value, idempotency_key="a"),
        lambda: accounts.get_or_append(state, Deposited(1), value, idempotency_key="b"),
        lambda: accounts.execute(state.log_id, lambda account: [Deposited(1), value]),
        lambda: async_to_sync(accounts.aappend)(state, value),
        lambda: async_to_sync(accounts.acreate)(value),
    ):
        with pytest.raises(InvalidEvent) as caught:
            call()
        assert_is_refused(caught, message)

    assert accounts.version(state.log_id) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (each for each in [Deposited(SECRET)]), "a generator is given where an event"),
        (lambda: map(Deposited, [SECRET]), "a map is given where an event"),
        (deposit, "a coroutine is given where an event of Account is wanted; await it"),
        (deposits, "an async generator is given where an event of Account is wanted; collect"),
    ],
)
def test_an_object_that_would_produce_events_is_refused(accounts, make, message):
    state = accounts.create(Opened("ada"))

    for call in (accounts.append, async_to_sync(accounts.aappend)):
        with transaction.atomic():
            with pytest.raises(InvalidEvent) as caught:
                call(state, make())
            accounts.version(state.log_id)
        assert_is_refused(caught, message)


def test_a_record_and_a_state_are_no_events(accounts):
    state = accounts.create(Opened("ada"))
    (record,) = accounts.load(state.log_id)

    with pytest.raises(InvalidEvent, match=r"pass its event: record\.event"):
        accounts.append(state, record)
    with pytest.raises(InvalidEvent, match="pass the state first and events behind it"):
        accounts.create(state)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"amount": SECRET}, "a dict is given where an event"),
        (str(SECRET), "a str is given where an event"),
        (Deposited, "the class Deposited is given where an event"),
        ([[Deposited(SECRET)]], "in a decider, yield from them"),
        ([None], "None is given where an event"),
    ],
)
def test_an_answer_of_a_decider_that_is_no_event_is_refused(accounts, answer, message):
    state = accounts.create(Opened("ada"))

    with pytest.raises(InvalidEvent) as caught:
        accounts.execute(state.log_id, lambda account: answer)

    assert_is_refused(caught, message)
    assert accounts.version(state.log_id) == 1


async def decide(account: Account, amount: int = 1) -> list[Deposited]:
    return [Deposited(amount)]


async def decide_one_by_one(account: Account, amount: int = 1) -> AsyncIterator[Deposited]:
    yield Deposited(amount)


class Deciding:
    async def __call__(self, account: Account) -> Deposited:
        return Deposited(1)


@pytest.mark.parametrize(
    ("decider", "name"),
    [
        (decide, "decide"),
        (decide_one_by_one, "decide_one_by_one"),
        (functools.partial(decide, amount=SECRET), "decide"),
        (lambda account: decide(account, SECRET), "<lambda>"),
        (lambda account: decide_one_by_one(account, SECRET), "<lambda>"),
        (Deciding(), "Deciding"),
    ],
)
def test_an_async_decider_is_refused_with_a_corrected_call(accounts, decider, name):
    state = accounts.create(Opened("ada"))

    for call in (accounts.execute, async_to_sync(accounts.aexecute)):
        with pytest.raises(TypeError) as caught:
            call(state.log_id, decider)
        assert_is_refused(caught, "A decider is a plain function")
        assert f"{name} is async" in str(caught.value)
        assert "await logs.aexecute(log_id, decide, rate=await get_rate())" in str(caught.value)

    assert accounts.version(state.log_id) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: withdraw(Account(balance=SECRET), 1), "a generator was passed. Pass the function"),
        (lambda: decide(Account(), SECRET), "a coroutine was passed. Pass the function"),
        (lambda: decide_one_by_one(Account()), "an async generator was passed. Pass the function"),
        (lambda: [Deposited(SECRET)], "a list was passed. To append events that are decided"),
        (lambda: Deposited(SECRET), "a Deposited was passed. To append events that are decided"),
        (lambda: Deposited, "Deposited is the class of an event"),
        (lambda: None, "None was passed"),
    ],
)
def test_a_decider_is_a_function(accounts, make, message):
    state = accounts.create(Opened("ada"))

    for call in (accounts.execute, async_to_sync(accounts.aexecute)):
        with pytest.raises(TypeError) as caught:
            call(state.log_id, make())
        assert_is_refused(caught, message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda logs: logs.get_or_create(Opened("a"), idempotency_key="k"), "return a pair"),
        (lambda logs: Deposited(SECRET), "log id first, not a Deposited"),
        (lambda logs: logs.acreate(Opened("a")), "not a coroutine. Await it first"),
        (lambda logs: None, "log id first, not None"),
    ],
)
def test_an_append_goes_to_a_state_a_reduction_or_a_log(accounts, make, message):
    for options in ({}, {"expected_version": 1}):
        with pytest.raises(TypeError, match=re.escape(message)):
            accounts.append(make(accounts), Deposited(1), **options)


@event("hamper.filled")
@dataclass(frozen=True)
class Filled:
    """An event that is iterable."""

    fruits: list[str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fruits)


@dataclass
class Bowl(Aggregate, log_type="bowl", events=[Filled]):
    fruits: int = 0

    def apply(self, record: EventRecord) -> None:
        self.fruits += len(record.event.fruits)


def test_an_event_that_is_iterable_is_one_event(store, db):
    bowls = LogManager(Bowl, store=store)
    state = bowls.create(Filled(["apple"]))

    bowls.execute(state.log_id, lambda bowl: Filled(["fig", "pear"]))

    assert bowls.reduce(state.log_id).aggregate.fruits == 3
