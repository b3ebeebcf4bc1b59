"""The helpers that make async twins of methods."""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from asgiref.sync import async_to_sync, sync_to_async

from eventlogs import LogManager, Reduction
from eventlogs.utils.twins import TAKEN, AsyncIteratorTwin, AsyncTwin
from tests.accounts import Account


class Base:
    @classmethod
    def double(cls, number: int, *, more: int = 0) -> int:
        """Return a number twice."""
        return 2 * number + more

    adouble = AsyncTwin(double)


class Own(Base):
    @classmethod
    def double(cls, number: int, *, more: int = 0) -> int:
        return -number


def test_a_twin_returns_the_result_of_the_method():
    assert async_to_sync(Base.adouble)(4, more=1) == 9


def test_a_twin_calls_the_overridden_method_of_a_subclass():
    assert async_to_sync(Own.adouble)(4) == async_to_sync(Own().adouble)(4) == -4


def test_a_twin_has_the_name_of_the_method_and_its_signature():
    assert Base.adouble.__name__ == "adouble"
    assert "double" in (Base.adouble.__doc__ or "")
    assert inspect.signature(Base.adouble) == inspect.signature(Base.double)


class Counter:
    def __init__(self, first: int) -> None:
        self.first = first

    def total(self, *numbers: int, factor: int = 1) -> int:
        """Return the sum of the numbers."""
        return factor * (self.first + sum(numbers))

    def count(self, *, to: int) -> Iterator[int]:
        """Yield the numbers from the first one on."""
        yield from range(self.first, to)

    def both(self) -> Iterator[int]:
        return Both()

    atotal = AsyncTwin(total)
    acount = AsyncIteratorTwin(count)
    aboth = AsyncIteratorTwin(both)


class Both(Iterator[int]):
    """An iterator with its own async implementation."""

    def __next__(self) -> int:
        raise AssertionError("iterated in a thread")

    async def __aiter__(self) -> AsyncIterator[int]:
        yield 7


async def listed(items: AsyncIterator[int]) -> list[int]:
    return [item async for item in items]


def test_a_twin_of_a_method_is_bound_to_its_instance():
    counter = Counter(1)

    assert async_to_sync(counter.atotal)(2, 3, factor=2) == 12
    assert inspect.signature(counter.atotal) == inspect.signature(counter.total)
    assert inspect.iscoroutinefunction(counter.atotal)
    assert inspect.iscoroutinefunction(Counter.atotal)
    assert Counter.atotal.__qualname__ == "Counter.atotal"
    assert "Return the sum of the numbers." in (Counter.atotal.__doc__ or "")


def test_a_twin_runs_the_method_in_the_thread_of_the_database_connections():
    class Where:
        def thread(self) -> int:
            return threading.get_ident()

        athread = AsyncTwin(thread)

    async def ask() -> tuple[int, int]:
        return await Where().athread(), await sync_to_async(threading.get_ident)()

    one, other = async_to_sync(ask)()
    assert one == other


def test_a_twin_of_an_iterator_fetches_many_items_per_call_of_the_thread():
    counter = Counter(0)

    assert async_to_sync(listed)(counter.acount(to=2 * TAKEN + 1)) == list(range(2 * TAKEN + 1))
    assert inspect.isasyncgenfunction(counter.acount)
    assert str(inspect.signature(counter.acount)) == "(*, to: 'int') -> 'AsyncIterator[int]'"


def test_an_iterator_with_its_own_async_method_uses_it():
    assert async_to_sync(listed)(Counter(0).aboth()) == [7]


def test_type_checkers_see_the_types_of_the_method():
    async def ask(counter: Counter) -> None:
        assert_type(await counter.atotal(1, factor=2), int)
        assert_type(counter.acount(to=1), AsyncIterator[int])
        assert_type(await LogManager(Account).areduce("x"), Reduction[Account])

    assert inspect.iscoroutinefunction(ask)
