"""Calls of async code that run together, in one batch in their thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async

from eventlogs.utils import batching
from eventlogs.utils.batching import batcher_of


class Works:
    """Work that doubles each item, and records the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def __call__(self, items: Sequence[int]) -> list[Any]:
        self.batches.append([*items])
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.may_end.wait(60)
        return [ValueError(item) if item < 0 else 2 * item for item in items]

    def hold(self) -> None:
        self.begun.clear()
        self.may_end.clear()


def all_of_them(items: Iterator[int]) -> Iterator[bool]:
    return (True for _ in items)


def no_two_alike(items: Iterator[int]) -> Iterator[bool]:
    seen = set[int]()
    for item in items:
        yield item not in seen
        seen.add(item)


async def ask(works: Works, item: int, choose: Any = all_of_them) -> Any:
    batcher = batcher_of(works, choose)
    assert batcher is not None
    try:
        is_first = batcher.callers == 1
        return "alone" if await batcher.is_alone() else await batcher.join(item, is_first=is_first)
    finally:
        batcher.leave()


async def begun(works: Works) -> None:
    await asyncio.to_thread(works.begun.wait, 60)


@pytest.fixture
def works() -> Iterator[Works]:
    yield Works()
    assert not batching._batchers


def test_a_single_call_is_told_that_it_is_alone(works):
    assert asyncio.run(ask(works, 1)) == "alone"
    assert works.batches == []


def test_concurrent_calls_are_one_batch_and_each_gets_its_own_answer(works):
    async def main() -> list[Any]:
        return await asyncio.gather(*(ask(works, n) for n in range(50)))

    assert asyncio.run(main()) == [2 * n for n in range(50)]
    assert works.batches == [[*range(50)]]


def test_calls_that_come_during_a_batch_are_in_the_next_one(works):
    async def main() -> list[Any]:
        works.hold()
        first = asyncio.gather(ask(works, 1), ask(works, 2))
        await begun(works)
        second = asyncio.gather(ask(works, 3), ask(works, 4))
        await asyncio.sleep(0)
        works.may_end.set()
        return [*await first, *await second]

    assert asyncio.run(main()) == [2, 4, 6, 8]
    assert works.batches == [[1, 2], [3, 4]]


def test_an_error_is_raised_in_the_call_that_it_answers(works):
    async def main() -> list[Any]:
        return [*await asyncio.gather(ask(works, 1), ask(works, -1), return_exceptions=True)]

    answer, error = asyncio.run(main())
    assert answer == 2
    assert isinstance(error, ValueError)


def test_work_that_fails_as_a_whole_fails_each_call_that_was_taken(works):
    class Stop(BaseException):
        pass

    def fail(items: Sequence[int]) -> list[Any]:
        raise Stop

    async def main() -> list[Any]:
        batcher = batcher_of(fail, all_of_them)
        assert batcher is not None
        answers = await asyncio.gather(*(batcher.join(n) for n in range(3)), return_exceptions=True)
        batcher.leave()
        return answers

    assert [type(each) for each in asyncio.run(main())] == [Stop] * 3


def test_items_that_may_not_go_together_go_one_after_the_other_in_order(works):
    async def main() -> list[Any]:
        return await asyncio.gather(*(ask(works, n, no_two_alike) for n in (1, 1, 2, 1, 2)))

    assert asyncio.run(main()) == [2, 2, 4, 2, 4]
    assert works.batches == [[1, 2], [1, 2], [1]]


def test_a_cancelled_call_that_waits_is_not_done(works):
    async def main() -> list[Any]:
        works.hold()
        first = asyncio.gather(ask(works, 1), ask(works, 2))
        await begun(works)
        waits, other = asyncio.create_task(ask(works, 3)), asyncio.create_task(ask(works, 4))
        await asyncio.sleep(0)
        waits.cancel()
        works.may_end.set()
        await first
        return [*await asyncio.gather(waits, other, return_exceptions=True)]

    cancelled, answer = asyncio.run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert answer == 8
    assert works.batches == [[1, 2], [4]]


def test_cancelling_a_running_call_cancels_no_other_one(works):
    async def main() -> list[Any]:
        works.hold()
        tasks = [asyncio.create_task(ask(works, n)) for n in range(3)]
        await begun(works)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        works.may_end.set()
        return [*await asyncio.gather(*tasks, return_exceptions=True)]

    cancelled, *answers = asyncio.run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert answers == [2, 4]


def test_a_batch_that_is_cancelled_before_it_begins_leaves_no_call_behind(works):
    gate = threading.Event()

    async def main() -> list[Any]:
        busy = asyncio.create_task(sync_to_async(gate.wait)(60))  # keeps the thread busy
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(ask(works, n)) for n in range(3)]
        while not (batches := _batches()):
            await asyncio.sleep(0)
        for _ in range(3):  # the batch waits for the thread by now
            await asyncio.sleep(0)
        for batch in batches:
            batch.cancel()
        gate.set()
        await busy
        return [*await asyncio.gather(*tasks)]

    assert asyncio.run(main()) == [0, 2, 4]


def _batches() -> list[asyncio.Task[Any]]:
    return [each for each in asyncio.all_tasks() if "_run_batch" in repr(each.get_coro())]


def test_calls_get_none_if_the_thread_is_shut_down(works, monkeypatch):
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    monkeypatch.setattr(SyncToAsync, "single_thread_executor", executor)

    async def main() -> list[Any]:
        return [*await asyncio.gather(ask(works, 1), ask(works, 2))]

    assert asyncio.run(main()) == [None, None]


def test_calls_of_different_threads_are_not_batched_together(works):
    async def request(item: int) -> Any:
        async with ThreadSensitiveContext():
            return [*await asyncio.gather(ask(works, item), ask(works, item + 1))]

    async def main() -> list[Any]:
        return [*await asyncio.gather(request(1), request(11))]

    assert asyncio.run(main()) == [[2, 4], [22, 24]]
    assert sorted(works.batches) == [[1, 2], [11, 12]]
    assert len(works.threads) == 2


def test_the_thread_is_that_of_sync_to_async(works):
    async def main() -> int:
        await asyncio.gather(ask(works, 1), ask(works, 2))
        return await sync_to_async(threading.get_ident)()

    assert works.threads.symmetric_difference({async_to_sync(main)()}) == set()
    assert works.threads == {threading.get_ident()}
    works.threads.clear()
    assert {asyncio.run(main())} == works.threads


def test_calls_of_a_nested_event_loop_are_answered(works):
    async def inner() -> list[Any]:
        return [*await asyncio.gather(ask(works, 1), ask(works, 2))]

    async def main() -> list[Any]:
        return await sync_to_async(async_to_sync(inner))()

    assert asyncio.run(main()) == [2, 4]


def test_calls_of_event_loops_of_several_threads_are_not_batched_together(works):
    barrier = threading.Barrier(2)

    async def main() -> list[Any]:
        await asyncio.to_thread(barrier.wait, 60)
        return [*await asyncio.gather(ask(works, 1), ask(works, 2))]

    with ThreadPoolExecutor(2) as pool:
        answers = [*pool.map(lambda _: asyncio.run(main()), range(2))]

    assert answers == [[2, 4], [2, 4]]
    assert works.batches == [[1, 2], [1, 2]]


def test_a_loop_may_end_while_calls_wait_and_are_under_way(works):
    async def main() -> None:
        works.hold()
        under_way = [asyncio.create_task(ask(works, n)) for n in range(2)]
        await begun(works)
        waiting = [asyncio.create_task(ask(works, n)) for n in range(2)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in (*under_way, *waiting))

    asyncio.run(main())  # asyncio.run() cancels the remaining tasks
    works.may_end.set()

    assert asyncio.run(ask(works, 1)) == "alone"


def test_a_deadline_ends_a_call_and_no_other_one(works):
    async def impatient() -> Any:
        async with asyncio.timeout(0):
            return await ask(works, 1)

    async def main() -> list[Any]:
        calls = (impatient(), ask(works, 2), ask(works, 3))
        return [*await asyncio.gather(*calls, return_exceptions=True)]

    timed_out, *answers = asyncio.run(main())
    assert isinstance(timed_out, TimeoutError)
    assert answers == [4, 6]


def test_tasks_that_begin_at_once_are_batched_too(works):
    factory = getattr(asyncio, "eager_task_factory", None)  # Python 3.11 has none

    async def main() -> list[Any]:
        asyncio.get_running_loop().set_task_factory(factory)
        return await asyncio.gather(*(ask(works, n) for n in range(5)))

    assert asyncio.run(main()) == [0, 2, 4, 6, 8]


def test_there_is_no_batching_if_asgiref_does_not_name_the_thread(works, monkeypatch):
    monkeypatch.delattr(SyncToAsync, "single_thread_executor")

    async def main() -> Any:
        return batcher_of(works, all_of_them)

    assert asyncio.run(main()) is None
