"""
Calls of async code that wait for the same thread, run there together in one batch.

Each hop of ``sync_to_async`` to a thread takes some 60 µs of the interpreter's time, and the work
in the thread may be far cheaper for many calls than for one. So the calls of one event loop that
would go to the same thread wait in one queue. A call that finds no batch under way starts one. The
batch takes all calls that wait when it begins in the thread; later calls wait for the next one.

- A batch is a task of its own, so that the cancellation of a caller does not reach the others. A
  cancelled call that still waits leaves the queue. One that is in the batch goes on in the thread,
  as with ``sync_to_async``.
- The thread hands the answers to the loop itself. If a batch fails or is cancelled before it begins
  in the thread, the calls that wait go with the next one, or are answered None: nothing was done
  for them. No call waits forever.
- asgiref decides which thread a call goes to: see ``_thread_of``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context, copy_context
from threading import Lock
from typing import Any, Final, Generic, TypeVar

from asgiref.sync import AsyncToSync, SyncToAsync, sync_to_async

T = TypeVar("T")  # what a call asks for
R = TypeVar("R")  # what it is answered; an exception is raised

Work = Callable[[Sequence[T]], Sequence[R]]
"""Work, in the thread, on the items of several calls; return an answer or an error for each."""

Choice = Callable[[Iterator[T]], Iterator[bool]]
"""Yield for each waiting item, in order, whether the batch takes it; end early to take no more."""


class _Call(Generic[T, R]):
    __slots__ = ("context", "future", "item")

    def __init__(self, item: T, future: asyncio.Future[R | None]) -> None:
        self.item = item
        self.future = future
        self.context: Context = copy_context()


class Batcher(Generic[T, R]):
    """A queue of the calls of one event loop that go to the same thread for the same work."""

    def __init__(
        self,
        place: tuple[asyncio.AbstractEventLoop, Hashable, Work[T, R]],
        choose: Choice[T],
        executor: Executor | None,
    ) -> None:
        self.callers = 0  # calls in progress, joined or alone
        self._place = place
        self._loop, _, self._work = place
        self._choose = choose
        self._executor = executor
        self._lock = Lock()  # around what follows, which both threads change
        self._waiting: deque[_Call[T, R]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_under_way = False

    def leave(self) -> None:
        """Note that a call has ended."""
        self.callers -= 1
        if not self.callers:
            _batchers.pop(self._place, None)

    async def is_alone(self) -> bool:
        """Return whether a call is the only one, after waiting for others of the same moment."""
        if self.callers == 1:
            await asyncio.sleep(0)  # calls of tasks that were started, or go on, at the same time
        return self.callers == 1

    async def join(self, item: T, *, is_first: bool = False) -> R | None:
        """
        Wait for a batch that takes ``item``; return its answer, or None if nothing was done for it.

        ``is_first`` puts it in front of the calls that came while it asked ``is_alone``.
        """
        call = _Call[T, R](item, self._loop.create_future())
        with self._lock:
            if is_first:
                self._waiting.appendleft(call)
            else:
                self._waiting.append(call)
        self._start_batch()
        try:
            return await call.future
        except asyncio.CancelledError:
            with self._lock, suppress(ValueError):  # the thread has taken it
                self._waiting.remove(call)
            raise

    def _start_batch(self) -> None:
        """Start a batch, if calls wait and none is under way."""
        with self._lock:
            # A loop that ends cancels all tasks, and so their futures: then no batch is started.
            first = next((each for each in self._waiting if not each.future.done()), None)
            if self._is_under_way or first is None:
                return
            self._is_under_way = True
        # In the context of a waiting call, which decides about the thread.
        self._task = first.context.run(self._loop.create_task, self._run_batch())

    async def _run_batch(self) -> None:
        try:
            if self._executor is None:
                await _hop(self)
            else:
                await self._loop.run_in_executor(self._executor, self._run_in_thread)
        except (
            Exception
        ):  # the thread cannot be reached: each call goes there alone, and gets the error
            with self._lock:
                left = [*self._waiting]
                self._waiting.clear()
            _answer(left, [None] * len(left))
        finally:
            self._is_under_way = False
            self._start_batch()

    def _run_in_thread(self) -> None:
        """Do the work of a batch; called in the thread."""
        with self._lock:
            calls = self._take()
        if not calls:
            return
        answers: Sequence[Any] = [None] * len(calls)
        try:
            answers = self._work([call.item for call in calls])
        except BaseException as error:  # raised by the calls
            answers = [error] * len(calls)
        finally:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_answer, calls, answers)

    def _take(self) -> list[_Call[T, R]]:
        asking = [each for each in self._waiting if not each.future.done()]
        is_taken = [*self._choose(each.item for each in asking)]
        taken = [call for call, going in zip(asking, is_taken, strict=False) if going]
        going = set(map(id, taken))
        self._waiting = deque(each for each in asking if id(each) not in going)
        return taken


def _run(batcher: Batcher[Any, Any]) -> None:
    batcher._run_in_thread()


_hop: Final = sync_to_async(_run, thread_sensitive=True)


def _answer(calls: Sequence[_Call[T, Any]], answers: Sequence[Any]) -> None:
    for call, answer in zip(calls, answers, strict=True):
        if call.future.done():  # cancelled
            continue
        if isinstance(answer, BaseException):
            call.future.set_exception(answer)
        else:
            call.future.set_result(answer)


_batchers: Final[dict[Hashable, Batcher[Any, Any]]] = {}  # those that have callers


def batcher_of(
    work: Work[T, R], choose: Choice[T], *, executor: Executor | None = None
) -> Batcher[T, R] | None:
    """
    Return the batcher of a call's loop, thread and ``work``, and count the call.

    The thread is that of sync_to_async, or of an ``executor`` with one thread. Call ``leave()``
    when the call has ended. Return None if the thread is not known.
    """
    loop = asyncio.get_running_loop()
    thread = executor or _thread_of(loop)
    if thread is None:
        return None
    place = loop, thread, work
    found = _batchers.get(place)
    if found is None:
        found = _batchers[place] = Batcher(place, choose, executor)
    found.callers += 1
    return found


def _thread_of(loop: asyncio.AbstractEventLoop) -> Hashable | None:
    """
    Return an object that identifies the thread that ``sync_to_async(thread_sensitive=True)`` uses.

    It is decided in the same order as in SyncToAsync.__call__: the thread that waits in
    ``async_to_sync``, the thread of a ThreadSensitiveContext (Django has one for each ASGI
    request), that of the loop's own ``async_to_sync``, or the one thread of the process. These
    attributes are the only way to know it, and are the same from asgiref 3.8 (the oldest that
    Django 5.2 takes) to 3.13. Return None if one is missing: then no calls are batched.
    """
    try:
        return (
            getattr(AsyncToSync.executors, "current", None)
            or SyncToAsync.thread_sensitive_context.get(None)
            or AsyncToSync.loop_thread_executors.get(loop)
            or SyncToAsync.single_thread_executor
        )
    except AttributeError:
        return None


def has_thread() -> bool:
    """Return whether there is a thread yet to which sync_to_async would go."""
    try:
        if getattr(AsyncToSync.executors, "current", None):
            return True
        context = SyncToAsync.thread_sensitive_context.get(None)
        return context is None or context in SyncToAsync.context_to_thread_executor
    except AttributeError:
        return True
