"""
Methods for async code, each made of the sync one: no signature and no logic is written twice.

The sync method runs in a thread, the one that Django keeps for a request's database connections
(https://docs.djangoproject.com/en/stable/topics/async/#asgiref.sync.sync_to_async).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

P = ParamSpec("P")
R = TypeVar("R")


class AsyncTwin(Generic[P, R]):
    """
    The async twin of a class method, under its name with an ``a`` before it.

    ``acatch_up = AsyncTwin(catch_up)`` calls ``catch_up`` of the class that it is asked of, so a
    subclass that has its own has its twin, too.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], R]) -> None:
        self._method: Callable[..., R] = getattr(method, "__func__", method)
        self._name = self._method.__name__

    def __get__(self, instance: object, owner: type) -> Callable[P, Coroutine[Any, Any, R]]:
        method = getattr(owner, self._name)

        async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
            found: R = await sync_to_async(method, thread_sensitive=True)(*args, **kwargs)
            return found

        update_wrapper(twin, method)
        twin.__name__ = f"a{self._name}"
        twin.__doc__ = f"Do the same as ``{self._name}``, for async code."
        return twin
