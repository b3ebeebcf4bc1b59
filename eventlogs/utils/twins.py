"""
Methods for async code, each made of the sync one: no signature and no logic is written twice.

The sync method runs in a thread, the one that Django keeps for a request's database connections
(https://docs.djangoproject.com/en/stable/topics/async/#asgiref.sync.sync_to_async).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import update_wrapper
from itertools import islice
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from asgiref.sync import sync_to_async

P = ParamSpec("P")
R = TypeVar("R")

TAKEN: Final = 2_000  # items that are taken from a sync iterator in one trip to the thread

# Runs a call in async code instead of the thread: it gets the method, its owner, and arguments.
Way = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Coroutine[Any, Any, Any]]


class AsyncTwin(Generic[P, R]):
    """
    The async twin of a method or class method, to be assigned to its name with an ``a`` before it.

    ``areduce = AsyncTwin(reduce)`` calls ``self.reduce``, so a subclass that overrides ``reduce``
    changes its twin as well. Signature, types and documentation are those of ``reduce``.

    ``way`` runs the call instead of the thread. It is used only if the owner has not overridden the
    method; ``in_thread`` does what the twin would do without it.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], R], *, way: Way | None = None) -> None:
        self._bound = _twin(method, _call if way is None else _way_of(method, way))

    def __get__(self, instance: object, owner: type) -> Callable[P, Coroutine[Any, Any, R]]:
        found: Callable[P, Coroutine[Any, Any, R]] = self._bound.__get__(instance, owner)
        return found


class AsyncIteratorTwin(Generic[P, R]):
    """
    The async twin of a method that returns an iterator; see AsyncTwin.

    The twin is an async generator. It takes up to 2,000 items from the iterator for each trip to
    the thread. If what the method returns is an async iterable, too, that is used instead.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], Iterator[R]]) -> None:
        self._bound = _twin(method, _iterate)
        signature = inspect.signature(self._bound)
        returns = str(signature.return_annotation).replace("Iterator", "AsyncIterator")
        self._bound.__signature__ = signature.replace(return_annotation=returns)

    def __get__(self, instance: object, owner: type) -> Callable[P, AsyncIterator[R]]:
        found: Callable[P, AsyncIterator[R]] = self._bound.__get__(instance, owner)
        return found


class AsyncBlock:
    """A context manager that ``async with`` takes as well: it enters and leaves in the thread."""

    async def __aenter__(self) -> Self:
        await in_thread(self, "__enter__", (), {})
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        await in_thread(self, "__exit__", (kind, error, traceback), {})


def _twin(method: Any, kind: Callable[[str], Any]) -> Any:
    """Return the twin of a function or a classmethod in a class body."""
    function = getattr(method, "__func__", method)
    name = function.__name__
    twin = update_wrapper(kind(name), function)
    twin.__name__ = f"a{name}"
    twin.__qualname__ = f"{function.__qualname__.removesuffix(name)}a{name}"
    twin.__doc__ = f"Do the same as ``{name}``, for async code.\n\n{inspect.getdoc(function) or ''}"
    return type(method)(twin) if isinstance(method, classmethod) else twin


def _run(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return getattr(owner, name)(*args, **kwargs)


# Made once: to make it takes as long as to encode an event.
in_thread: Final = sync_to_async(_run, thread_sensitive=True)
"""Call a method of an owner by its name, with arguments, in the thread."""


def _call(name: str) -> Any:
    async def twin(owner: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await in_thread(owner, name, args, kwargs)

    return twin


def _way_of(method: Callable[..., Any], way: Way) -> Callable[[str], Any]:
    def kind(name: str) -> Any:
        async def twin(owner: Any, /, *args: Any, **kwargs: Any) -> Any:
            if getattr(getattr(owner, name), "__func__", None) is method:
                return await way(method, owner, args, kwargs)
            return await in_thread(owner, name, args, kwargs)

        return twin

    return kind


def _iterate(name: str) -> Any:
    async def twin(owner: Any, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        found = await in_thread(owner, name, args, kwargs)
        if hasattr(found, "__aiter__"):
            async for item in found:
                yield item
            return
        while items := await _take_in_thread(found):
            for item in items:
                yield item

    return twin


def _take(items: Iterator[R]) -> list[R]:
    return list(islice(items, TAKEN))


_take_in_thread: Final = sync_to_async(_take, thread_sensitive=True)
